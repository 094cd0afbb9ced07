"""Which line of the user's program made a call."""

import functools
import os
import re
import site
import sys
import sysconfig
from pathlib import Path
from types import FrameType, TracebackType

PACKAGE = Path(__file__).parents[2]
# As in `predictions[: len(loader.dataset) - seen]`.
CUT_TO_A_LENGTH = re.compile(r"\[\s*:\s*len\(")


def library_folders() -> tuple[str, ...]:
    """Return the folders whose code is not the user's: Python's own, packages, this package."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += site.getsitepackages()
    folders.append(str(PACKAGE))
    resolved = [os.path.realpath(folder) for folder in folders]
    return tuple(folder + os.sep for folder in {*folders, *resolved})


LIBRARIES = library_folders()
# Folders of any environment.
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.cache
def is_users(path: str) -> bool:
    """Return whether a file of code belongs to the user's program."""
    if path.startswith("<") or any(part in path for part in PACKAGES):
        return False
    return not path.startswith(LIBRARIES)


@functools.cache
def short_name(path: str) -> str:
    """Return a file's path from the program's folder, or its name if it lies elsewhere."""
    folder = Path(sys.argv[0]).resolve().parent
    file = Path(path).resolve()
    if file.is_relative_to(folder):
        return str(file.relative_to(folder))
    return file.name


def place_of(frame: FrameType | None) -> str:
    """Return the innermost line of the user's program in a stack, as FILE:LINE, or nothing.

    Args:
        frame: the innermost frame of the stack.
    """
    while frame is not None:
        path = frame.f_code.co_filename
        if is_users(path):
            return f"{short_name(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def place() -> str:
    """Return the line of the user's program that made the present call."""
    return place_of(sys._getframe(1))


def cuts_to_a_length() -> bool:
    """Return whether the user's file that made the present call cuts something to the length of something else."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and has_cut(frame.f_code.co_filename)


@functools.cache
def has_cut(path: str) -> bool:
    """Return whether there is such a cut in a file of code."""
    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError:
        return False
    return CUT_TO_A_LENGTH.search(text) is not None


def is_called_by(ending: str) -> bool:
    """Return whether the present call comes through a file whose path ends so."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(ending):
            return True
        frame = frame.f_back
    return False


def place_of_error(trace: TracebackType | None) -> str:
    """Return the innermost line of the user's program through which an error came.

    Args:
        trace: the error's traceback.
    """
    found = ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if is_users(path):
            found = f"{short_name(path)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
