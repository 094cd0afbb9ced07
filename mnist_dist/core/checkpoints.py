"""Checkpoints: the whole training state, written aside and moved into place, verified before it is used."""

import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from .processes import STATUS, Stopped, StopRequest, UserError, all_or_none, announce
from .training import Training

FOLDER, NAMES, STATE, MANIFEST = "checkpoints", f"step-{10 * '[0-9]'}", "state.pt", "manifest.json"
FORMAT, KEPT = 7, 2  # raised when a checkpoint of before can no longer be read; the newest so many stay


class Checkpoints:
    """The checkpoints of a run; every process holds one and calls it alike.

    Args:
        run, training: the run's folder, and the model in training.
        parts: what else must survive a stop, by name: whatever has `state_dict` and `load_state_dict`. Plain values
            (numbers, strings, tensors, lists and dicts of these) do so in the attribute `values`.
        fixed: plain values that may not differ when the run goes on, by the name that messages give them.
        every: updates between two checkpoints; 0 for none within an epoch."""

    def __init__(self, run: Path, training: Training, parts: dict[str, Any], fixed: dict[str, Any], every: int = 0):
        self.run, self.training, self.every = run, training, every
        self.parts, self.fixed = {"training": training, **parts}, {**fixed, "parameter order": training.order}
        self.request, self.stopping, self.values = StopRequest(), False, dict[str, Any]()

    def after_update(self) -> None:
        """After all of an update: save if it is time, or asked for; an epoch's end waits for evaluation and `save`."""
        self.stopping = self.request.agreed() or self.stopping
        due = self.every > 0 and self.training.progress.global_step % self.every == 0
        if (due or self.stopping) and not self.training.epoch_is_complete:
            self.save()

    def save(self, last: bool = False) -> None:
        """Write a checkpoint, and leave by `Stopped` if a process was asked to stop, unless the run is complete."""
        self.stopping = self.stopping or self.request.agreed()  # also if nobody asks after the updates
        states = {name: part.state_dict() for name, part in self.parts.items()}  # on all: some ask the others
        step = self.training.progress.global_step
        with all_or_none():
            if self.training.accelerator.is_main_process:
                payload = {"fixed": self.fixed, "values": self.values, "parts": states}
                self.training.last_checkpoint = write_checkpoint(self.run, payload, step)
        if self.stopping and not last:
            raise Stopped(f"stopped on request at update {step}, saved in {self.run / FOLDER}", STATUS, self.run)

    def resume(self) -> bool:
        """Put all parts back to where the newest intact checkpoint was taken; False if there is none at all."""
        with all_or_none():
            payload, damaged = newest_checkpoint(self.run) if self.training.accelerator.is_main_process else (None, [])
            for warning in damaged:
                print(f"warning: {warning}", file=sys.stderr)
            if damaged and payload is None:
                raise UserError(f"{self.run} holds a run but no intact checkpoint: choose another, or delete it")
        (payload,) = broadcast_object_list([payload])
        if payload is None:
            announce(f"no checkpoint in {self.run / FOLDER}: starting from scratch")
            return False
        with all_or_none():
            try:
                for name in {**payload["fixed"], **self.fixed}:
                    if (now := self.fixed.get(name)) != (then := payload["fixed"].get(name)):
                        what = f"{name} is {now}, but the run in {self.run} was trained with {then}"
                        raise UserError(f"{what}: resume with that, or start another run")
                for name in {**self.parts, **payload["parts"]}:
                    self.parts[name].load_state_dict(payload["parts"][name])
                self.values = payload["values"]
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                what = f"the newest checkpoint in {self.run / FOLDER} holds another training ({type(error).__name__})"
                raise UserError(f"{what}: delete it, or start another run") from error
        at = self.training.progress
        self.training.last_checkpoint = self.run / FOLDER / f"step-{at.global_step:010d}"
        announce(f"going on from update {at.global_step} (epoch {at.epoch + 1})")
        return True


def write_checkpoint(run: Path, payload: dict[str, Any], step: int) -> Path:
    """Write what `torch.load(weights_only=True)` can read, remove all but the newest `KEPT`, and return its folder. It
    is written aside, flushed to the disk and then renamed: a crash or `OSError` leaves the one before as it was."""
    folder, place, aside = (run / FOLDER / name for name in ("", f"step-{step:010d}", f".step-{step:010d}"))
    try:
        shutil.rmtree(aside, ignore_errors=True)  # a crash left it
        aside.mkdir(parents=True, exist_ok=True)
        torch.save(payload, buffer := io.BytesIO())
        if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(buffer.getvalue())):
            raise UserError(f"no checkpoint can be read back that holds {', '.join(foreign)}: give plain values")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        (aside / STATE).write_bytes(buffer.getvalue())
        (aside / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "sha256": {STATE: digest}}))
        for written in (aside / STATE, aside / MANIFEST, aside):
            flush(written)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        aside.rename(place)
        flush(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        error.filename = str(place)  # the name that the user knows, or any: a full disk gives none
        raise
    older = sorted(other for other in folder.glob(NAMES) if other <= place)  # newer ones are damaged
    for other in {*folder.glob(NAMES), *folder.glob(f".{NAMES}")} - {*older[-KEPT:]}:
        try:
            shutil.rmtree(other)
        except OSError as error:  # a mount, or what NFS keeps of a file that is open: no reason to end a training
            print(f"warning: {other} could not be removed ({error.strerror})", file=sys.stderr)
    return place


def flush(path: Path) -> None:
    """See a file's content, or a folder's entries, on the disk."""
    if path.is_file() or hasattr(os, "O_DIRECTORY"):  # Windows opens no folders, and flushes only what it may write
        descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_checkpoint(place: Path) -> dict[str, Any]:
    """Read a checkpoint as data: nothing in it can run. A `UserError` if it is damaged or of another format."""
    try:
        manifest, content = json.loads((place / MANIFEST).read_text()), (place / STATE).read_bytes()
        what = f"is damaged: {STATE} does not have the digest in {MANIFEST}"
        if manifest["format"] != FORMAT:
            what = f"has format {manifest['format']}, this version reads {FORMAT}"
        elif hashlib.sha256(content).hexdigest() == manifest["sha256"][STATE]:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parsers trip over, it is a damaged checkpoint
        what = f"is damaged: {type(error).__name__}"
    raise UserError(f"the checkpoint {place} {what}")


def newest_checkpoint(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that verifies, or None, and a warning for each damaged one passed over."""
    warnings: list[str] = []
    for place in sorted((run / FOLDER).glob(NAMES), reverse=True):
        try:
            return read_checkpoint(place), warnings
        except UserError as error:
            warnings.append(f"{error}; looking for an older one")
    return None, warnings
