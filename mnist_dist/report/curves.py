"""The curves of a run: its epochs, and the points between them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.core.checkpointing import newest_checkpoint
from mnist_dist.records.columns import Row

MOST = 600  # points of a curve in a page; a screen shows no more
FIGURES = ("train_loss", "test_loss", "val_loss", "test_accuracy", "val_accuracy", "learning_rate")


def curves(epochs: Sequence[Row], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect the curves of a run.

    Args:
        epochs: the lines of its metrics.jsonl.
        history: all figures of the run, or none if they are not known.

    Returns:
        JSON values: for each of `FIGURES` that the run has, and for the `loss` and the `rate`
        between the epochs, points of epochs that have passed and the value.
    """
    found = {}
    for name in FIGURES:
        points = [[line["epoch"], line[name]] for line in epochs if is_number(line.get(name))]
        if points:
            found[name] = thinned(points)
    last = epochs[-1] if epochs else {}
    updates = last.get("global_step") or 0
    if updates:
        epochs_an_update = last["epoch"] / updates
        for name, key in (("loss", "train/loss"), ("rate", "train/learning_rate")):
            points = [
                [round(point["global_step"] * epochs_an_update, 4), point[key]]
                for point in history
                if is_number(point.get(key))
            ]
            if len(points) > len(epochs):
                found[name] = thinned(points)
    return found


def is_number(value: object) -> bool:
    """Return whether a value can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def thinned(points: list[Any]) -> list[Any]:
    """Return at most about `MOST` of some points, always with the first and the last one."""
    step = math.ceil(len(points) / MOST)
    if step <= 1:
        return points
    kept = points[::step]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def history_of(folder: Path) -> list[dict[str, Any]]:
    """Find all figures of a run in its newest checkpoint, which metrics.jsonl has for epochs only.

    Args:
        folder: the run's folder.

    Returns:
        The figures in order; an empty list if there is no checkpoint that holds them.
    """
    payload, _ = newest_checkpoint(folder)
    if payload is None:
        return []
    for registered in payload["state"]["custom"]:
        if isinstance(registered, dict) and isinstance(registered.get("history"), list):
            return registered["history"]
    return []
