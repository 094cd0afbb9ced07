"""A run's folder: its names, and files that are written whole or not at all."""

import hashlib
import io
import itertools
import json
import os
import pickle
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.errors import UserError

CONFIG, METRICS, SUMMARY, WEIGHTS, EVALUATION = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "mnist_model.pth",
    "evaluation.json",
)
PLOTS = "plots"
ROOT = Path("runs")


def create(folder: Path | None, dataset: str, model: str, resume: bool = False) -> Path:
    """Make the folder of a new run.

    Args:
        folder: the one asked for; None for runs/<timestamp>-<dataset>-<model>.
        resume: take a folder that holds a run as it is.

    Raises:
        UserError: the folder holds a run already.
        OSError: it cannot be made or written to.
    """
    if folder is None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{dataset}-{model}"
        folder = ROOT / name
        for attempt in itertools.count(2):  # two runs may start in the same second
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                folder = ROOT / f"{name}-{attempt}"
    else:
        taken = [name for name in (CONFIG, METRICS, SUMMARY, WEIGHTS) if (folder / name).exists()]
        if taken and not resume:
            raise UserError(
                f"--output-dir {folder} already holds a run ({', '.join(taken)}): choose another folder, or go on with "
                "--resume"
            )
        folder.mkdir(parents=True, exist_ok=True)
    (folder / PLOTS).mkdir(exist_ok=True)
    return folder


def newest() -> Path:
    """The finished run in runs/ that ended last.

    Raises:
        UserError: there is none.
    """
    finished = sorted(ROOT.glob(f"*/{SUMMARY}"), key=lambda file: file.stat().st_mtime)
    if not finished:
        raise UserError(
            f"there is no finished run in {ROOT}/: train one with `python train.py`, or name it with --weights"
        )
    return finished[-1].parent


@dataclass(frozen=True)
class Trained:
    """A trained model, and what its run's config.json says of its data; the defaults where there is none."""

    weights: Path
    dataset: str = "auto"
    data_dir: str = "data"
    val_size: int = 0
    seed: int = 0
    mean: float = 0.1307
    std: float = 0.3081


def locate(path: Path) -> Trained:
    """The model that a run's folder or a file's name stands for.

    Raises:
        UserError: nothing is there, or its settings cannot be read.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise UserError(f"there is no model at {weights}: name a finished run's folder or a .pth file")
    config = weights.parent / CONFIG
    if not config.exists():
        return Trained(weights)
    try:
        settings = json.loads(config.read_text())
        settings |= settings["normalization"]
        known = {field.name: settings[field.name] for field in fields(Trained) if field.name != "weights"}
        for name, value in known.items():
            if type(value) is not type(getattr(Trained, name)):
                raise ValueError(f"{name} is {value!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the settings in {config} are not those of a run ({type(error).__name__}: {error}): restore the file, or "
            "move the model out of the folder"
        ) from error
    return Trained(weights, **known)


def write(path: Path, content: bytes) -> None:
    """Put a file in place whole, or leave what was there: written aside, flushed to the disk, then renamed.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document as `write` does; numbers that are not finite are refused as a `ValueError`."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, values: Sequence[Any]) -> None:
    """Write a file of JSON lines as `write` does."""
    write(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode())


def append_json(path: Path, value: Any) -> None:
    """Add one line to a file of JSON lines, and see it on the disk."""
    with path.open("a") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a bare model's `state_dict`, on the CPU, as plain `torch.load(path, weights_only=True)` reads it."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, buffer)
    write(path, buffer.getvalue())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a `state_dict` as data: nothing in the file can run.

    Raises:
        UserError: the file cannot be read, holds something else, or numbers that are not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign files: the sentences below say what matters
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the model file {path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the model file {path} is damaged or holds Python objects, which are not loaded because they can run "
            "code: save the model's state_dict instead"
        ) from error
    except Exception as error:  # the file is foreign: whatever the parser trips over, it is a bad file
        raise UserError(f"the model file {path} is damaged: it is not a file that torch.save wrote") from error
    if not (
        isinstance(weights, Mapping)
        and weights
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())
    ):
        raise UserError(f"the model file {path} does not hold a state_dict: save `model.state_dict()`")
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(
                f"the model file {path} holds {name} with values that are not finite numbers: train it again"
            )
    return dict(weights)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A digest that two `state_dict`s share only if they are equal to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on, by name."""
    found = {"python": platform.python_version()}
    for package in ("mnist-dist", "torch", "torchvision", "accelerate", "wandb", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
