"""Checkpoint files: a folder with the state and its checksum, written atomically and read as plain data."""

import errno
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .output import warn

STATE = "state.pt"
MANIFEST = "manifest.json"
FORMAT = 8  # incremented whenever older checkpoints become unreadable

# Error codes of file systems that do not support fsync on a file or folder, such as some network
# mounts.
NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
# Seconds to wait before retrying a failed rename: a virus scanner or indexer may hold the file.
PAUSES = (
    0.1,
    0.5,
)
WARNED: set[str] = set()  # what this process has been warned of


def write_folder(place: Path, payload: dict[str, Any], about: dict[str, Any]) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` can read.

    It is written to a temporary folder, flushed to the disk and then renamed, so that a crash or an
    `OSError` leaves the previous contents untouched. If the file system cannot rename folders, it
    is copied into place, the manifest last: a folder without a manifest is never read.

    Args:
        place: its folder, which may hold an older checkpoint, but nothing else.
        payload: numbers, strings, tensors, and lists and dicts of these.
        about: JSON values for the manifest.

    Raises:
        UserError: the payload holds something else, or the folder does, or a link on the way leads
            nowhere.
        OSError: it cannot be written; names the folder.
    """
    content = as_bytes(payload)
    refuse_lost_link(place)
    refuse_other_files(place)
    aside = place.with_name(f".{place.name}")
    replaced = place.with_name(f".{place.name}.old")
    manifest = {"format": FORMAT, **about, "sha256": {STATE: hashlib.sha256(content).hexdigest()}}
    try:
        shutil.rmtree(aside, ignore_errors=True)  # a crash left it
        aside.mkdir(parents=True, exist_ok=True)
        (aside / STATE).write_bytes(content)
        (aside / MANIFEST).write_text(json.dumps(manifest))
        for written in (aside / STATE, aside / MANIFEST, aside):
            flush(written)
        if place.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            move(place, replaced)
        move(aside, place)
        flush(place.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if replaced.exists() and not place.exists():
            with suppress(OSError):
                replaced.rename(place)
        error.filename = str(place)  # the name that the user knows, or any: a full disk gives none
        raise


def as_bytes(payload: dict[str, Any]) -> bytes:
    """The payload as `torch.save` writes it.

    Raises:
        UserError: it holds what could not be read back as data.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(buffer.getvalue()))
    if foreign:
        raise UserError(
            f"a checkpoint that holds {', '.join(foreign)} cannot be read back: save plain values "
            "only"
        )
    return buffer.getvalue()


def refuse_other_files(place: Path) -> None:
    """Refuse to put a checkpoint in the place of something else.

    Raises:
        UserError: there is a file, or a folder with other files in it.
    """
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file: name a folder for the checkpoint")
    others = {path.name for path in place.glob("*")} - {STATE, MANIFEST}
    if others:
        raise UserError(
            f"{place} holds other files ({min(others)}): name a new folder for the checkpoint"
        )


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk, if its file system supports that."""
    if not path.is_file() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)


def sync(descriptor: int, path: Path) -> None:
    """Call `os.fsync`; if the file system does not support it, warn once and carry on.

    Args:
        descriptor: the descriptor of an open file or folder.
        path: its path, for the warning.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        warn_once(
            "flush",
            f"the file system of {path} does not support fsync ({error.strerror}): recent writes "
            "may be lost if the power fails",
        )


def move(source: Path, target: Path) -> None:
    """Rename a file or a checkpoint. If that is refused try again, then copy it.

    Args:
        source: a file, or the folder of a checkpoint.
        target: its new name. A file of that name is replaced; a folder must not be there.

    Raises:
        OSError: it can be neither renamed nor copied.
    """
    for pause in PAUSES:
        try:
            source.replace(target)
            return
        except OSError as error:
            reason = error.strerror
        time.sleep(pause)
    copy(source, target)
    warn_once(
        "rename",
        f"the file system does not rename {source} ({reason}): it was copied into place instead",
    )
    if source.is_dir():
        remove([source])
    else:
        source.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a checkpoint, whose manifest comes last: until then the copy is not read.

    Raises:
        OSError: it cannot be copied. Nothing is left of a folder that was begun.
    """
    if not source.is_dir():
        shutil.copyfile(source, target)
        flush(target)
        return
    target.mkdir()
    try:
        copy(source / STATE, target / STATE)
        copy(source / MANIFEST, target / MANIFEST)
        flush(target)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        raise


def warn_once(what: str, text: str) -> None:
    """Print a warning, unless this process has printed one of this kind before."""
    if what not in WARNED:
        WARNED.add(what)
        warn(text)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, if they are not there.

    Raises:
        UserError: a symbolic link on the way leads nowhere.
        OSError: it cannot be made.
    """
    refuse_lost_link(folder)
    folder.mkdir(parents=True, exist_ok=True)


def refuse_lost_link(path: Path) -> None:
    """Raise if a path contains a dangling symbolic link, as when a disk is unmounted or was erased.

    Raises:
        UserError: names the link and its target.
    """
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            target = place.readlink()
            raise UserError(
                f"{place} is a symbolic link to {target}, which does not exist: create that "
                "folder, or remove the link"
            )


def read_folder(place: Path) -> dict[str, Any]:
    """Read a checkpoint as data: nothing in it can run.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    if not place.is_dir():
        raise UserError(f"there is no checkpoint {place}: name the folder that save_state wrote")
    if not (place / MANIFEST).exists() and any(place.glob("random_states_*.pkl")):
        raise UserError(
            f"the checkpoint {place} was written by Accelerate's own save_state, which ExactAccelerator "
            "does not read: start from the weights in it, or begin the training again"
        )
    try:
        manifest = json.loads((place / MANIFEST).read_text())
        content = (place / STATE).read_bytes()
        if manifest["format"] != FORMAT:
            what = f"has format {manifest['format']}, this version reads {FORMAT}"
        elif hashlib.sha256(content).hexdigest() != manifest["sha256"][STATE]:
            what = f"is damaged: {STATE} does not have the digest in {MANIFEST}"
        else:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parsers trip over, it is a damaged checkpoint
        what = f"is damaged: {type(error).__name__}"
    raise UserError(f"the checkpoint {place} {what}")


def remove(checkpoints: Iterable[Path]) -> None:
    """Remove checkpoints; one that cannot be removed is no reason to end a training."""
    for place in checkpoints:
        try:
            shutil.rmtree(place)
        except OSError as error:  # a mount, or what NFS keeps of a file that is open
            warn(f"{place} could not be removed ({error.strerror})")
