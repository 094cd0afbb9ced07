"""Where a process is: which line of its program, and whether it waits for others there."""

import platform
import sys
import traceback
from pathlib import Path

from mnist_dist.core.whereabouts import is_in_wait

LIBRARIES = ("/torch/", "/accelerate/", "/lib/python")  # in paths of files that are not ours


def whereabouts(thread: int) -> tuple[str, bool]:
    """Find where a thread of this process is.

    Args:
        thread: its number.

    Returns:
        The place, as `on NODE in FILE:LINE FUNCTION`, and whether it waits for others there.
    """
    frame = sys._current_frames().get(thread)
    frames = list(traceback.walk_stack(frame))
    places = [(frame.f_code, line) for frame, line in frames]
    waits = any(is_in_wait(frame) for frame, _ in frames)
    own = [place for place in places if not is_of_library(place[0].co_filename)]
    code, line = (own or places)[0]
    file = Path(code.co_filename).name
    return f"on {platform.node()} in {file}:{line} {code.co_name}", waits


def is_of_library(path: str) -> bool:
    """Return whether a file of code belongs to a library."""
    return any(part in path for part in LIBRARIES)
