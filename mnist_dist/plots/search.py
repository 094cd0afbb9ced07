"""Pictures of a search for settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mnist_dist.plots import figures


def history(
    path: Path,
    numbers: Sequence[int],
    values: Sequence[float],
    pruned: Sequence[bool],
    heading: str,
) -> None:
    """Draw the trials of a search in their order, and the best so far.

    Args:
        path: the picture.
        numbers: those of the n trials, ascending.
        values: (n,) accuracies on the held-out samples, in [0, 1]; not a number if there is none.
        pruned: (n,) whether a trial was given up; at least one was not.
        heading: the title of the picture.
    """
    trials = np.array(numbers)
    percentages = 100 * np.array(values)
    given_up = np.array(pruned)
    complete = ~given_up
    of_complete_ones = np.where(given_up, -np.inf, percentages)
    best = np.maximum.accumulate(of_complete_ones)
    exists = np.isfinite(best)
    picture = figures.figure(7, 4)
    axes = picture.subplots()
    axes.plot(trials[complete], percentages[complete], "o", label="trial")
    axes.plot(
        trials[given_up],
        percentages[given_up],
        "x",
        color="grey",
        label="pruned, when it was",
    )
    axes.step(
        trials[exists],
        best[exists],
        where="post",
        color="black",
        linewidth=1,
        label="best",
    )
    axes.set(xlabel="trial", ylabel="validation accuracy (%)")
    axes.set_title(figures.as_text(heading), fontsize=10)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(picture, path)


def importances(path: Path, shares: Mapping[str, float], heading: str) -> None:
    """Draw how much each setting decides whether a trial is among the best.

    Args:
        path: the picture.
        shares: by setting, the largest first, summing to 1.
        heading: the title of the picture.
    """
    names = list(shares)
    percentages = [100 * share for share in shares.values()]
    picture = figures.figure(7, 0.8 + 0.35 * len(shares))
    axes = picture.subplots()
    axes.barh(names, percentages)
    axes.invert_yaxis()
    axes.set(xlabel="importance (%)")
    axes.set_title(figures.as_text(heading), fontsize=10)
    axes.grid(alpha=0.3, axis="x")
    figures.save(picture, path)


def trade_off(path: Path, seconds: Sequence[float], values: Sequence[float], heading: str) -> None:
    """Draw what accuracy takes in time, and the trials than which no other is faster and better.

    Args:
        path: the picture.
        seconds: (n,) training time of each trial; n at least 1.
        values: (n,) accuracies on the held-out samples, in [0, 1].
        heading: the title of the picture.
    """
    front = pareto_front(seconds, values)
    percentages = [100 * value for value in values]
    picture = figures.figure(7, 4)
    axes = picture.subplots()
    axes.plot(seconds, percentages, "o", label="trial")
    axes.step(
        [seconds[number] for number in front],
        [percentages[number] for number in front],
        "o-",
        where="post",
        color="black",
        linewidth=1,
        label="none is faster and better",
    )
    axes.set(xlabel="training time (s)", ylabel="validation accuracy (%)", xlim=(0, None))
    axes.set_title(figures.as_text(heading), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(picture, path)


def pareto_front(seconds: Sequence[float], values: Sequence[float]) -> list[int]:
    """Find the trials that are better than every faster one.

    Args:
        seconds: (n,) training time of each trial.
        values: (n,) what is better the higher it is.

    Returns:
        The numbers of these trials, from 0, the fastest first.
    """

    def fast_and_then_good(number: int) -> tuple[float, float]:
        return seconds[number], -values[number]

    front: list[int] = []
    for number in sorted(range(len(seconds)), key=fast_and_then_good):
        if not front or values[number] > values[front[-1]]:
            front.append(number)
    return front
