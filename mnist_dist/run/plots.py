"""The pictures. Each function draws one and writes it as PNG, PDF or SVG, as the file's name says."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mnist_dist.task.data import DataSet
from mnist_dist.task.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SUFFIXES, EXPECTED = (".png", ".pdf", ".svg"), "a .png, .pdf or .svg file"


def figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, which needs no screen."""
    os.environ["MPLBACKEND"] = "agg"  # whatever window somebody set there is not wanted here, and may not exist
    from matplotlib.figure import Figure  # half a second that only who draws should wait for

    return Figure(figsize=(width, height), layout="constrained")


def save(picture: "Figure", path: Path) -> None:
    """Write a figure, into a folder that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)


def evaluation(
    folder: Path, result: Evaluation, samples: DataSet, split: str, model: str, suffix: str = ".png"
) -> None:
    """Draw the confusion matrix, the reliability and the most confident mistakes of an evaluation into a folder.

    Args:
        model: what the titles call the model.
        suffix: one of `SUFFIXES`.
    """
    heading = f"{samples.name} {split}: {100 * result.accuracy:.2f}% ({result.correct}/{result.total})\n{model}"
    confusion_matrix(folder / f"confusion_matrix{suffix}", result.confusion, samples.classes, heading)
    reliability(folder / f"reliability{suffix}", result, heading)
    mistakes = folder / f"mistakes{suffix}"
    mistakes.unlink(missing_ok=True)  # of an evaluation before, where this one has none
    worst = result.mistakes()[:50]
    if len(worst):
        sure = result.probabilities.max(dim=1).values
        titles = [
            f"{samples.classes[result.predictions[number]]}? ({100 * sure[number]:.0f}%)\n"
            f"is {samples.classes[result.labels[number]]}"
            for number in worst
        ]
        images = samples.pixels(getattr(samples, split).images[worst.to(samples.test.images.device), 0])
        digits(mistakes, images, titles, f"The most confident mistakes, {heading}")


def digits(path: Path, images: Tensor, titles: Sequence[str], heading: str, columns: int = 10) -> None:
    """A grid of small images, each with a title.

    Args:
        images: (n, 28, 28), grey values in [0, 1]; n at least 1.
        titles: n titles of one or two short lines.
    """
    rows = math.ceil(len(images) / columns)
    columns = min(columns, len(images))
    lines = 1 + max(title.count("\n") for title in titles)
    height, width, pitch_y, pitch_x = 28, 28, 32 + 5 * lines, 40
    above = 0.4 + 0.2 * len(heading.splitlines())
    picture = figure(max(0.029 * pitch_x * columns + 0.2, 5), 0.029 * pitch_y * rows + above)
    axes = picture.subplots()  # one for all images: an Axes for each would take seconds to draw
    axes.set_title(heading, fontsize=10)
    canvas = np.zeros((pitch_y * rows, pitch_x * columns), np.float32)
    for number, (image, title) in enumerate(zip(images.cpu().numpy(), titles, strict=True)):
        top, left = number // columns * pitch_y + pitch_y - height, number % columns * pitch_x + (pitch_x - width) // 2
        canvas[top : top + height, left : left + width] = image
        axes.text(left + width / 2, top - 2, title, ha="center", va="bottom", fontsize=8, linespacing=1)
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=1)
    axes.axis("off")
    save(picture, path)


def confusion_matrix(path: Path, confusion: Tensor, classes: Sequence[str], heading: str) -> None:
    """Counts of true against predicted classes, mistakes coloured by their share of the true class.

    Args:
        confusion: (classes, classes) int64; the row is the truth.
    """
    counts = confusion.cpu()
    share = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    mistakes = share.clone().fill_diagonal_(0)
    picture = figure(7.5, 6.6)
    axes = picture.subplots()
    image = axes.imshow(100 * mistakes, cmap="Reds", vmin=0, vmax=max(100 * mistakes.max().item(), 1e-9))
    picture.colorbar(image, ax=axes, label="share of the true class mistaken for it (%)", shrink=0.85)
    for row in range(len(counts)):
        for column in range(len(counts)):
            count = int(counts[row, column])
            strong = mistakes[row, column] > mistakes.max() / 2
            axes.text(
                column,
                row,
                f"{count:,}" if count else "·",
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if row == column else "normal",
                color="white" if strong else "black",
            )
    axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=heading)
    save(picture, path)


def reliability(path: Path, result: Evaluation, heading: str) -> None:
    """Accuracy against confidence, on the diagonal where a model is right as often as it says; below, samples."""
    bins = result.reliability()
    confidence = [100 * bin.confidence for bin in bins]
    picture = figure(5, 5.6)
    picture.suptitle(f"{heading}\nexpected calibration error {100 * result.calibration_error:.2f}%", fontsize=9)
    axes, below = picture.subplots(2, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], color="grey", linewidth=1)
    axes.plot(confidence, [100 * bin.accuracy for bin in bins], marker="o")
    axes.set(ylabel="accuracy (%)", xlim=(0, 103), ylim=(-3, 103))
    below.bar(confidence, [bin.count for bin in bins], width=3)
    below.set(xlabel="confidence (%)", ylabel="samples", yscale="log", ylim=(0.5, None))
    for one in (axes, below):
        one.grid(alpha=0.3)
    save(picture, path)


def learning_curves(path: Path, epochs: Sequence[dict[str, Any]], heading: str) -> None:
    """Loss and accuracy over the epochs of one run.

    Args:
        epochs: the lines of metrics.jsonl, in order; at least one.
    """
    numbers = [line["epoch"] for line in epochs]
    picture = figure(9, 3.6)
    picture.suptitle(heading)
    loss, accuracy = picture.subplots(1, 2)
    for split in ("train", "val", "test"):
        if f"{split}_loss" in epochs[0]:
            loss.plot(numbers, [line[f"{split}_loss"] for line in epochs], marker=".", label=split)
        if f"{split}_accuracy" in epochs[0]:
            accuracy.plot(numbers, [100 * line[f"{split}_accuracy"] for line in epochs], marker=".", label=split)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    save(picture, path)


def compared(path: Path, groups: Sequence[tuple[str, Sequence[Sequence[dict[str, Any]]]]], heading: str) -> None:
    """Loss and accuracy on the test samples over the epochs: mean and range of each group.

    Args:
        groups: a label and the runs of each, a run being the lines of its metrics.jsonl; at least one.
    """
    picture = figure(9, 3.8 + 0.2 * len(groups))
    picture.suptitle(heading)
    panels = picture.subplots(1, 2)
    for axes, figure_of, scale, label in zip(
        panels,
        ("test_loss", "test_accuracy"),
        (1, 100),
        ("test cross-entropy (nats)", "test accuracy (%)"),
        strict=True,
    ):
        for name, runs in groups:
            by_epoch: dict[int, list[float]] = {}
            for line in (line for run in runs for line in run if figure_of in line):
                by_epoch.setdefault(line["epoch"], []).append(scale * line[figure_of])
            epochs = sorted(by_epoch)
            (curve,) = axes.plot(epochs, [np.mean(by_epoch[epoch]) for epoch in epochs], marker=".", label=name)
            if len(runs) > 1:
                edges = [[edge(by_epoch[epoch]) for epoch in epochs] for edge in (min, max)]
                axes.fill_between(epochs, *edges, color=curve.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    save(picture, path)


def history(path: Path, numbers: Sequence[int], values: Sequence[float], pruned: Sequence[bool], heading: str) -> None:
    """The trials of a search in their order, and the best so far.

    Args:
        numbers: of the n trials, ascending.
        values: (n,) accuracies on the held-out samples, in [0, 1]; not a number if there is none.
        pruned: (n,) whether a trial was given up; at least one was not.
    """
    x, y, given_up = np.array(numbers), 100 * np.array(values), np.array(pruned)
    best = np.maximum.accumulate(np.where(given_up, -np.inf, y))
    picture = figure(7, 4)
    axes = picture.subplots()
    axes.plot(x[~given_up], y[~given_up], "o", label="trial")
    axes.plot(x[given_up], y[given_up], "x", color="grey", label="pruned, when it was")
    axes.step(x[np.isfinite(best)], best[np.isfinite(best)], where="post", color="black", linewidth=1, label="best")
    axes.set(xlabel="trial", ylabel="validation accuracy (%)")
    axes.set_title(heading, fontsize=10)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save(picture, path)


def importances(path: Path, shares: Mapping[str, float], heading: str) -> None:
    """How much each setting decides whether a trial is among the best.

    Args:
        shares: by setting, the largest first, summing to 1.
    """
    picture = figure(7, 0.8 + 0.35 * len(shares))
    axes = picture.subplots()
    axes.barh(list(shares), [100 * share for share in shares.values()])
    axes.invert_yaxis()
    axes.set(xlabel="importance (%)")
    axes.set_title(heading, fontsize=10)
    axes.grid(alpha=0.3, axis="x")
    save(picture, path)


def trade_off(path: Path, seconds: Sequence[float], values: Sequence[float], heading: str) -> None:
    """What accuracy takes in time, and the trials than which no other is both faster and better.

    Args:
        seconds: (n,) training time of each trial; n at least 1.
        values: (n,) accuracies on the held-out samples, in [0, 1].
    """
    front = pareto_front(seconds, values)
    picture = figure(7, 4)
    axes = picture.subplots()
    axes.plot(seconds, [100 * value for value in values], "o", label="trial")
    points = [seconds[number] for number in front], [100 * values[number] for number in front]
    axes.step(*points, "o-", where="post", color="black", linewidth=1, label="none is faster and better")
    axes.set(xlabel="training time (s)", ylabel="validation accuracy (%)", xlim=(0, None))
    axes.set_title(heading, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    save(picture, path)


def pareto_front(seconds: Sequence[float], values: Sequence[float]) -> list[int]:
    """Numbers of the trials that are better than every faster one, the fastest first."""
    front: list[int] = []
    for number in sorted(range(len(seconds)), key=lambda number: (seconds[number], -values[number])):
        if not front or values[number] > values[front[-1]]:
            front.append(number)
    return front
