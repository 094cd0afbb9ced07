"""Checkpoints on the disk: a folder with the state and its digest, moved into place whole, and read as data."""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

STATE = "state.pt"
MANIFEST = "manifest.json"
FORMAT = 8  # raised when a checkpoint of before can no longer be read


def write_folder(place: Path, payload: dict[str, Any], about: dict[str, Any]) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` can read.

    It is written aside, flushed to the disk and then renamed: a crash or an `OSError` leaves what was there as it was.

    Args:
        place: its folder, which may hold an older checkpoint, but nothing else.
        payload: numbers, strings, tensors, and lists and dicts of these.
        about: JSON values for the manifest.

    Raises:
        UserError: the payload holds something else, or the folder does.
        OSError: it cannot be written; names the folder.
    """
    content = as_bytes(payload)
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
            place.rename(replaced)
        aside.rename(place)
        flush(place.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
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
        raise UserError(f"no checkpoint can be read back that holds {', '.join(foreign)}: give plain values")
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
        raise UserError(f"{place} holds other files ({min(others)}): name a new folder for the checkpoint")


def flush(path: Path) -> None:
    """See a file's content, or a folder's entries, on the disk."""
    if not path.is_file() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_folder(place: Path) -> dict[str, Any]:
    """Read a checkpoint as data: nothing in it can run.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    if not place.is_dir():
        raise UserError(f"there is no checkpoint {place}: name the folder that save_state wrote")
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
            print(f"warning: {place} could not be removed ({error.strerror})", file=sys.stderr)
