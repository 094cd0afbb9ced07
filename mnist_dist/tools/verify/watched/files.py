"""What is wrong with what a training wrote: its figures, its trained weights and its checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_dist.core import UserError
from mnist_dist.core.checkpointing import newest_checkpoint
from mnist_dist.run import weights
from mnist_dist.run.folder import METRICS, SUMMARY, WEIGHTS
from mnist_dist.tools.verify.reference import Reference
from mnist_dist.tools.verify.watched.differences import TOLERANCE, apart, difference, told_apart

Figures = dict[str, float]  # a line of metrics.jsonl
Wrong = tuple[int, str, str]  # an update, what is wrong then, and what to do, in words

COUNT = (
    "count by sample, without padding, and divide sums by counts: "
    "evaluate, and the figures of train.py"
)
ADVICE = {  # what to do about a wrong figure, by what its name ends with
    "train_loss": "it is the sum over all samples of all processes, divided by their number: "
    "MeanLoss",
    "train/loss": "it is the mean over the samples of all processes since the point before: "
    "MeanLoss.compute_recent",
    "_loss": "it is the mean cross-entropy of the labels over all samples of all processes, "
    "without --label-smoothing: Evaluation.loss",
    "_accuracy": "it is the number of samples of all processes that are right, divided by that of "
    "all: Evaluation.accuracy",
    "learning_rate": "it is that of the last update, before the scheduler moves on: train.py",
}
FROM_THE_END = "it is written from the last epoch's figures, which metrics.jsonl has: train.py"
AVERAGE = "save the moving average's weights if there is one: train.py"
KEEP = (
    "weights, optimizer, moving average and the loaders' position must be in it, "
    "and the file system keep it"
)


def advice_on(figure: str) -> str:
    """Return what to do about a wrong figure, by its name."""
    for end, advice in ADVICE.items():
        if figure.endswith(end):
            return advice
    return COUNT


def wrong_figures(expected: Sequence[Figures], folder: Path) -> list[Wrong]:
    """Find what metrics.jsonl says of the last epochs that is not so.

    Args:
        expected: what its last lines should say.
        folder: the run's.
    """
    last_update = int(expected[-1]["global_step"]) if expected else 0
    try:
        text = (folder / METRICS).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        return [(last_update, f"metrics.jsonl cannot be read ({type(error).__name__})", COUNT)]
    if len(lines) < len(expected):
        missing = f"metrics.jsonl has {len(lines)} of {len(expected)} epochs"
        return [(last_update, missing, COUNT)]
    found = []
    last_lines = lines[len(lines) - len(expected) :]
    for right, line in zip(expected, last_lines, strict=True):
        place = f" of epoch {right['epoch']:.0f}"
        found += compare_figures(right, line, place, int(right["global_step"]))
    return found


def compare_figures(
    right: Figures, found: Mapping[str, Any], place: str, update: int
) -> list[Wrong]:
    """Compare figures of one update.

    Args:
        right: what they should be, by name. Integers are counts, and must be the same.
        found: what they are.
        place: where they are, for people.
        update: its number.
    """
    faults = []
    for name, value in right.items():
        is_count = isinstance(value, int)
        allowed = 0.0 if is_count else TOLERANCE
        if not apart(value, found.get(name)) <= allowed:
            is_there, should_be = told_apart(found.get(name), value)
            text = f"{name}{place} is {is_there} and should be {should_be}"
            faults.append((update, text, advice_on(name)))
    return faults


def wrong_summary(expected: Figures, folder: Path) -> list[Wrong]:
    """Find what summary.json says that is not so.

    Args:
        expected: what it should say.
        folder: the run's.
    """
    update = int(expected["global_step"])
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError) as error:
        return [(update, f"summary.json cannot be read ({type(error).__name__})", FROM_THE_END)]
    wrong = compare_figures(expected, summary, " in summary.json", update)
    return [(update, text, FROM_THE_END) for update, text, _ in wrong]


def wrong_weights(expected: Reference, folder: Path) -> list[Wrong]:
    """Find what is wrong with the trained weights in a run's folder.

    Args:
        expected: the training at its end.
        folder: the run's.
    """
    try:
        trained = weights.load_weights(folder / WEIGHTS)
    except UserError as error:
        return [(expected.updates, str(error), AVERAGE)]
    right = expected.averaged or expected.weights
    size = difference(right, trained)
    if size <= TOLERANCE:
        return []
    text = f"{WEIGHTS} differs by {size:.1e} from what was trained"
    if expected.averaged and difference(expected.weights, trained) <= TOLERANCE:
        text = f"{WEIGHTS} has the last weights, not their moving average"
    return [(expected.updates, text, AVERAGE)]


def wrong_curve(
    expected: Reference,
    history: Sequence[Mapping[str, Any]],
    rates: Sequence[float],
    steps: Sequence[int],
) -> list[Wrong]:
    """Find what is wrong with the points of the loss curve.

    Args:
        expected: the training at its end.
        history: the points, and other figures.
        rates: the right learning rate of each update.
        steps: the updates, from 1, after which there is a point.
    """
    if len(expected.losses) < len(rates):  # updates are missing, which is said elsewhere
        return []
    points = {point["global_step"]: point for point in history if "train/loss" in point}
    if list(points) != list(steps):
        text = (
            f"the loss curve has points at updates {[*points]} and should have them at {[*steps]}"
        )
        return [(expected.updates, text, ADVICE["train/loss"])]
    before = 0
    faults = []
    for step in steps:
        losses = expected.losses[before:step]
        mean = sum(loss for loss, _ in losses) / sum(rows for _, rows in losses)
        right = {"train/loss": mean, "train/learning_rate": rates[step - 1]}
        faults += compare_figures(right, points[step], f" of the curve at update {step}", step)
        before = step
    return faults


def wrong_checkpoint(expected: Reference, folder: Path, per_epoch: int) -> list[str]:
    """Find what the newest checkpoint of a run does not hold.

    Args:
        expected: the training when it was taken.
        folder: the run's.
        per_epoch: updates in an epoch.

    Returns:
        What is missing, in words.
    """
    payload, warnings = newest_checkpoint(folder)
    if payload is None:
        return warnings or ["there is none"]
    state = payload["state"]
    if state["updates"] != expected.updates:
        return [*warnings, f"the newest is of update {state['updates']}, not of {expected.updates}"]
    faults = list(warnings)
    epoch, batch = divmod(expected.updates, per_epoch)
    if state["loaders"][0] != {"epoch": epoch, "batch": batch}:
        faults.append(
            f"it goes on with {state['loaders'][0]}, not with epoch {epoch}, batch {batch}"
        )
    return faults + missing_tensors(expected, state)


def missing_tensors(expected: Reference, state: Mapping[str, Any]) -> list[str]:
    """Find which tensors of a training the state in a checkpoint does not hold, in words."""
    tensors = [tensor.detach().double() for tensor in tensors_in(state)]
    means, squares = expected.moments
    kinds = {
        "weights": expected.weights,
        "moving average": expected.averaged,
        "Adam's first moments": means,
        "Adam's second moments": squares,
    }
    faults = []
    for kind, values in kinds.items():
        missing = [name for name, tensor in values.items() if not is_among(tensor, tensors)]
        if missing:
            faults.append(f"it lacks or changes {kind} of {missing[0]}")
    return faults


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


def is_among(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    """Return whether one of several tensors has the same numbers."""
    here = tensor.cpu()
    alike = [other for other in others if other.shape == here.shape]
    return any(difference({"": here}, {"": other}) <= TOLERANCE for other in alike)
