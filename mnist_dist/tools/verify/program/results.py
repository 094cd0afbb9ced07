"""What a training program leaves: its weights and figures, read, and compared between two runs."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mnist_dist.core import UserError

# Differences of float64 results: rounding gives 1e-14 in hundreds of updates.
TOLERANCE = 1e-9
# Words in the names of figures that may differ.
TIMES = (
    "second",
    "time",
    "date",
    "duration",
    "throughput",
    "process",
    "world",
    "memory",
)
Figures = dict[str, Any]  # numbers by name
Weights = dict[str, Tensor]  # by file and name


class Line(NamedTuple):
    """One thing that was checked.

    Attributes:
        name: what was checked.
        passed: whether it is right.
        detail: what was found.
        advice: what to do if it is not right.
    """

    name: str
    passed: bool
    detail: str
    advice: str


def read_weights(folder: Path) -> Weights:
    """Read all tensors of the .pth and .safetensors files in a folder.

    They are read as data: nothing in them can run.

    Args:
        folder: the folder, also with folders in it.

    Returns:
        The tensors by file and name.

    Raises:
        UserError: a file cannot be read so.
    """
    tensors: Weights = {}
    for path in sorted([*folder.rglob("*.pth"), *folder.rglob("*.safetensors")]):
        try:
            content = load(path)
        except Exception as error:  # the file is foreign: the parser may trip over anything
            reason = type(error).__name__
            advice = "save a state_dict"
            raise UserError(f"{path.name} cannot be read as data ({reason}): {advice}") from error
        collect(os.fspath(path.relative_to(folder)), content, tensors)
    return tensors


def load(path: Path) -> Any:
    """Load a file of weights as data."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def collect(name: str, value: Any, tensors: Weights) -> None:
    """Collect the tensors in a value.

    Args:
        name: the name of the value.
        value: a tensor, a mapping, which may hold further ones, or something else.
        tensors: where to put them, by name.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            collect(f"{name} {key}", item, tensors)


def compare_weights(one: Weights, several: Weights, processes: int) -> Line:
    """Compare the trained weights of two runs.

    Args:
        one: those of the run on one process, by file and name.
        several: those of the run on several.
        processes: how many these are.
    """
    problem = why_incomparable(one, several, processes)
    if problem:
        detail, advice = problem
        return Line("weights", False, detail, advice)
    differences = {}
    for name, tensor in one.items():
        if tensor.numel():
            gap = (tensor.double() - several[name].double()).abs()
            differences[name] = float(gap.nan_to_num(nan=math.inf).max())
    worst = max(differences, key=differences.__getitem__)
    largest = float(one[worst].double().abs().max())
    difference = differences[worst]
    what = f"on {processes} processes they differ from those on 1"
    detail = f"{what} by {difference:.1e} at most (of {largest:.2g}, {worst})"
    advice = (
        "it is a different training on several processes: divide each global batch of the same samples, "
        "weight losses by samples, and draw random numbers for the whole batch "
        "(mnist_dist.core.ExactAccelerator does)"
    )
    return Line("weights", difference <= TOLERANCE, detail, advice)


def why_incomparable(
    one: Weights,
    several: Weights,
    processes: int,
) -> tuple[str, str] | None:
    """Find why the weights of two runs cannot be compared.

    Args:
        one: those of the run on one process, by file and name.
        several: those of the run on several.
        processes: how many these are.

    Returns:
        What was found and what to do about it; None if they can be compared.
    """
    floats = [tensor for tensor in one.values() if tensor.is_floating_point()]
    if not floats:
        advice = "save the model's state_dict there"
        return "no .pth or .safetensors file in its output folder", advice
    unlike = [name for name in {**one, **several} if shape(one, name) != shape(several, name)]
    if unlike:
        names = ", ".join(sorted(unlike)[:3])
        advice = "save the unwrapped model: without the prefix `module.` and under the same name"
        return f"1 and {processes} processes leave different names or shapes: {names}", advice
    narrow = {str(tensor.dtype) for tensor in floats if tensor.dtype != torch.float64}
    if narrow:
        dtypes = ", ".join(sorted(narrow))
        rounding = "in float32 rounding alone changes weights by 0.05 in an epoch"
        advice = f"obey --dtype float64: {rounding}"
        return f"they are {dtypes}, in which mistakes cannot be told from rounding", advice
    return None


def shape(tensors: Weights, name: str) -> tuple[int, ...] | None:
    """Return the shape of a tensor, None if there is none of that name."""
    return tuple(tensors[name].shape) if name in tensors else None


def read_figures(folder: Path) -> list[Figures]:
    """Read the figures in all .jsonl files of a folder.

    Args:
        folder: the folder, also with folders in it.

    Returns:
        The figures of each line, without those that time changes.

    Raises:
        UserError: a line is not JSON.
    """
    lines = []
    for path in sorted(folder.rglob("*.jsonl")):
        for text in path.read_text().splitlines():
            try:
                value = json.loads(text)
            except ValueError as error:
                problem = f"{path.name} does not hold JSON lines"
                raise UserError(f"{problem}: {text[:80]!r}") from error
            figures = flat(value)
            lines.append({name: figures[name] for name in figures if not is_time(name)})
    return lines


def flat(value: Any, name: str = "") -> Figures:
    """Return the numbers in a JSON value by the names on the way to them."""
    if isinstance(value, int | float):
        return {name: value}
    figures: Figures = {}
    if isinstance(value, Mapping):
        for key, item in value.items():
            figures |= flat(item, f"{name} {key}".strip())
    return figures


def is_time(name: str) -> bool:
    """Return whether a figure may differ between runs, as its name says."""
    return any(word in name.lower() for word in TIMES)


def compare_figures(one: list[Figures], several: list[Figures], processes: int) -> list[Line]:
    """Compare the figures of two runs, those of all epochs or updates.

    Args:
        one: those of the run on one process, line by line.
        several: those of the run on several.
        processes: how many these are.

    Returns:
        A line about counts, which must be the same, and one about measures, which may differ by
        rounding.
    """
    counts: list[str] = []
    measures: list[str] = []
    if len(one) != len(several):
        counts.append(f"{len(one)} lines on 1 process, {len(several)} on {processes}")
    for number, (mine, other) in enumerate(zip(one, several, strict=False), 1):
        for name in {**mine, **other}:
            value = mine.get(name, math.nan)
            its_value = other.get(name, math.nan)
            is_count = isinstance(value, int) and isinstance(its_value, int)
            tolerance = 0 if is_count else TOLERANCE * max(1, abs(value))
            if abs(value - its_value) <= tolerance:
                continue
            values = f"{value:.6g} on 1 process and {its_value:.6g} on {processes}"
            faults = counts if is_count else measures
            faults.append(f"{name} of line {number} is {values}")
    what = "every update must be made, and every sample counted, once"
    advice = f"{what} whatever the number of processes"
    same_counts = f"epochs, updates and samples of {len(one)} lines are the same"
    same_measures = f"{len(one)} lines are the same"
    count_faults = "; ".join(counts[:2])
    measure_faults = "; ".join(measures[:2])
    return [
        Line("counts", not counts, count_faults or same_counts, advice),
        Line("metrics", not measures, measure_faults or same_measures, advice),
    ]
