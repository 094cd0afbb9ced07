"""Printing the names of files, which may hold anything."""

import sys

LONGEST = 200  # characters of a value that are printed


def allow_any_name() -> None:
    """Let standard output print names of files that are not UTF-8, with a `?` for what is not."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


def printable(value: object) -> str:
    """Return text for a terminal: nothing in it can move the cursor, and it is not long."""
    letters = [letter if letter.isprintable() else "?" for letter in str(value)]
    text = "".join(letters)
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 1]}…"
