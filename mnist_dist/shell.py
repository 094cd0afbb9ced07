"""Commands for people to paste into a shell."""

import shlex
import subprocess
import sys
from os import PathLike, fspath


def shell(*words: str | PathLike[str]) -> str:
    """The words of a command, quoted where the system's shell needs it; Windows' knows no single quotes."""
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join([fspath(word) for word in words])
