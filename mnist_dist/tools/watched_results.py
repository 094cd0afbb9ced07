"""What is wrong with what a watched training did and left, in words."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_dist.core.checkpointing import newest_checkpoint
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.folder import METRICS
from mnist_dist.tools import reference
from mnist_dist.tools.reference import Reference

Figures = dict[str, float]  # a line of metrics.jsonl

DONE = "done"
KILLED = "enough"
STOPPED = "stopped"


@dataclass
class Observation:
    """What a process saw of one training, for the others.

    Attributes:
        differences: for each kind of thing the largest difference from the reference, and the
            update, from 1, of the first that exceeds the tolerance, or of the largest.
        samples: for each update the numbers of this process's samples.
        batches: for each update its epoch and its number in it, from 0.
        updates: those made when it was over.
        end: how it ended: DONE, KILLED, STOPPED, or what went wrong.
        line: what it was about at its end, as a line of the table.
        rounding: of the gradient, the largest relative difference (of norms).
    """

    differences: dict[str, tuple[float, int]] = field(default_factory=dict)
    samples: list[list[int]] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)
    updates: int = 0
    end: str = DONE
    line: str = "initial weights"
    rounding: float = 0.0

    @property
    def error(self) -> str:
        """What went wrong, if anything did."""
        return "" if self.end in (DONE, KILLED, STOPPED) else self.end

    def difference_of(self, kind: str) -> tuple[float, int]:
        """Return how far things of a kind are from the reference, and at which update."""
        size, update = self.differences.get(kind, (0.0, 0))
        return size, update

    def note(self, kind: str, size: float, update: int, tolerance: float) -> None:
        """Note a difference.

        Args:
            kind: of what.
            size: how large it is.
            update: its number, from 1.
            tolerance: the largest difference that is rounding.
        """
        largest, first = self.difference_of(kind)
        if largest > tolerance:  # what comes after the first may follow from it
            update = first
        if not first or size > largest:
            self.differences[kind] = size, update


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference between numbers of the same name.

    Args:
        one, other: tensors by name.

    Returns:
        It is infinite if names or shapes differ, or where only one of them is a number.
    """
    if one.keys() != other.keys():
        return math.inf
    largest = 0.0
    for name, tensor in one.items():
        counterpart = other[name]
        if tensor.shape != counterpart.shape:
            return math.inf
        if tensor.numel():
            gap = largest_gap(tensor, counterpart)
            largest = max(largest, gap)
    return largest


def largest_gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between numbers of two tensors of one shape."""
    mine = one.detach().double()
    its = other.detach().to(mine.device).double()
    gap = (mine - its).abs()
    are_equal = (mine == its) | (mine.isnan() & its.isnan())
    gap[are_equal] = 0
    gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
    return float(gap.max())


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the norm of all numbers of some tensors."""
    total = 0.0
    for tensor in tensors.values():
        total += float(tensor.square().sum())
    return math.sqrt(total)


def wrong_samples(
    observations: Sequence[Observation],
    settings: TrainConfig,
    samples: int,
    first: int = 0,
) -> list[str]:
    """Find how the batches of all processes together differ from those of one.

    Args:
        observations: of all processes.
        settings: of the training.
        samples: those in the training set.
        first: updates that were made before.

    Returns:
        The differences, in words.
    """
    per_epoch = math.ceil(samples / settings.batch_size)
    updates = range(first, settings.epochs * per_epoch)
    expected = [divmod(update, per_epoch) for update in updates]
    faults = []
    for rank, observation in enumerate(observations):
        given = [tuple(batch) for batch in observation.batches]
        is_short = observation.end == DONE and len(given) < len(expected)
        if is_short or given != expected[: len(given)]:
            right = equal_at_the_beginning(given, expected)
            faults.append(
                f"process {rank} has {len(given)} batches of {len(expected)}, "
                f"other ones from its {right + 1}. on"
            )
    return faults or wrong_global_batches(observations, settings, samples, expected, first)


def equal_at_the_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count how many items two sequences have in common before they differ."""
    for number, (its, others) in enumerate(zip(one, other, strict=False)):
        if its != others:
            return number
    return len(one)


def wrong_global_batches(
    observations: Sequence[Observation],
    settings: TrainConfig,
    samples: int,
    batches: Sequence[tuple[int, int]],
    first: int,
) -> list[str]:
    """Find the first batch that does not have its samples.

    Args:
        observations, settings, samples, first: as for `wrong_samples`.
        batches: the epoch of each batch and its number in it, from 0.
    """
    visits: Counter[int] = Counter()
    made = min(len(observation.samples) for observation in observations)
    for update, (epoch, number) in enumerate(batches[:made]):
        if number == 0:
            visits.clear()
        together = []
        for observation in observations:
            together += observation.samples[update]
        visits.update(together)
        begin = number * settings.batch_size
        end = begin + settings.batch_size
        order = reference.order(samples, settings.seed, epoch)
        right = order[begin:end].tolist()
        if sorted(together) != sorted(right):
            found = (
                f"update {first + update + 1} has {len(together)} samples, "
                f"not those {len(right)} of one process"
            )
            twice = sum(count > 1 for count in visits.values())
            if twice:
                found += f", and {twice} more than once in the epoch"
            return [found]
    return []


def wrong_figures(expected: Sequence[Figures], folder: Path, tolerance: float) -> list[str]:
    """Find what metrics.jsonl says otherwise of the last epochs.

    Args:
        expected: what its last lines should say.
        folder: the run's.
        tolerance: the largest difference that is rounding.

    Returns:
        The differences, in words.
    """
    try:
        text = (folder / METRICS).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        return [f"metrics.jsonl cannot be read ({type(error).__name__})"]
    if len(lines) < len(expected):
        return [f"metrics.jsonl has {len(lines)} of {len(expected)} epochs"]
    faults = []
    last_lines = lines[len(lines) - len(expected) :]
    for right, line in zip(expected, last_lines, strict=True):
        for name, value in right.items():
            found = line.get(name, math.nan)
            allowed = 0 if isinstance(value, int) else tolerance
            if not abs(found - value) <= allowed:
                epoch = f"{name} of epoch {right['epoch']:.0f}"
                faults.append(f"{epoch} is {found:.6g} and should be {value:.6g}")
    return faults


def wrong_checkpoint(expected: Reference, folder: Path, tolerance: float) -> tuple[list[str], int]:
    """Find what the newest checkpoint of a run does not hold.

    Args:
        expected: the training when it was taken.
        folder: the run's.
        tolerance: the largest difference that is rounding.

    Returns:
        What is missing, in words, and the update that the checkpoint says it is of.
    """
    payload, warnings = newest_checkpoint(folder)
    if payload is None:
        return warnings or ["there is none"], 0
    tensors = [tensor.detach().double() for tensor in tensors_in(payload["state"])]
    means, squares = expected.moments
    kinds = {
        "weights": expected.weights,
        "moving average": expected.averaged,
        "Adam's first moments": means,
        "Adam's second moments": squares,
    }
    faults = list(warnings)
    for kind, values in kinds.items():
        missing = [
            name for name, tensor in values.items() if not is_among(tensor, tensors, tolerance)
        ]
        if missing:
            faults.append(f"it lacks or changes {kind} of {missing[0]}")
    return faults, int(payload["state"]["updates"])


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a structure of lists and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return []
    found = []
    for item in value:
        found += tensors_in(item)
    return found


def is_among(tensor: Tensor, others: Sequence[Tensor], tolerance: float) -> bool:
    """Return whether one of several tensors has the same numbers."""
    here = tensor.cpu()
    alike = [other for other in others if other.shape == here.shape]
    return any(difference({"": here}, {"": other}) <= tolerance for other in alike)
