"""Files that are written whole or not at all."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_dist.core.files import move, refuse_lost_link, sync


def write_file(path: Path, content: bytes) -> None:
    """Put a file in place whole, or leave what was there.

    The content is written aside and flushed to the disk, then the new file is renamed. Where the
    file system renames nothing, it is copied. A pipe or a device, such as /dev/stdout, is written
    to as it is.

    Args:
        path: the file. A symbolic link stays, and the file behind it is replaced.
        content: what it is to hold.

    Raises:
        UserError: the path leads over a symbolic link to nowhere.
        OSError: the disk is full, or the file or its folder cannot be written to.
    """
    refuse_lost_link(path.parent)
    place = path.resolve()
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        if place.exists() and not place.is_file():
            place.write_bytes(content)
            return
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno(), path)
        move(aside, place)
    except OSError as error:
        # The user knows the file by this name. A full disk reports none at all.
        error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document as `write_file` does.

    Args:
        path: the file.
        value: what it is to hold.

    Raises:
        OSError: as for `write_file`.
        ValueError: the value holds numbers that are not finite.
    """
    document = json.dumps(value, indent=2, allow_nan=False)
    write_file(path, f"{document}\n".encode())


def write_json_lines(path: Path, values: Sequence[Any]) -> None:
    """Write a file of JSON lines as `write_file` does.

    Args:
        path: the file.
        values: what it is to hold, a line each.

    Raises:
        OSError: as for `write_file`.
        ValueError: some value holds numbers that are not finite.
    """
    lines = [json_line(value) for value in values]
    write_file(path, b"".join(lines))


def append_json(path: Path, value: Any) -> None:
    """Add one line to a file of JSON lines, and see it on the disk. If that fails, take it back.

    Args:
        path: the file, which must exist.
        value: what the line is to hold.

    Raises:
        OSError: the disk is full, or the file is gone, perhaps with its folder, or cannot be
            written to.
        ValueError: the value holds numbers that are not finite.
    """
    line = json_line(value)
    with path.open("r+b", buffering=0) as file:
        size_before = file.seek(0, os.SEEK_END)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            sync(file.fileno(), path)
        except OSError:
            file.truncate(size_before)
            raise


def json_line(value: Any) -> bytes:
    """Write a value as one line of JSON, without numbers that are not finite."""
    return f"{json.dumps(value, allow_nan=False)}\n".encode()
