"""Where a process is: which line of its program, and whether it waits for others there."""

import platform
import sys
import traceback
from pathlib import Path

LIBRARIES = ("/torch/", "/accelerate/", "/lib/python")  # in paths of files that are not ours
# In paths of files in which a process waits for others, and functions in which it does.
WAITING_FILES = (
    "torch/distributed/",
    "accelerate/utils/operations",
    "core/agreement",
    "core/exchange",
    "core/gathering",
    "core/stopping",
)
WAITING_FUNCTIONS = ("_engine_run_backward", "gather")


def whereabouts(thread: int) -> tuple[str, bool]:
    """Find where a thread of this process is.

    Args:
        thread: its number.

    Returns:
        The place, as `on NODE in FILE:LINE FUNCTION`, and whether it waits for others there.
    """
    frame = sys._current_frames().get(thread)
    places = [(frame.f_code, line) for frame, line in traceback.walk_stack(frame)]
    waits = False
    for code, _ in places:
        is_in_waiting_file = any(part in code.co_filename for part in WAITING_FILES)
        if is_in_waiting_file or code.co_name in WAITING_FUNCTIONS:
            waits = True
    own = [place for place in places if not is_of_library(place[0].co_filename)]
    code, line = (own or places)[0]
    file = Path(code.co_filename).name
    return f"on {platform.node()} in {file}:{line} {code.co_name}", waits


def is_of_library(path: str) -> bool:
    """Return whether a file of code belongs to a library."""
    return any(part in path for part in LIBRARIES)
