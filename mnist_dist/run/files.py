"""Files that are written whole or not at all."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_file(path: Path, content: bytes) -> None:
    """Put a file in place whole, or leave what was there: written aside, flushed to the disk, then renamed.

    A pipe or a device, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: the disk is full, or the file or its folder cannot be written to.
    """
    place = path.resolve()  # behind a symbolic link, which stays
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        if place.exists() and not place.is_file():
            place.write_bytes(content)
            return
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(place)
    except OSError as error:
        error.filename = str(path)  # the name that the user knows, or any: a full disk gives none
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document as `write_file` does; numbers that are not finite are refused as a `ValueError`."""
    write_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, values: Sequence[Any]) -> None:
    """Write a file of JSON lines as `write_file` does."""
    write_file(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode())


def append_json(path: Path, value: Any) -> None:
    """Add one line to a file of JSON lines, and see it on the disk; if that fails the file is as it was.

    Raises:
        OSError: the disk is full, or the file is gone, perhaps with its folder, or cannot be written to.
    """
    with path.open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            line = (json.dumps(value, allow_nan=False) + "\n").encode()
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
