"""What all parts need: how they start programs, and how they hand on what they find."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from common import ROOT, Training, random_digits

from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch

Result = dict[str, dict[str, Any]]  # rows of a table: the name, and figures by column


@dataclass(frozen=True)
class Asked:
    """What the program was asked for.

    Attributes:
        cpu: rehearse on the CPU, with small sizes.
        data_dir: the folder with MNIST/raw/ in it.
    """

    cpu: bool
    data_dir: Path

    @property
    def flags_of_data(self) -> list[str]:
        """The flags, of all programs here, that say which data and which device."""
        if self.cpu:
            return ["--dataset", "mnist-5k", "--cpu"]
        return ["--dataset", "mnist", "--data-dir", str(self.data_dir)]

    @property
    def training_samples(self) -> int:
        """How many samples an epoch of train.py has."""
        return 4_000 if self.cpu else 60_000


class NeedsGPU(Exception):
    """The part has nothing to do on a CPU."""


def show(found: Result) -> None:
    """Hand on what has been found so far: it is kept if the time runs out."""
    print(json.dumps(found), flush=True)


def promised(found: Result, kept: bool) -> Result:
    """Hand on what was found, and fail if a promise is broken.

    Raises:
        RuntimeError: it is; what was found stays.
    """
    show(found)
    if not kept:
        raise RuntimeError("a promise is broken: see the table")
    return found


def run(command: list[str]) -> str:
    """Run a program, and return its output.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    search_path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done.stdout


@dataclass(frozen=True)
class Trained:
    """What train.py has left.

    Attributes:
        lines: of metrics.jsonl, one for each epoch.
        digest: of the weights.
    """

    lines: list[dict[str, Any]]
    digest: str

    @property
    def accuracy(self) -> float:
        """The share of the test samples that the trained network classifies correctly."""
        return self.lines[-1]["test_accuracy"]

    @property
    def speed(self) -> float:
        """Samples a second of the fastest epoch."""
        return max(line["samples_per_second"] for line in self.lines)


def train(asked: Asked, *flags: str, folder: str = "") -> Trained:
    """Run train.py.

    Args:
        asked: what the program was asked for.
        flags: further flags.
        folder: of the run; without it the run is not kept.
    """
    with tempfile.TemporaryDirectory() as aside:
        place = Path(folder or f"{aside}/run")
        command = [sys.executable, "train.py", *asked.flags_of_data]
        if asked.cpu and "--recipe" not in flags:
            command += ["--batch-size", "500"]
        command += ["--wandb", "disabled", "--output-dir", str(place), *flags]
        run(command)
        lines = []
        for line in (place / "metrics.jsonl").read_text().splitlines():
            lines.append(json.loads(line))
        weights = (place / "mnist_model.pth").read_bytes()
        return Trained(lines, hashlib.sha256(weights).hexdigest())


def make_training(asked: Asked, config: TrainConfig, samples: int) -> Training:
    """Make a training as train.py does, of random images, with an accelerator of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)  # another precision is refused else
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(
        asked.cpu,
        config.mixed_precision,
        dtype,
        tf32=config.tf32,
        virtual_processes=config.virtual_processes,
        micro_batches=config.gradient_accumulation_steps,
    )
    return Training(accelerator, config, random_digits(samples, accelerator.device, dtype))


def synchronize(asked: Asked) -> None:
    """Wait until the GPU has done all that it was asked for."""
    if not asked.cpu:
        torch.cuda.synchronize()


def microseconds(
    make_updates: Callable[[int], object],
    asked: Asked,
    *,
    warm_up: int,
    rounds: int,
    updates: int,
) -> float:
    """The microseconds of an update, the device's work included: the lowest mean of some rounds.

    Args:
        make_updates: makes so many updates.
        asked: says whether to wait for a GPU.
        warm_up: updates before the first round.
        rounds: how many.
        updates: in each round.
    """
    make_updates(warm_up)
    means = []
    for _ in range(rounds):
        synchronize(asked)
        begin = time.perf_counter()
        make_updates(updates)
        synchronize(asked)
        means.append(1e6 * (time.perf_counter() - begin) / updates)
    return min(means)
