"""The standard streams of a program, to which writing is no reason to end it."""

import errno
import io
import os
import sys
from typing import Any


class LastingStream:
    """A text stream that may be written to when nobody can read it any more.

    Where a terminal was closed (EIO), what is written is lost. Of the standard output all other
    failures are told: it may be the very thing that a program was called for. What warnings and
    progress bars go to, the standard error, is never a reason to end.

    Args:
        stream: the stream, whose other methods are this one's, too.
        loses_all: whether no failure is told.
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
    """Let this process write to its standard streams whatever has become of them.

    One that was closed leads nowhere. What an encoding lacks is written as an escape: a path may
    hold any bytes.
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
