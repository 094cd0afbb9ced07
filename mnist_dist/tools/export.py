"""A trained model in other formats, each read back and compared with the original before it is put in place."""

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mnist_dist.core.processes import UserError
from mnist_dist.run import weights
from mnist_dist.task import networks
from mnist_dist.usage import require

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # between logits, relative to the largest; other runtimes sum in another order
INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a trained model in another format, compared with the original before it is put in place."""

    model: tyro.conf.Positional[Path]
    """A run's folder or a .pth file."""
    format: Literal["safetensors", "onnx", "torch-export"]
    """safetensors: the weights alone. onnx, torch-export: weights and computation."""
    output: Path | None = None
    """The file to write; default: beside the model, under its name."""


def main(config: Config) -> None:
    """Write a model in another format."""
    suffix = SUFFIXES[config.format]
    require(config.output is None or config.output.suffix == suffix, "--output", config.output, f"a {suffix} file")
    trained = weights.locate(config.model)
    target = config.output or trained.weights.with_suffix(suffix)
    require(not target.exists() or target.is_file(), "--output", target, "a file")
    difference = export(trained, config.format, target)
    print(f"{target}: its logits, read back, differ from the original's by {difference:.2g} at most")


def export(trained: weights.Trained, kind: str, target: Path) -> float:
    """Write a model in another format. All of them take normalised images (N, 1, 28, 28), any N, and give logits.

    Args:
        trained: the model.
        kind: "safetensors" (the weights under their names), "onnx" or "torch-export" (weights and computation).
        target: the file to write.

    Returns:
        The largest difference between the logits of the file, read back, and those of the original, on 64 images.

    Raises:
        UserError: a package is missing, or the file read back does not give the original's logits.
        OSError: the file cannot be written.
    """
    model = networks.from_state_dict(weights.load_weights(trained.weights)).float()
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(64, *networks.IMAGE, generator=generator)
    images = (grey - trained.mean) / trained.std
    place = target.resolve()  # behind a symbolic link, which stays
    aside = place.with_name(f".{os.getpid()}-{place.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' remarks on themselves: what counts is compared below
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            read_back = WRITERS[kind](model, images, aside, trained)
            parts = images.split([1, 63])  # two sizes of batch
            with torch.no_grad():
                expected, found = (torch.cat([forward(part) for part in parts]) for forward in (model, read_back))
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * float(expected.abs().max()):
            raise UserError(
                f"the {kind} file gives other logits than {trained.weights} (by {difference:.2g}): not kept"
            )
        aside.replace(place)
    except OSError as error:
        error.filename = str(target)
        raise
    finally:
        aside.unlink(missing_ok=True)
    return difference


Forward = Callable[[Tensor], Tensor]


def to_safetensors(model: nn.Module, _: Tensor, path: Path, trained: weights.Trained) -> Forward:
    """Write the weights, with what the images were normalised by as metadata. Returns the forward pass read back."""
    normalization = {"dataset": trained.dataset, "mean": trained.mean, "std": trained.std}
    path.write_bytes(save(model.state_dict(), metadata={"format": "pt", weights.METADATA: json.dumps(normalization)}))
    return networks.from_state_dict(load_file(path))


def to_torch_export(model: nn.Module, images: Tensor, path: Path, _: weights.Trained) -> Forward:
    """Write weights and computation as `torch.export` does. Returns the forward pass read back."""
    batch, buffer = torch.export.Dim("batch"), io.BytesIO()  # by itself it ends the process if a disk is full
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=({0: batch},)), buffer)
    path.write_bytes(buffer.getvalue())
    with path.open("rb") as file:
        return torch.export.load(file).module()


def to_onnx(model: nn.Module, images: Tensor, path: Path, _: weights.Trained) -> Forward:
    """Write weights and computation as ONNX. Returns the forward pass by ONNX's reference implementation."""
    try:
        reference = importlib.import_module("onnx.reference")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise UserError(f"--format onnx needs the package {error.name}: pip install onnx onnxscript") from error
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    session = reference.ReferenceEvaluator(str(path))
    return lambda batch: torch.from_numpy(np.asarray(session.run(None, {INPUT: batch.numpy()})[0]))


WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, weights.Trained], Forward]] = {
    "safetensors": to_safetensors,
    "onnx": to_onnx,
    "torch-export": to_torch_export,
}
