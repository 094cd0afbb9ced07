"""A run's folder: its names, and files that are written whole or not at all."""

import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import platform
import re
import secrets
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mnist_dist.config import Dataset
from mnist_dist.errors import UserError

CONFIG, METRICS, SUMMARY, WEIGHTS, EVALUATION = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "mnist_model.pth",
    "evaluation.json",
)
CHECKPOINTS, PLOTS = "checkpoints", "plots"
METADATA = "mnist_dist"  # under which an exported safetensors file says what data it was trained on
ROOT = Path("runs")


@dataclass(frozen=True)
class Run:
    """A run's place, and what it is known by.

    Attributes:
        folder: where its files are.
        resume: whether it goes on from its newest checkpoint.
        wandb_id: its name within Weights & Biases, the same before and after a stop.
        launcher: the launcher that started it and may start it again, None without one.
    """

    folder: Path
    resume: bool
    wandb_id: str
    launcher: str | None


def launcher() -> str | None:
    """What tells the launcher of this process, torchrun or accelerate launch, from every other; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = psutil.Process().parent()
    return f"{platform.node()}:{parent.pid}:{parent.create_time()}" if parent else None


def settings_of(folder: Path) -> dict[str, Any]:
    """What the config.json in a run's folder says; nothing where it cannot be read."""
    try:
        settings = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def create(folder: Path | None, dataset: str, model: str, resume: bool = False) -> Run:
    """Make the folder of a new run, or find that of one to go on with.

    A run whose own launcher has started it again (`--max-restarts`) goes on by itself.

    Args:
        folder: the one asked for; None for runs/<timestamp>-<dataset>-<model>.
        resume: take a folder that holds a run as it is.

    Raises:
        UserError: the folder holds a run already.
        OSError: it cannot be made or written to.
    """
    mine = launcher()
    if mine:
        for begun in [folder] if folder else sorted(ROOT.glob("*")):
            if settings_of(begun).get("launcher") == mine:
                folder, resume = begun, True
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
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output-dir {folder} is a file: give a folder")
        taken = [name for name in (CONFIG, METRICS, SUMMARY, WEIGHTS, CHECKPOINTS) if (folder / name).exists()]
        if taken and not resume:
            raise UserError(
                f"--output-dir {folder} already holds a run ({', '.join(taken)}): choose another folder, or go on with "
                "--resume"
            )
        folder.mkdir(parents=True, exist_ok=True)
    lock(folder)
    (folder / PLOTS).mkdir(exist_ok=True)
    wandb_id = str(settings_of(folder).get("wandb_id") or os.environ.get("WANDB_RUN_ID", ""))
    if not re.fullmatch(r"[\w-]{1,64}", wandb_id):
        wandb_id = secrets.token_hex(4)
    return Run(folder, resume, wandb_id, mine)


def lock(folder: Path) -> None:
    """Let no other process write this run as long as this one lives; where the file system has no locks, do nothing.

    Raises:
        UserError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it ends
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing the run in {folder}: wait for it, or choose another folder"
        ) from error
    except OSError:
        os.close(descriptor)


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


POSSIBLE: dict[str, Callable[[Any], bool]] = {  # values of `Trained`'s fields
    "dataset": get_args(Dataset).__contains__,
    "val_size": lambda size: size >= 0,
    "seed": lambda seed: 0 <= seed < 2**32,
    "mean": math.isfinite,
    "std": lambda std: 0 < std < math.inf,
}


@dataclass(frozen=True)
class Trained:
    """A trained model, and what its run's config.json, or a safetensors file itself, says of its data."""

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
    source = weights.parent / CONFIG
    try:
        if source.exists():
            settings = json.loads(source.read_text())
            settings |= settings["normalization"]
        elif weights.suffix == ".safetensors":
            source = weights
            with safe_open(weights, "pt") as file:
                settings = asdict(Trained(weights)) | json.loads((file.metadata() or {}).get(METADATA, "{}"))
        else:
            return Trained(weights)
        known = {field.name: settings[field.name] for field in fields(Trained) if field.name != "weights"}
        for name, value in known.items():
            if type(value) is not type(getattr(Trained, name)) or not POSSIBLE.get(name, bool)(value):
                raise ValueError(f"{name} is {value!r}")
    except SafetensorError:
        return Trained(weights)  # who loads it says what is wrong with it
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the settings in {source} are not those of a run ({type(error).__name__}: {error}): restore the file, or "
            "move the model out of the folder"
        ) from error
    return Trained(weights, **known)


def write(path: Path, content: bytes) -> None:
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
    """Write a JSON document as `write` does; numbers that are not finite are refused as a `ValueError`."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, values: Sequence[Any]) -> None:
    """Write a file of JSON lines as `write` does."""
    write(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode())


def append_json(path: Path, value: Any) -> None:
    """Add one line to a file of JSON lines, and see it on the disk; where that fails the file is as it was.

    Raises:
        OSError: the disk is full, or the file cannot be written to.
    """
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            line = (json.dumps(value, allow_nan=False) + "\n").encode()
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a bare model's `state_dict`, on the CPU, as plain `torch.load(path, weights_only=True)` reads it."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, buffer)
    write(path, buffer.getvalue())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a `state_dict`, as torch.save or safetensors wrote it, as data: nothing in the file can run.

    Raises:
        UserError: the file cannot be read, holds something else, or numbers that are not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign files: the sentences below say what matters
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip():  # torch does not compare the checksums that it writes
                        raise UserError(f"the model file {path} is damaged: its checksums are wrong")
            if path.suffix == ".safetensors":
                weights = load_file(path)
            else:
                weights = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"the model file {path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the model file {path} is damaged or holds Python objects, which are not loaded because they can run "
            "code: save the model's state_dict instead"
        ) from error
    except Exception as error:  # the file is foreign: whatever the parser trips over, it is a bad file
        raise UserError(f"the model file {path} is damaged: it is not what torch.save or safetensors write") from error
    if not (
        isinstance(weights, Mapping)
        and weights
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())
    ):
        raise UserError(f"the model file {path} does not hold a state_dict: save `model.state_dict()`")
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise UserError(
                f"the model file {path} holds {name} without its values, or sparse: save it dense, on a device"
            )
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise UserError(f"the model file {path} holds {name} as {tensor.dtype}: save it as float32")
        if not bool(tensor.isfinite().all()):
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
