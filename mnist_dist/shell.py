"""Command lines that a user can paste into a shell."""

import shlex
import subprocess
import sys
from os import PathLike, fspath


def shell(*words: str | PathLike[str]) -> str:
    """Write a command as one line, quoted where the shell of this system needs it.

    Args:
        words: the program and its arguments, one word or path each.

    Returns:
        The line. Windows' shell does not know single quotes, so it is quoted otherwise there.
    """
    texts = [fspath(word) for word in words]
    if sys.platform == "win32":
        return subprocess.list2cmdline(texts)
    return shlex.join(texts)
