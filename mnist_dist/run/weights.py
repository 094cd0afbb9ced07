"""Trained models: saved, found, and loaded as data, with what their runs say of the data that they saw."""

import hashlib
import io
import json
import math
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mnist_dist.core.processes import UserError, all_or_none, same_everywhere
from mnist_dist.run.files import write_file
from mnist_dist.run.folder import CONFIG, WEIGHTS
from mnist_dist.task import datasets, networks
from mnist_dist.task.data import DataSet
from mnist_dist.task.settings import Settings
from mnist_dist.usage import MAX_PARAMETERS

METADATA = "mnist_dist"  # under which an exported safetensors file says what data it was trained on
POSSIBLE: dict[str, Callable[[Any], bool]] = {  # values of `Trained`'s fields
    "dataset": get_args(datasets.Name).__contains__,
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:  # the last: nested thousands deep
        raise UserError(
            f"the settings in {source} are not those of a run ({type(error).__name__}: {error}): restore the file, or "
            "move the model out of the folder"
        ) from error
    return Trained(weights, **known)


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a bare model's `state_dict`, on the CPU, as plain `torch.load(path, weights_only=True)` reads it.

    Every process calls it and the first one writes.

    Raises:
        UserError: on every process, if the file could not be written.
    """
    buffer = io.BytesIO()
    with all_or_none():
        if PartialState().is_main_process:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            torch.save(weights, buffer)
            write_file(path, buffer.getvalue())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a `state_dict`, as torch.save or safetensors wrote it, as data: nothing in the file can run.

    Raises:
        UserError: the file cannot be read, holds something else, more than `MAX_PARAMETERS` numbers, or some that are
            not finite.
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
    # Judged before any value is looked at: with strides of 0 a small file holds tensors of any size.
    if (numbers := sum(tensor.numel() for tensor in weights.values())) > MAX_PARAMETERS:
        raise UserError(
            f"the model file {path} holds {numbers:,} numbers, and here a model has at most {MAX_PARAMETERS:,}"
        )
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


def load_teachers(settings: Settings, samples: DataSet, device: torch.device) -> list[networks.MNISTNet]:
    """The models that a training is to learn from, in its arithmetic and in eval mode; every process calls it.

    Args:
        samples: the data of that training.

    Raises:
        UserError: on every process, if one is no model of ours, was trained on other data, or differs between them.
    """
    teachers = []
    with all_or_none():
        for path in settings.teacher:
            trained = locate(path)
            inputs = (trained.dataset, trained.mean, trained.std)
            if trained.dataset != "auto" and inputs != (samples.name, samples.mean, samples.std):
                raise UserError(
                    f"--teacher {path} was trained on {trained.dataset} (mean {trained.mean}, std {trained.std}), and "
                    f"here are {samples.name} ({samples.mean}, {samples.std}): give models of the same data"
                )
            try:
                network = networks.from_state_dict(load_weights(trained.weights))
            except UserError as error:
                raise UserError(f"--teacher {path} cannot teach: {error}") from error
            teachers.append(network.requires_grad_(False).to(device, getattr(torch, settings.dtype)))
            seen = samples.val and (trained.val_size, trained.seed) != (settings.val_size, settings.seed)
            if seen and PartialState().is_main_process:
                warning = f"warning: --teacher {path} may have seen samples that are held out here"
                print(f"{warning}: the accuracy on them will be too good", file=sys.stderr)
    same_everywhere("the teachers", teachers_digest(teachers))
    return teachers


def teachers_digest(teachers: Sequence[nn.Module]) -> str | None:
    """A digest of all their weights, in order; None if there are none."""
    digests = [fingerprint(teacher.state_dict()) for teacher in teachers]
    return hashlib.sha256(repr(digests).encode()).hexdigest() if digests else None
