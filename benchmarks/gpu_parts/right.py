"""Does it train, and is it right: train.py, verify, bits, a stop, shares of a batch."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, Training

from gpu_parts.asking import (
    Asked,
    Result,
    make_training,
    promised,
    show,
    train,
)
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch, provenance

BITS = {
    "mlp": TrainConfig(),
    "cnn": TrainConfig(model="cnn"),
    "cnn, V = 4": TrainConfig(model="cnn", virtual_processes=4),
}
UPDATES_OF_BITS = 100  # after which a checkpoint is written, and as many again
SHARES = (2, 3, 7, 8)
UPDATES_OF_SHARES = 40
NVIDIA_SMI = "nvidia-smi --format=csv,noheader --query-gpu="
QUERY = "driver_version,memory.total,clocks.max.sm,power.limit"


def machine(asked: Asked) -> Result:
    """The GPU, its driver, and versions."""
    facts = {"device": provenance.processor(launch.start(asked.cpu).device)}
    facts |= launch.versions()
    if shutil.which("nvidia-smi"):
        command = (NVIDIA_SMI + QUERY).split()
        answer = subprocess.run(command, capture_output=True, text=True)
        facts["driver, memory, clock, power"] = answer.stdout.strip()
    return {name: {"value": value} for name, value in facts.items()}


def trains(asked: Asked) -> Result:
    """`python train.py`: the defaults, five epochs of the MLP at batch 64."""
    trained = train(asked)
    row = {
        "test accuracy": trained.accuracy,
        "samples/s": trained.speed,
    }
    return promised(
        {"train.py": row},
        trained.accuracy > (0.8 if asked.cpu else 0.96),
    )


def verify(asked: Asked) -> Result:
    """`python -m mnist_dist verify`, on one process."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "answer.json")
        command = [
            sys.executable,
            "-m",
            "mnist_dist",
            "verify",
            *asked.flags_of_data,
        ]
        command += ["--json", str(place), "--output-dir", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not place.exists():
            raise RuntimeError(f"verify ended with {done.returncode}: {done.stderr[-2000:]}")
        answer = json.loads(place.read_text())
    found: Result = {}
    for check in answer["checks"]:
        found[check["name"]] = {
            "passed": check["passed"],
            "detail": check["detail"],
        }
    return promised(found, answer["passed"])


def train_for_bits(asked: Asked, config: TrainConfig, save: str = "", load: str = "") -> Training:
    """Make the updates before and after a checkpoint, or those after it alone.

    Args:
        asked: what the program was asked for.
        config: what is trained.
        save: the folder that the checkpoint is written to, in mid-epoch.
        load: the folder that the training goes on from.
    """
    half = 5 if asked.cpu else UPDATES_OF_BITS
    size = config.batch_size
    training = make_training(asked, config, samples=2 * half * size - 1)
    if load:
        training.accelerator.load_state(load)
    for images, labels in training.loader:
        training.learn(images, labels)
        just_made = training.accelerator.sync_gradients
        if save and just_made and training.accelerator.updates == half:
            training.accelerator.save_state(save)
    return training


def bits(asked: Asked) -> Result:
    """Whether a training has the same bits again, and if it goes on from a checkpoint."""
    found: Result = {}
    for name, config in BITS.items():
        with tempfile.TemporaryDirectory() as folder:
            place = f"{folder}/checkpoint"
            one = train_for_bits(asked, config, save=place).weights()
            again = train_for_bits(asked, config).weights()
            resumed = train_for_bits(asked, config, load=place).weights()
        found[name] = {
            "the same again": bool((one == again).all()),
            "the same from a checkpoint": bool((one == resumed).all()),
        }
        show(found)
    with_shares = [row for name, row in found.items() if "V =" in name]
    return promised(found, all(all(row.values()) for row in with_shares))


def stop(asked: Asked) -> Result:
    """Whether train.py with V = 2 leaves the same weights after a stop between its epochs."""
    flags = ["--batch-size", "500", "--virtual-processes", "2"]
    with tempfile.TemporaryDirectory() as folder:
        one = train(asked, *flags, "--epochs", "2")
        train(asked, *flags, "--epochs", "1", folder=f"{folder}/run")
        resumed = train(
            asked,
            *flags,
            "--epochs",
            "2",
            "--resume",
            folder=f"{folder}/run",
        )
    same = one.digest == resumed.digest
    return promised({"train.py": {"the same after a stop": same}}, same)


def shares(asked: Asked) -> Result:
    """How far float64 weights in 2, 3, 7 and 8 shares are from those in one; promised: 1e-9."""
    found: Result = {}
    for model in ("mlp", "cnn"):
        weights = {}
        for count in (0, *SHARES):
            config = TrainConfig(
                model=model,
                batch_size=20 if asked.cpu else 100,
                dtype="float64",
                virtual_processes=count,
            )
            samples = UPDATES_OF_SHARES * config.batch_size - 1
            training = make_training(asked, config, samples)
            training.make_updates(UPDATES_OF_SHARES)
            weights[count] = training.weights()
        row = {}
        for count in SHARES:
            difference = (weights[count] - weights[0]).abs().max()
            row[f"{count} shares"] = difference.item()
        found[model] = row
        show(found)
    return promised(found, all(max(row.values()) <= 1e-9 for row in found.values()))
