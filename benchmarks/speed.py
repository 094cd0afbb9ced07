"""Speed of train.py beside the baselines: whole processes, in turn, in one sitting.

    python benchmarks/speed.py --data-dir data --quick          # under three minutes
    python benchmarks/speed.py --data-dir data                  # an hour and a half on two cores
    python benchmarks/speed.py --data-dir data --only "99 %"    # those with this in their titles
    python benchmarks/speed.py --data-dir data --cpu            # not on a GPU, where there is one

Every round runs all programs of a comparison one after the other. The tables have medians over the
rounds (means where rounds are seeds), their range, and the median of the ratios within a round, for
the machine's speed changes from minute to minute. Of a training the best epoch counts (the
original's, Accelerate's and Lightning's only one: their epochs are long and all alike), and the
floor is what it is compared with. Writes JSON, Markdown and a picture, and keeps of an earlier
result what was not measured again.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from common import cores_given, processor, write_result
from speed_programs import (
    Run,
    evaluations,
    first_update,
    imports_alone,
    run_baseline,
    run_train,
)
from speed_report import OF_SEEDS, draw, markdown

PACKAGES = ("torch", "torchvision", "accelerate", "wandb")
Measure = Callable[[int], float | None]  # the figure of a round; None: a target was missed


def compare(
    title: str,
    unit: str,
    rounds: int,
    programs: dict[str, Measure],
    once: Collection[str] = (),
) -> dict[str, Any]:
    """Run programs in turn; the last one is what the others are compared with.

    Args:
        title: what is compared.
        unit: of the figures.
        rounds: how many.
        programs: by name; each is given the number of the round.
        once: names of those that run in the first round only.
    """
    values: dict[str, list[float | None]] = {name: [] for name in programs}
    for number in range(rounds):
        for name, measure in programs.items():
            if number and name in once:
                continue
            value = measure(number)
            values[name].append(value)
            print(
                f"{title}, round {number + 1} of {rounds}: {name} {value}",
                file=sys.stderr,
            )
    average = statistics.mean if title.startswith(OF_SEEDS) else statistics.median
    reference = list(values.values())[-1]
    rows = {name: summary(figures, reference, average) for name, figures in values.items()}
    return {
        "title": title,
        "unit": unit,
        "rounds": rounds,
        "date": time.strftime("%Y-%m-%d"),
        "cores": cores_given(),
        "programs": rows,
    }


def summary(
    figures: list[float | None],
    reference: list[float | None],
    average: Callable[[list[float]], float],
) -> dict[str, Any]:
    """What is kept of a program's figures, beside those of the reference."""
    good = [value for value in figures if value is not None]
    ratios = []
    for value, other in zip(figures, reference, strict=False):
        if value is not None and other is not None:
            ratios.append(value / other)
    return {
        "average": average(good) if good else None,
        "lowest": min(good, default=None),
        "highest": max(good, default=None),
        "ratio": statistics.median(ratios) if ratios else None,
        "rounds": len(figures),
        "missed": len(figures) - len(good),
    }


def without_a_number(median: Callable[[], float], _: int) -> float:
    """What is measured in the same way in every round."""
    return median()


def peak_of(runs: list[Run], number: int) -> float | None:
    """The memory that the run of a round has taken at most."""
    return runs[number].peak


class Comparisons:
    """What can be measured.

    Args:
        data_dir: the folder with MNIST/raw/ in it.
        rounds: of each comparison, where it has no fewer.
        quick: leave out what takes long.

    Attributes:
        curves: the seconds and accuracies of each training to a goal, by the program's name.
    """

    def __init__(self, data_dir: Path, rounds: int, *, quick: bool) -> None:
        self.data_dir = data_dir
        self.rounds = rounds
        self.quick = quick
        self.curves: dict[str, list] = {}
        self.whole_runs: dict[str, list[Run]] = {
            "train.py": [],
            "original script": [],
        }

    def by_title(self) -> dict[str, Callable[[str], dict[str, Any]]]:
        """Functions that measure, each given its title."""
        found: dict[str, Callable[[str], dict[str, Any]]] = {
            "Training, batch 64": partial(self.training, 64, 1),
            "Training, batch 512": partial(self.training, 512, 1),
            "Training, batch 64, two processes": partial(self.training, 64, 2),
            "Training, batch 512, two processes": partial(self.training, 512, 2),
            "Evaluation of 10,000 images": self.evaluation,
            "From the start to the first update": self.start,
        }
        if self.quick:
            return found
        soon = partial(self.target, 0.9693, "fast", "original", 8)
        very_good = partial(self.target, 0.99, "fast-cnn", "classic-cnn", 6)
        return found | {
            "From the prompt to the files, 5 epochs": self.whole,
            "Peak memory from the prompt to the files": self.memory,
            f"{OF_SEEDS} to 96.93 %": soon,
            f"{OF_SEEDS} to 99 %": very_good,
        }

    def speed_of_baseline(self, name: str, **setting: Any) -> Measure:
        """Measure the speed of one of the baselines."""
        return lambda _: run_baseline(name, self.data_dir, **setting).speed

    def speed_of_train(self, words: str = "", **setting: Any) -> Measure:
        """Measure the speed of train.py."""
        return lambda _: run_train(self.data_dir, words=words, **setting).speed

    def training(self, batch: int, processes: int, title: str) -> dict[str, Any]:
        """Compare samples per second."""
        setting: dict[str, Any] = {"batch_size": batch, "processes": processes}
        alone = processes == 1
        slow: dict[str, Measure] = {}
        if alone and not self.quick:
            if importlib.util.find_spec("lightning"):
                slow["Lightning"] = self.speed_of_baseline("lightning", epochs=1, **setting)
            slow["train.py --compile"] = self.speed_of_train("--compile", epochs=4, **setting)
        if not self.quick:
            slow["Accelerate's loop"] = self.speed_of_baseline("accelerate", epochs=1, **setting)
        if alone and (batch == 64 or not self.quick):
            slow["original script"] = self.speed_of_baseline("original", epochs=1, **setting)
        # So many that each side's best epoch was not disturbed.
        epochs = 20 if alone else 8
        if self.quick:
            epochs = 2
        floor = "floor" if alone else "floor (hand-written DDP)"
        pair = {  # one right after the other
            "train.py": self.speed_of_train(epochs=epochs, **setting),
            floor: self.speed_of_baseline("floor", epochs=epochs, **setting),
        }
        return compare(title, "samples/s", self.rounds, slow | pair, once=slow)

    def evaluation(self, title: str) -> dict[str, Any]:
        """Compare milliseconds of classifying the test set."""
        programs: dict[str, Measure] = {}
        for name, median in evaluations(self.data_dir).items():
            programs[name] = partial(without_a_number, median)
        return compare(title, "ms", self.rounds, programs)

    def start(self, title: str) -> dict[str, Any]:
        """Compare seconds to the first update."""
        programs: dict[str, Measure] = {
            "train.py": lambda _: first_update(self.data_dir),
            "import torch, torchvision, accelerate": lambda _: imports_alone(),
        }
        return compare(title, "s", self.rounds, programs)

    def whole(self, title: str) -> dict[str, Any]:
        """Compare seconds of whole processes."""

        def ours(_: int) -> float:
            ended = run_train(self.data_dir)
            self.whole_runs["train.py"].append(ended)
            return ended.wall

        def original(_: int) -> float:
            ended = run_baseline("original", self.data_dir)
            self.whole_runs["original script"].append(ended)
            return ended.wall

        programs: dict[str, Measure] = {
            "train.py": ours,
            "original script": original,
        }
        return compare(title, "s", min(self.rounds, 3), programs)

    def memory(self, title: str) -> dict[str, Any]:
        """Compare the memory of the whole processes that `whole` has run."""
        rounds = len(self.whole_runs["train.py"])
        if not rounds:
            problem = "the memory is that of whole processes"
            raise SystemExit(f"speed.py: error: {problem}: --only files measures both")
        programs: dict[str, Measure] = {}
        for name, runs in self.whole_runs.items():
            programs[name] = partial(peak_of, runs)
        return compare(title, "MiB", rounds, programs)

    def target(
        self,
        accuracy: float,
        recipe: str,
        other: str,
        epochs: int,
        title: str,
    ) -> dict[str, Any]:
        """Compare seconds of training to a test accuracy; each round is another seed."""
        ours = f"--recipe {recipe}"
        theirs = {
            "original": "original script",
            "classic-cnn": "classic CNN",
        }[other]

        def note(name: str, ended: Run) -> float | None:
            seconds = list(accumulate(ended.epoch_seconds))
            self.curves.setdefault(name, []).append([seconds, ended.test_accuracy])
            return ended.seconds_to(accuracy)

        def train(seed: int) -> float | None:
            return note(ours, run_train(self.data_dir, recipe=recipe, seed=seed))

        def baseline(seed: int) -> float | None:
            flags: dict[str, Any] = {"epochs": epochs, "until": accuracy, "seed": seed}
            return note(theirs, run_baseline(other, self.data_dir, **flags))

        return compare(title, "s", self.rounds, {ours: train, theirs: baseline})


def device() -> str:
    """The name of what the programs compute on."""
    from mnist_dist.run import launch, provenance

    return provenance.processor(launch.start().device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, help="default 5, quick 1")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--only",
        default="",
        help="part of the titles of the comparisons to run",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("speed"),
        help="path of the three files, without suffix",
    )
    args = parser.parse_args()
    if args.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # all programs ask for it
    place = args.output.with_suffix(".json")
    result: dict[str, Any] = {"comparisons": {}, "curves": {}}
    if place.exists():
        result = json.loads(place.read_text())
    now = device()
    before = result.get("setting", {}).get("device", now)
    if before != now:
        problem = f"{place} is from {before}, and this is {now}"
        sys.exit(f"speed.py: error: {problem}: choose another --output")
    result["setting"] = {
        "processor": processor(),
        "device": now,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        result["setting"][package] = version(package)
    rounds = args.rounds or (1 if args.quick else 5)
    comparisons = Comparisons(args.data_dir.resolve(), rounds, quick=args.quick)
    for title, measure in comparisons.by_title().items():
        if args.only not in title:
            continue
        result["comparisons"][title] = measure(title)
        result["curves"] |= comparisons.curves
        write_result(place, result)  # an hour's work is not lost with its last minute
    tables = markdown(result)
    place.with_suffix(".md").write_text(tables)
    draw(result, place.with_suffix(".png"))
    print(tables)


if __name__ == "__main__":
    main()
