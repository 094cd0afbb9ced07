"""Console output. A line that can no longer be printed is dropped rather than ending the program."""

import sys
from typing import Any


def say(text: str, stream: Any = None) -> None:
    """Print a line, if that is still possible.

    Args:
        text: the line. Characters that the stream's encoding lacks are written as escapes.
        stream: where to; None for the standard output.

    Raises:
        BrokenPipeError: it is the standard output, and whoever read it has left.
    """
    to_output = stream is None
    stream = stream or sys.stdout
    try:
        print_with_escapes(text, stream)
    except BrokenPipeError:
        if to_output:
            raise
    except OSError:  # the terminal was closed, or the disk of the log is full
        pass


def warn(text: str) -> None:
    """Print a warning to the standard error, if that is still possible."""
    say(f"warning: {text}", sys.stderr)


def print_with_escapes(text: str, stream: Any) -> None:
    """Print a line, with escapes for what the stream cannot encode, such as a path's odd bytes."""
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        escaped = text.encode(encoding, "backslashreplace")
        print(escaped.decode(encoding), file=stream, flush=True)
