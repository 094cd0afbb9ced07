"""Where a thread is: which line of whose code, what it called there, and whether it waits for others in it."""

import os
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import accelerate
import torch

CORE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # as frames name files
PACKAGE = os.path.dirname(CORE)  # noqa: PTH120
LIBRARIES = tuple(
    os.path.join(folder, "")  # noqa: PTH118
    for folder in (
        *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
        *(next(iter(package.__path__)) for package in (torch, accelerate)),
    )
)
# In paths of files in which a process waits for others, and functions in which it does.
WAITING_FILES = (
    "torch/distributed/",
    "accelerate/utils/operations",
    "core/agreement",
    "core/exchange",
    "core/gathering",
    "core/losses",
    "core/stopping",
    "core/update",
)
WAITING_FUNCTIONS = ("_engine_run_backward", "gather")
# Functions that only call what was meant.
WRAPPERS = ("__call__", "__enter__", "__exit__", "_call_impl", "_wrapped_call_impl", "wrapper")
NAMES = {"__iter__": "the loader's next batch", "__next__": "the loader's next batch"}


@dataclass(frozen=True)
class Place:
    """Where a thread is.

    Attributes:
        where: file and line of the user's code, such as `train.py:130`; if a function of another
            file was called there, its file and line, too.
        call: what was called there; if nothing was, the function that the line is in.
        waits: whether it waits for other processes in it.
        frames: tells two moments apart in which the thread was at different points of its code.
    """

    where: str
    call: str
    waits: bool
    frames: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.call} at {self.where}"


def place_of(thread: int) -> Place | None:
    """Find where a thread of this process is.

    Args:
        thread: its number.

    Returns:
        The place, or None if there is no such thread.
    """
    innermost = sys._current_frames().get(thread)
    frames = [frame for frame, _ in traceback.walk_stack(innermost)] if innermost else []
    if not frames:
        return None
    own = [number for number, frame in enumerate(frames) if is_users(frame)] or [0]
    places = [short(frames[own[0]])]
    scripts = [number for number in own if frames[number].f_globals.get("__name__") == "__main__"]
    if scripts and file_of(frames[scripts[0]]) != file_of(frames[own[0]]):
        places.insert(0, short(frames[scripts[0]]))
    return Place(
        where=", ".join(places),
        call=called(frames[own[0]], frames[: own[0]]),
        waits=any(is_in_wait(frame) for frame in frames),
        frames=tuple((id(frame.f_code), frame.f_lasti) for frame in frames),
    )


def called(own: FrameType, inner: list[FrameType]) -> str:
    """Return what the user's code has called; if that was nothing, the function that it is in.

    Args:
        own: the innermost frame of the user's code.
        inner: the frames of what it has called, the innermost first.
    """
    codes = [frame.f_code for frame in reversed(inner)] or [own.f_code]
    meant = [code for code in codes if code.co_name not in WRAPPERS] or codes
    return NAMES.get(meant[0].co_name, meant[0].co_qualname)


def is_users(frame: FrameType) -> bool:
    """Return whether a frame is of the user's code: not of a library, nor of the core."""
    file = file_of(frame)
    if file.startswith(os.path.join(CORE, "")):  # noqa: PTH118
        return False
    if file.startswith(os.path.join(PACKAGE, "")):  # noqa: PTH118  # which may be installed among libraries
        return True
    return not file.startswith((*LIBRARIES, "<frozen"))


def is_in_wait(frame: FrameType) -> bool:
    """Return whether a frame is of code that waits for other processes."""
    if frame.f_code.co_name in WAITING_FUNCTIONS:
        return True
    file = file_of(frame).replace(os.sep, "/")
    return any(part in file for part in WAITING_FILES)


def file_of(frame: FrameType) -> str:
    """Return the path of the file that a frame's code is in."""
    return frame.f_code.co_filename


def short(frame: FrameType) -> str:
    """Return the file's name and the line of a frame."""
    return f"{Path(file_of(frame)).name}:{frame.f_lineno}"
