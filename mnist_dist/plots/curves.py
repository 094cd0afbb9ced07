"""Pictures of how trainings went, epoch by epoch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.plots import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Epochs = Sequence[dict[str, Any]]  # the lines of a run's metrics.jsonl, in order


def learning_curves(path: Path, epochs: Epochs, heading: str) -> None:
    """Draw loss and accuracy over the epochs of one run, or warn that it could not be done.

    Args:
        path: the picture.
        epochs: those of the run, at least one.
        heading: the title of the picture.
    """
    with figures.spared():
        draw_curves(path, epochs, heading)


def draw_curves(path: Path, epochs: Epochs, heading: str) -> None:
    """Do what `learning_curves` says, or raise whatever Matplotlib raises."""
    picture = figures.figure(9, 3.6)
    picture.suptitle(figures.as_text(heading))
    loss, accuracy = picture.subplots(1, 2)
    numbers = [line["epoch"] for line in epochs]
    for split in ("train", "val", "test"):
        name = f"{split}_loss"
        if name in epochs[0]:
            losses = [line[name] for line in epochs]
            loss.plot(numbers, losses, marker=".", label=split)
        name = f"{split}_accuracy"
        if name in epochs[0]:
            percentages = [100 * line[name] for line in epochs]
            accuracy.plot(numbers, percentages, marker=".", label=split)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    for axes in (loss, accuracy):
        figures.count_whole_numbers(axes)
        axes.grid(alpha=0.3)
        axes.legend()
    figures.save(picture, path)


def compared(path: Path, groups: Sequence[tuple[str, Sequence[Epochs]]], heading: str) -> None:
    """Draw loss and accuracy on the test samples over the epochs: mean and range of each group.

    Args:
        path: the picture.
        groups: a label and the runs of each group.
        heading: the title of the picture.
    """
    picture = figures.figure(9, 3.8 + 0.2 * len(groups))
    picture.suptitle(figures.as_text(heading))
    left, right = picture.subplots(1, 2)
    for words, runs in groups:
        label = figures.as_text(words)
        draw_group(left, label, runs, "test_loss", scale=1)
        draw_group(right, label, runs, "test_accuracy", scale=100)
    left.set(xlabel="epoch", ylabel="test cross-entropy (nats)")
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    for axes in (left, right):
        figures.count_whole_numbers(axes)
        axes.grid(alpha=0.3)
    lines, labels = left.get_legend_handles_labels()
    picture.legend(lines, labels, loc="outside lower center", fontsize=8)
    figures.save(picture, path)


def draw_group(axes: "Axes", label: str, runs: Sequence[Epochs], name: str, scale: float) -> None:
    """Draw one figure of a group of runs: its mean and, if there are several runs, its range.

    Args:
        axes: where to draw.
        label: what the legend calls the group.
        runs: those of the group.
        name: what the lines of metrics.jsonl call the figure. Those without it are left out.
        scale: what its values are multiplied by.
    """
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for line in run:
            if name in line:
                values = by_epoch.setdefault(line["epoch"], [])
                values.append(scale * line[name])
    epochs = sorted(by_epoch)

    def over_epochs(summary: Callable[[list[float]], Any]) -> list[Any]:
        return [summary(by_epoch[epoch]) for epoch in epochs]

    (curve,) = axes.plot(epochs, over_epochs(np.mean), marker=".", label=label)
    if len(runs) > 1:
        lowest = over_epochs(min)
        highest = over_epochs(max)
        axes.fill_between(
            epochs,
            lowest,
            highest,
            color=curve.get_color(),
            alpha=0.2,
            linewidth=0,
        )
