"""Finds trained models, and what their runs recorded about their training data."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError

from mnist_dist.core.errors import UserError
from mnist_dist.core.output import warn
from mnist_dist.run.folder import CHECKPOINTS, CONFIG, SUMMARY, WEIGHTS
from mnist_dist.run.leaving import is_first
from mnist_dist.shell import shell
from mnist_dist.task import datasets

LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; the format allows no more
METADATA = "mnist_dist"  # where an exported safetensors file says what data it was trained on

# What the values of `TrainedModel`'s fields can be. Those that are not listed can be anything of their
# type but empty or 0.
POSSIBLE: dict[str, Callable[[Any], bool]] = {
    "dataset": lambda name: name in get_args(datasets.Name),
    "val_size": lambda size: size >= 0,
    "seed": lambda seed: 0 <= seed < 2**32,
    "mean": math.isfinite,
    "std": lambda std: 0 < std < math.inf,
}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, and what its run's config.json, or its file itself, says of its data.

    Attributes:
        weights: the file with its weights.
        dataset: the name of the data set, or "auto" if that is not known.
        data_dir: the folder that the data set was in.
        val_size: the number of training samples held out.
        seed: decided which samples were held out.
        mean, std: what the images were normalised with, in units of the full pixel range.
    """

    weights: Path
    dataset: str = "auto"
    data_dir: str = "data"
    val_size: int = 0
    seed: int = 0
    mean: float = 0.1307
    std: float = 0.3081


def locate(path: Path) -> TrainedModel:
    """Find the model that a name stands for.

    Args:
        path: a run's folder, or a file of weights.

    Returns:
        The model. Without a config.json beside the file, its data are not known.

    Raises:
        UserError: nothing is there, or its settings cannot be read.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        problem = f"there is no model at {weights}"
        raise UserError(f"{problem}: name a finished run's folder or a .pth file")
    source = weights.parent / CONFIG
    try:
        if source.exists():
            settings = settings_of_run(source)
            warn_of_unfinished(weights)
        elif weights.suffix == ".safetensors":
            source = weights
            settings = settings_of_export(weights)
        else:
            return TrainedModel(weights)
        return TrainedModel(weights, **checked(settings))
    except SafetensorError:
        return TrainedModel(weights)  # whoever loads it says what is wrong with it
    # The last of these is for values that are nested thousands deep.
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"the settings in {source} are not those of a run ({type(error).__name__}: {error}): "
            "restore the file, or move the model out of the folder"
        ) from error


def warn_of_unfinished(weights: Path) -> None:
    """Warn if a run has trained weights but is not finished, as one that was given more epochs.

    Args:
        weights: a file beside the config.json of a run.
    """
    folder = weights.parent
    is_of_run = weights.name == WEIGHTS and (folder / CHECKPOINTS).exists()  # and not a copy
    if not is_of_run or (folder / SUMMARY).exists() or not is_first():
        return
    warn(
        f"{weights} may be older than the newest checkpoint of its run, which is not finished "
        f"(it has no {SUMMARY}): to finish it, run its command again with --output-dir "
        f"{shell(folder)} --resume"
    )


def settings_of_run(config: Path) -> dict[str, Any]:
    """Read the settings in a run's config.json, with what images are normalised by among them.

    Args:
        config: the file.

    Returns:
        The settings by name.

    Raises:
        OSError, ValueError, KeyError, TypeError, RecursionError: it is not the file of a run.
    """
    settings = json.loads(config.read_text())
    settings |= settings["normalization"]
    return settings


def settings_of_export(weights: Path) -> dict[str, Any]:
    """Read what a safetensors file says of the data that its model was trained on.

    Args:
        weights: the file.

    Returns:
        The settings by name. Those that it does not say have the defaults of `TrainedModel`.

    Raises:
        SafetensorError: it is not a safetensors file.
        OSError, ValueError, TypeError, RecursionError: it cannot be read, or says something else.
    """
    said = json.loads(metadata_of(weights).get(METADATA, "{}"))
    return asdict(TrainedModel(weights)) | said


def metadata_of(weights: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, also at a path that is not UTF-8, unlike `safe_open`.

    Args:
        weights: the file. It begins with the length of a JSON document, which may hold metadata.

    Returns:
        The metadata, empty if there are none.

    Raises:
        SafetensorError: it is not a safetensors file.
        OSError: it cannot be read.
    """
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise SafetensorError("the header is too long")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise SafetensorError("the header is no JSON") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out of settings what `TrainedModel` needs.

    Args:
        settings: the settings by name, as a file gave them.

    Returns:
        The values by field, all but the weights.

    Raises:
        KeyError: a setting is missing.
        ValueError: a setting cannot have this value.
    """
    names = [field.name for field in fields(TrainedModel) if field.name != "weights"]
    known = {name: settings[name] for name in names}
    for name, value in known.items():
        has_the_type = type(value) is type(getattr(TrainedModel, name))
        is_possible = POSSIBLE.get(name, bool)
        if not has_the_type or not is_possible(value):
            raise ValueError(f"{name} is {value!r}")
    return known
