"""A training that is resumed from a checkpoint on one process of its own, watched."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import mnist_dist
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.run.command_line import as_flags, parse
from mnist_dist.task import data
from mnist_dist.task.data import DataSplits
from mnist_dist.tools.verify.program.start import unlaunched
from mnist_dist.tools.verify.reference import Reference
from mnist_dist.tools.verify.watched.results import Observation
from mnist_dist.tools.verify.watched.samples import cut
from mnist_dist.tools.verify.watched.training import Watch

REFERENCE = "reference.pth"  # beside the run's folder


def go_on_alone(settings: TrainConfig, samples: DataSplits, one: Reference) -> Observation:
    """Go on with a training in a process of its own.

    Args:
        settings: of the training, with the folder of a run that was stopped.
        samples: what it trains on.
        one: the reference as far as the run is.

    Returns:
        What the process saw; `end` says what went wrong if it could not be resumed.
    """
    folder = settings.output_dir or Path()
    state = {
        "weights": one.weights,
        "moments": one.moments,
        "averaged": one.averaged,
        "updates": one.updates,
        "loss": one.loss,
        "losses": one.losses,
    }
    file = folder.with_name(REFERENCE)
    torch.save(state, file)
    asked = {
        "flags": as_flags(settings),
        "samples": len(samples.train),
        "others": len(samples.test),
        "reference": str(file),
    }
    code = "from mnist_dist.tools.verify.watched.alone import alone; alone()"
    found_in = os.fspath(Path(mnist_dist.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        env=unlaunched() | {"PYTHONPATH": found_in},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"status {done.returncode}"
        return Observation(end=f"could not be resumed from there: {reason}")
    *_, last = done.stdout.strip().splitlines()
    return Observation(**json.loads(last))


def alone() -> None:
    """Go on with a training, `python -c "...alone()" JSON`, and print what was seen of it as JSON.

    The argument has `flags`, those of train.py, `samples`, how many to train on, `others`, how many
    to test with, and `reference`, the file that holds the training as it should be.
    """
    asked = json.loads(sys.argv[1])

    def train() -> None:
        config = parse(TrainConfig, asked["flags"], "train.py")
        accelerator = launch.start(config.cpu, "no", torch.float64)
        whole = data.obtain(
            accelerator,
            config.dataset,
            config.data_dir,
            config.val_size,
            config.seed,
            torch.float64,
        )
        samples = cut(whole, asked["samples"], asked["others"])
        one = Reference(config, samples.train.images.double(), samples.train.labels)
        state = torch.load(asked["reference"], weights_only=True)
        for name, value in state.items():
            setattr(one, name, value)
        seen = Watch(config, samples, reference=one).train()
        print(json.dumps(asdict(seen)))

    launch.run(train, "train.py")
