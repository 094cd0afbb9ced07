"""Checkpoints: the whole training state, written aside and moved into place, verified before it is used."""

import hashlib
import io
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mnist_dist.config import flag
from mnist_dist.distributed import announce, from_main, together
from mnist_dist.errors import UserError
from mnist_dist.runs import CHECKPOINTS, WEIGHTS
from mnist_dist.stopping import Stopped, StopRequest

STATE, MANIFEST = "state.pt", "manifest.json"
FORMAT = 5  # raised when a checkpoint of before can no longer be read
KEEP = 2  # the newest so many are kept
MATHEMATICS = (  # settings in which a run cannot be changed on the way
    *("dataset", "val_size", "seed", "batch_size", "gradient_accumulation_steps", "affine", "elastic"),
    *("model", "hidden", "channels", "mixed_precision", "dtype", "compile"),
    *("lr", "schedule", "warmup", "weight_decay", "label_smoothing", "dropout", "clip_norm", "ema"),
)


@dataclass
class TrainState:
    """How far a run has come: with weights and optimizer, all that a stopped run needs to go on.

    Attributes:
        epoch: epochs completed.
        step: updates made in the epoch in progress.
        global_step: updates made.
        losses: for each update of the epoch in progress whose losses were gathered, their sum over the global batch.
        epoch_seconds: time spent in the updates of the epoch in progress.
        train_seconds: the same of the completed epochs.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    losses: list[float] = field(default_factory=list)
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0


def place_of(run: Path, step: int) -> Path:
    """The folder of the checkpoint after so many updates."""
    return run / CHECKPOINTS / f"step-{step:010d}"


def write(run: Path, payload: dict[str, Any], step: int) -> Path:
    """Write a checkpoint and remove all but the newest `KEEP`.

    It is written under another name, flushed to the disk and then renamed, so that a crash at any instant leaves the
    one before it as it was.

    Args:
        run: the run's folder.
        payload: tensors, numbers, strings and containers of these, which `torch.load(weights_only=True)` reads back.
        step: updates made, which name the checkpoint.

    Raises:
        OSError: it could not be written; nothing else has changed.
    """
    folder, place = run / CHECKPOINTS, place_of(run, step)
    aside = place.with_name(f".{place.name}")
    if place.exists():
        try:
            read(place)
            return place  # the same step is the same state
        except UserError:
            shutil.rmtree(place)
    try:
        for unfinished in folder.glob(".step-*"):  # a crash left them
            shutil.rmtree(unfinished)
        aside.mkdir(parents=True)
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        content = buffer.getvalue()
        manifest = {"format": FORMAT, "step": step, "sha256": {STATE: hashlib.sha256(content).hexdigest()}}
        for name, data in ((STATE, content), (MANIFEST, json.dumps(manifest).encode())):
            with (aside / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        flush_folder(aside)
        aside.rename(place)
        flush_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        error.filename = str(place)  # the name that the user knows, or any: a full disk gives none
        raise
    before = sorted(other for other in folder.glob("step-*") if other < place)
    for other in folder.glob("step-*"):
        if other != place and other not in before[1 - KEEP :]:  # or after it: damaged, or the run would be there
            shutil.rmtree(other)
    return place


def flush_folder(folder: Path) -> None:
    """See a folder's entries on the disk, as `os.fsync` does for a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(place: Path) -> dict[str, Any]:
    """Read a checkpoint and verify it, as data: nothing in it can run.

    Raises:
        UserError: it is damaged, incomplete or of another format.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_text())
        content = (place / STATE).read_bytes()
        if manifest["format"] != FORMAT:
            raise UserError(f"the checkpoint {place} has format {manifest['format']}, this version reads {FORMAT}")
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][STATE]:
            raise UserError(f"the checkpoint {place} is damaged: {STATE} does not have the digest in {MANIFEST}")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever the parsers trip over, it is a damaged checkpoint
        raise UserError(f"the checkpoint {place} is damaged: {type(error).__name__}") from error


def newest(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint of a run that verifies, or None, and a warning for each damaged one passed over."""
    warnings: list[str] = []
    for place in sorted((run / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            return read(place), warnings
        except UserError as error:
            warnings.append(f"{error}; looking for an older one")
    return None, warnings


class Keeper:
    """Keeps a run's checkpoints: says when one is due, writes it, and puts a run back where one was taken.

    Every process holds one and calls it alike; the main process writes and reads.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        every: int,
        averaged: nn.Module | None = None,
    ) -> None:
        self.accelerator, self.run, self.every = accelerator, run, every
        self.model, self.optimizer, self.averaged = model, optimizer, averaged
        self.settings = {flag(name): settings[name] for name in MATHEMATICS}
        self.settings["the data's digest"] = settings["data_digest"]
        self.epochs = settings["epochs"]
        if settings["schedule"] != "constant" or settings["warmup"]:
            self.settings["--epochs"] = self.epochs  # then they decide the rate of every update
        self.last: Path | None = None  # the newest checkpoint
        self.request = StopRequest()
        self.stopping = False

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this update, the same on all processes.

        To be called once after every update.
        """
        self.stopping = self.request.agreed() or self.stopping
        return self.stopping or (self.every > 0 and step % self.every == 0)

    def keep(self, state: TrainState, history: list[dict[str, Any]]) -> None:
        """Write a checkpoint, and stop the run here where it was asked to stop and is not complete.

        Args:
            state: how far the run has come.
            history: the run's figures so far; see `Tracker`.

        Raises:
            UserError: it could not be written; those before it are as they were.
            Stopped: it is written, and the run was asked to stop.
        """
        with together():
            if self.accelerator.is_main_process:
                scaler = self.accelerator.scaler
                payload = {
                    "settings": self.settings,
                    "state": asdict(state),
                    "history": history,
                    "model": self.model.state_dict(),
                    "averaged": self.averaged.state_dict() if self.averaged else None,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None,
                }
                self.last = write(self.run, payload, state.global_step)
        if self.stopping and state.epoch < self.epochs:
            raise Stopped(
                f"stopped on request at update {state.global_step}, with a checkpoint in {self.run / CHECKPOINTS}: run "
                f"the same command with --output-dir {self.run} --resume to go on"
            )

    def resume(self) -> tuple[TrainState, list[dict[str, Any]]]:
        """Put model, optimizer and scaler back where the newest intact checkpoint was taken.

        Returns:
            How far the run had come, and its figures so far; from the start where there is no checkpoint.

        Raises:
            UserError: the settings differ in something that changes the mathematics.
        """
        payload: dict[str, Any] | None = None
        with together():
            if self.accelerator.is_main_process:
                payload, damaged = newest(self.run)
                for warning in damaged:
                    print(f"warning: {warning}", file=sys.stderr)
                if payload is None and (damaged or (self.run / WEIGHTS).exists()):
                    raise UserError(
                        f"{self.run} holds a run but no intact checkpoint: choose another --output-dir, or delete it"
                    )
        payload = from_main(payload)
        if payload is None:
            announce(self.accelerator, f"no checkpoint in {self.run / CHECKPOINTS}: starting from scratch")
            return TrainState(), []
        try:
            return self.restore(payload)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"the newest checkpoint in {self.run / CHECKPOINTS} does not hold a training state "
                f"({type(error).__name__}): delete it, or start another run"
            ) from error

    def restore(self, payload: dict[str, Any]) -> tuple[TrainState, list[dict[str, Any]]]:
        """Put model, optimizer and scaler into the state of a checkpoint; see `resume`."""
        for name, value in self.settings.items():
            if payload["settings"].get(name) != value:
                raise UserError(
                    f"{name} is {value}, but the run in {self.run} was trained with "
                    f"{payload['settings'].get(name)}: resume with that, or start another run"
                )
        state = TrainState(**payload["state"])
        if (state.epoch, state.step) > (self.epochs, 0):
            raise UserError(
                f"--epochs {self.epochs} is less than what {self.run} has done: it is in epoch {state.epoch + 1}"
            )
        self.model.load_state_dict(payload["model"])
        if self.averaged:
            self.averaged.load_state_dict(payload["averaged"])
        self.optimizer.load_state_dict(payload["optimizer"])
        if payload["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(payload["scaler"])
        self.last = place_of(self.run, state.global_step)
        announce(self.accelerator, f"going on from update {state.global_step} (epoch {state.epoch + 1})")
        return state, payload["history"]
