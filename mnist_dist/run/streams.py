"""Standard streams that a program can always write to, even after a terminal was closed."""

import errno
import io
import os
import sys
from typing import Any


class LastingStream:
    """A text stream that tolerates write errors once nobody can read it any more.

    If the terminal was closed (EIO), output is dropped. On the standard output, all other errors
    are raised, because the output may be the whole purpose of the program. On the standard error,
    which takes warnings and progress bars, all errors are ignored.

    Args:
        stream: the underlying stream; all other methods are delegated to it.
        loses_all: whether to ignore all errors instead of only EIO.
    """

    def __init__(self, stream: Any, loses_all: bool) -> None:
        self.stream = stream
        self.loses_all = loses_all

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text.

        Args:
            text: the text.

        Returns:
            Its length, also if it is lost.

        Raises:
            OSError: it could not be written, which must be told.
        """
        try:
            self.stream.write(text)
        except OSError as error:
            self.raise_if_told(error)
        return len(text)

    def flush(self) -> None:
        """Write what is still to be written.

        Raises:
            OSError: it could not be written, which must be told.
        """
        try:
            self.stream.flush()
        except OSError as error:
            self.raise_if_told(error)

    def raise_if_told(self, error: OSError) -> None:
        """Raise an error, unless it is one that is passed over."""
        if error.errno != errno.EIO and not self.loses_all:
            raise error


def lasting_error() -> Any:
    """The standard error as a stream that is never a reason to end."""
    if isinstance(sys.stderr, LastingStream):
        return sys.stderr
    return LastingStream(sys.stderr, loses_all=True)


def prepare_streams() -> None:
    """Make the standard streams of this process safe to write to.

    A closed stream is replaced by the null device. Characters that the encoding lacks are escaped,
    because a path may contain arbitrary bytes.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: PTH123, SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, LastingStream):
            stream = LastingStream(stream, loses_all=name == "stderr")
        setattr(sys, name, stream)
