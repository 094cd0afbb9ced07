"""The command `export`: a trained model in another format.

What was written is read back and compared with the original before it is put in place.
"""

import importlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load, save
from torch import Tensor, nn

from mnist_dist.core.errors import UserError
from mnist_dist.digits.trained import METADATA, TrainedModel, locate
from mnist_dist.run import weights
from mnist_dist.run.files import write_file
from mnist_dist.run.printing import allow_any_name
from mnist_dist.task import networks
from mnist_dist.usage import require

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # between logits, relative to the largest; other runtimes sum in another order
INPUT = "images"
OUTPUT = "logits"
COMPARED = 64  # images by which what was written is compared with the original
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a trained model in another format.

    It is compared with the original before it is put in place.
    """

    model: tyro.conf.Positional[Path]
    """A run's folder or a .pth file."""
    format: Literal["safetensors", "onnx", "torch-export"]
    """safetensors: the weights alone. onnx, torch-export: weights and computation."""
    output: Path | None = None
    """The file to write; default: beside the model, under its name."""


def main(config: Config) -> None:
    """Write a model in another format.

    Args:
        config: the flags.

    Raises:
        UserError: there is no such model, or it cannot be written in that format.
    """
    allow_any_name()
    suffix = SUFFIXES[config.format]
    if config.output:
        is_named_so = config.output.suffix == suffix
        require(is_named_so, "--output", config.output, f"a {suffix} file")
    trained = locate(config.model)
    target = config.output or trained.weights.with_suffix(suffix)
    require(not target.exists() or target.is_file(), "--output", target, "a file")
    if target.exists() and target.samefile(trained.weights):
        raise UserError(f"{target} is the model itself: name another file with --output")
    difference = export(trained, config.format, target)
    how = f"differ from the original's by {difference:.2g} at most"
    print(f"{target}: its logits, read back, {how}")


def export(trained: TrainedModel, kind: str, target: Path) -> float:
    """Write a model in another format.

    In all of them it takes normalised images (N, 1, 28, 28), any N, and gives logits. A safetensors
    file has the weights' own precision, the others have float32.

    Args:
        trained: the model.
        kind: "safetensors" (the weights under their names), "onnx" or "torch-export" (weights and
            computation).
        target: the file to write.

    Returns:
        The largest difference between the logits of the file, read back, and those of the original,
        on 64 images.

    Raises:
        UserError: a package is missing, or the file read back does not give the original's logits.
        OSError: the file cannot be written.
    """
    model: nn.Module = networks.from_state_dict(weights.load_weights(trained.weights))
    if kind != "safetensors":
        model = model.float()
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(COMPARED, *networks.IMAGE, generator=generator)
    images = (grey - trained.mean) / trained.std
    images = images.to(next(model.parameters()).dtype)
    # Not beside the target, whose name may not be UTF-8: some of the libraries could not open it.
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "model"
        with warnings.catch_warnings():
            # The exporters' remarks on themselves: what counts is compared below.
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            read_back = WRITERS[kind](model, images, trial, trained)
            expected = logits_of(model, images)
            found = logits_of(read_back, images)
        difference = float((found - expected).abs().max())
        largest = float(expected.abs().max())
        if not difference <= TOLERANCE * largest:
            fault = f"gives other logits than {trained.weights} (by {difference:.2g})"
            raise UserError(f"the {kind} file {fault}: not kept")
        write_file(target, trial.read_bytes())
    return difference


def logits_of(forward: Forward, images: Tensor) -> Tensor:
    """Return the logits of images, calculated in two batches of different sizes."""
    batches = images.split([1, len(images) - 1])
    with torch.no_grad():
        logits = [forward(batch) for batch in batches]
    return torch.cat(logits)


def to_safetensors(model: nn.Module, _: Tensor, path: Path, trained: TrainedModel) -> Forward:
    """Write the weights, with what is known of their training data as metadata.

    Args:
        model: the network.
        path: the file.
        trained: its data.

    Returns:
        The forward pass, read back.
    """
    names = ("dataset", "val_size", "seed", "mean", "std")  # the folder is this machine's
    data = {name: getattr(trained, name) for name in names}
    metadata = {"format": "pt", METADATA: json.dumps(data)}
    path.write_bytes(save(model.state_dict(), metadata))
    return networks.from_state_dict(load(path.read_bytes()))


def to_torch_export(model: nn.Module, images: Tensor, path: Path, _: TrainedModel) -> Forward:
    """Write weights and computation as `torch.export` does.

    Args:
        model: the network.
        images: examples.
        path: the file.

    Returns:
        The forward pass, read back.
    """
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()  # where a disk is full, its own writing would end the process
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    with path.open("rb") as file:
        return torch.export.load(file).module()


def to_onnx(model: nn.Module, images: Tensor, path: Path, _: TrainedModel) -> Forward:
    """Write weights and computation as ONNX.

    Args:
        model: the network.
        images: examples.
        path: the file.

    Returns:
        The forward pass, read back, by ONNX's reference implementation.

    Raises:
        UserError: a package is missing.
    """
    try:
        reference = importlib.import_module("onnx.reference")
        importlib.import_module("onnxscript")
    except ImportError as error:
        advice = "pip install onnx onnxscript"
        raise UserError(f"--format onnx needs the package {error.name}: {advice}") from error
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: batch},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    session = reference.ReferenceEvaluator(str(path))

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(np.asarray(logits))

    return forward


Writer = Callable[[nn.Module, Tensor, Path, TrainedModel], Forward]
WRITERS: dict[str, Writer] = {
    "safetensors": to_safetensors,
    "onnx": to_onnx,
    "torch-export": to_torch_export,
}
