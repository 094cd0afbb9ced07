"""Speed of train.py beside the baselines: whole processes, in turn, in one sitting.

    python benchmarks/speed.py --data-dir data --quick          # under three minutes
    python benchmarks/speed.py --data-dir data                  # an hour and a half on two cores
    python benchmarks/speed.py --data-dir data --only "99 %"    # the comparisons with this in their titles, again
    python benchmarks/speed.py --data-dir data --cpu            # not on a GPU, where there is one

Every round runs all programs of a comparison one after the other. The tables have medians over the rounds (means where
rounds are seeds), their range, and the median of the ratios within a round, for the machine's speed changes from minute
to minute. Of a training the best epoch counts (the original's, Accelerate's and Lightning's only one: their epochs are
long and all alike), and the floor is what it is compared with. Writes JSON, Markdown and a picture, and keeps of an
earlier result what was not measured again.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

FIRST_UPDATE = """
import os, sys
from mnist_dist.core import Training
update = Training.update
def once(*words, **options):
    update(*words, **options)
    os._exit(0)
Training.update = once
import train
train.main()
"""


@dataclass
class Run:
    """A training that has ended: seconds and test accuracy of each epoch, and the process's seconds and peak MiB."""

    epoch_seconds: list[float]
    test_accuracy: list[float]
    wall: float
    peak: float

    @property
    def speed(self) -> float:
        """Samples a second of the best epoch."""
        return 60_000 / min(self.epoch_seconds)

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds of training to the end of the first epoch that reaches a test accuracy; None where none does."""
        sums = accumulate(self.epoch_seconds)
        return next((s for s, reached in zip(sums, self.test_accuracy, strict=True) if reached >= accuracy), None)


def drain(terminal: int) -> None:
    """Read what a program writes to a terminal until it has ended, which Linux says by an error."""
    with os.fdopen(terminal, "rb") as screen, contextlib.suppress(OSError):
        while screen.read1():
            pass


def run(command: list[Any]) -> tuple[str, float, float]:
    """A process's standard output, wall-clock seconds, and peak MiB of resident memory; it sees a terminal as standard
    error, so progress bars are on."""
    ours, terminal = os.openpty()
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=terminal, cwd=ROOT)
        os.close(terminal)
        threading.Thread(target=drain, args=(ours,)).start()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"speed.py: error: this failed, try it by itself: {' '.join(map(str, command))}")
        output.seek(0)
        return output.read(), time.perf_counter() - begin, usage.ru_maxrss / 1024


def launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def baseline(name: str, data_dir: Path, processes: int = 1, **flags: Any) -> Run:
    words = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
    script = [HERE / "baselines.py", name, f"--data-dir={data_dir}"]
    output, wall, peak = run([*launcher(processes), *script, *words])
    return Run(**json.loads(output.splitlines()[-1]), wall=wall, peak=peak)


def project(data_dir: Path, processes: int = 1, words: str = "", **flags: Any) -> Run:
    """train.py on its shipped default path, with W&B offline and the progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        named = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
        script = ["train.py", "--dataset=mnist", f"--data-dir={data_dir}", "--wandb=offline"]
        _, wall, peak = run([*launcher(processes), *script, f"--output-dir={place}", *words.split(), *named])
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    seconds = [60_000 / line["samples_per_second"] for line in lines]
    return Run(seconds, [line["test_accuracy"] for line in lines], wall, peak)


def first_update(data_dir: Path) -> float:
    """Seconds from the start of train.py to the end of its first update."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--dataset=mnist", f"--data-dir={data_dir}", "--wandb=offline"]
        return run([sys.executable, "-c", FIRST_UPDATE, *words, f"--output-dir={Path(folder) / 'run'}"])[1]


def evaluation(data_dir: Path) -> dict[str, Callable[[], float]]:
    """Two ways to classify the test set, each as a function that gives its median of ten in milliseconds."""
    import torch

    from mnist_dist.run import launch
    from mnist_dist.task import data, networks
    from mnist_dist.task.evaluation import classify

    accelerator = launch.start()
    model, test = networks.build("mlp").eval().to(accelerator.device), data.load("mnist", data_dir).test
    test = test.to(accelerator.device)

    def forward() -> None:
        with torch.no_grad():
            model(test.images).argmax(1).cpu()

    def median(function: Callable[[], object]) -> float:
        times = []
        for _ in range(10):
            begin = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - begin))
        return statistics.median(times)

    return {
        "evaluation, with loss and counts": partial(median, lambda: classify(accelerator, model, test).metrics("test")),
        "one bare forward pass": partial(median, forward),
    }


def compare(
    title: str,
    unit: str,
    rounds: int,
    programs: dict[str, Callable[[int], float | None]],
    once: Container[str] = (),
) -> dict[str, Any]:
    """Run programs in turn; the last one is what the others are compared with.

    Args:
        programs: by name; each is given the number of the round, and returns its figure, or None for a target missed.
        once: names of those that run in the first round only.
    """
    values: dict[str, list[float | None]] = {name: [] for name in programs}
    for number in range(rounds):
        for name, measure in programs.items():
            if number and name in once:
                continue
            values[name].append(measure(number))
            print(f"{title}, round {number + 1} of {rounds}: {name} {values[name][-1]}", file=sys.stderr)
    average = statistics.mean if title.startswith("Seconds of training") else statistics.median
    reference = list(values.values())[-1]
    rows = {}
    for name, figures in values.items():
        good = [figure for figure in figures if figure is not None]
        pairs = [(a, b) for a, b in zip(figures, reference, strict=False) if a is not None and b is not None]
        rows[name] = {
            "average": average(good) if good else None,
            "lowest": min(good, default=None),
            "highest": max(good, default=None),
            "ratio": statistics.median(a / b for a, b in pairs) if pairs else None,
            "rounds": len(figures),
            "missed": len(figures) - len(good),
        }
    date, cores = time.strftime("%Y-%m-%d"), cores_given()
    return {"title": title, "unit": unit, "rounds": rounds, "date": date, "cores": cores, "programs": rows}


def comparisons(data_dir: Path, rounds: int, quick: bool, curves: dict) -> dict[str, Callable[[], dict[str, Any]]]:
    """What can be measured, by title."""
    ends: dict[str, list[Run]] = {"train.py": [], "original script": []}  # whole processes, for their memory, too

    def training(title: str, batch: int, processes: int, rounds: int) -> dict[str, Any]:
        setting = {"batch_size": batch, "processes": processes}
        slow: dict[str, Callable[[int], float | None]] = {}
        if not quick and processes == 1:
            if importlib.util.find_spec("lightning"):
                slow["Lightning"] = lambda _: baseline("lightning", data_dir, epochs=1, **setting).speed
            slow["train.py --compile"] = lambda _: project(data_dir, words="--compile", epochs=4, **setting).speed
        if not quick:
            slow["Accelerate's loop"] = lambda _: baseline("accelerate", data_dir, epochs=1, **setting).speed
        if processes == 1 and (batch == 64 or not quick):
            slow["original script"] = lambda _: baseline("original", data_dir, epochs=1, **setting).speed
        floor = "floor" if processes == 1 else "floor (hand-written DDP)"
        epochs = 2 if quick else 20 if processes == 1 else 8  # so many that each side's best epoch was not disturbed
        pair = {  # one right after the other
            "train.py": lambda _: project(data_dir, epochs=epochs, **setting).speed,
            floor: lambda _: baseline("floor", data_dir, epochs=epochs, **setting).speed,
        }
        return compare(title, "samples/s", rounds, slow | pair, once=slow)

    def whole(title: str) -> dict[str, Any]:
        def seconds(name: str, end: Run) -> float:
            ends[name].append(end)
            return end.wall

        programs = {
            "train.py": lambda _: seconds("train.py", project(data_dir)),
            "original script": lambda _: seconds("original script", baseline("original", data_dir)),
        }
        return compare(title, "s", min(rounds, 3), programs)

    def memory(title: str) -> dict[str, Any]:
        if not ends["train.py"]:
            raise SystemExit("speed.py: error: the memory is that of whole processes: --only files measures both")
        return compare(
            title, "MiB", len(ends["train.py"]), {name: lambda number, of=name: ends[of][number].peak for name in ends}
        )

    def start(title: str) -> dict[str, Any]:
        imports = [sys.executable, "-c", "import torch, torchvision, accelerate"]
        return compare(
            title,
            "s",
            rounds,
            {
                "train.py": lambda _: first_update(data_dir),
                "import torch, torchvision, accelerate": lambda _: run(imports)[1],
            },
        )

    def test(title: str) -> dict[str, Any]:
        return compare(title, "ms", rounds, {name: lambda _, of=of: of() for name, of in evaluation(data_dir).items()})

    def target(title: str, accuracy: float, recipe: str, other: str, epochs: int) -> dict[str, Any]:
        def seconds(name: str, end: Run) -> float | None:
            curves.setdefault(name, []).append([list(accumulate(end.epoch_seconds)), end.test_accuracy])
            return end.seconds_to(accuracy)

        flags = {"epochs": epochs, "until": accuracy}
        shown = {"original": "original script", "classic-cnn": "classic CNN"}[other]
        return compare(
            title,
            "s",
            rounds,
            {
                f"--recipe {recipe}": lambda seed: seconds(
                    f"--recipe {recipe}", project(data_dir, recipe=recipe, seed=seed)
                ),
                shown: lambda seed: seconds(shown, baseline(other, data_dir, seed=seed, **flags)),
            },
        )

    found: dict[str, Callable[[str], dict[str, Any]]] = {
        "Training, batch 64": partial(training, batch=64, processes=1, rounds=rounds),
        "Training, batch 512": partial(training, batch=512, processes=1, rounds=rounds),
        "Training, batch 64, two processes": partial(training, batch=64, processes=2, rounds=rounds),
        "Training, batch 512, two processes": partial(training, batch=512, processes=2, rounds=rounds),
        "Evaluation of 10,000 images": test,
        "From the start to the first update": start,
    }
    if not quick:
        found |= {
            "From the prompt to the files, 5 epochs": whole,
            "Peak memory from the prompt to the files": memory,
            "Seconds of training to 96.93 %": partial(
                target, accuracy=0.9693, recipe="fast", other="original", epochs=8
            ),
            "Seconds of training to 99 %": partial(
                target, accuracy=0.99, recipe="fast-cnn", other="classic-cnn", epochs=6
            ),
        }
    return {title: partial(measure, title) for title, measure in found.items()}


def markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""

    def figure(value: float | None) -> str:
        return "none" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    parts = []
    for one in result["comparisons"].values():
        reference = list(one["programs"])[-1]
        what = "mean" if one["title"].startswith("Seconds of training") else "median"
        parts += [
            f"**{one['title']}** ({one['rounds']} rounds on {one['cores']} core(s), {one['date']})\n",
            f"| program | {one['unit']}, {what} | range | ratio to {reference} |",
            "|---|---:|---|---:|",
        ]
        for name, row in one["programs"].items():
            notes = [f"{row['missed']} did not get there"] * bool(row["missed"])
            notes += [f"{row['rounds']} round"] * (row["rounds"] < one["rounds"])
            spread = f"{figure(row['lowest'])} to {figure(row['highest'])}" + "".join(f" ({note})" for note in notes)
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
            parts.append(f"| {name} | {figure(row['average'])} | {spread} | {ratio} |")
        parts.append("")
    return "\n".join([*parts, ", ".join(f"{key} {value}" for key, value in result["setting"].items()), ""])


def draw(result: dict[str, Any], path: Path) -> None:
    """Speeds beside the floor's, and accuracy over seconds of training."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 3.8), layout="constrained")
    bars, digits, images = picture.subplots(1, 3, width_ratios=[1.3, 1, 1])
    place, ticks = 0.0, []
    for one in result["comparisons"].values():
        if one["title"].startswith("Training"):
            for name, row in one["programs"].items():
                color = "C0" if name == "train.py" else "0.6" if name.startswith("floor") else "0.8"
                bars.barh(place, row["average"] / 1000, color=color)
                ticks.append((place, f"{name.split(' (')[0]}, {one['title'].removeprefix('Training, ')}"))
                place -= 1
            place -= 0.7
    bars.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks], fontsize=6)
    bars.set(xlabel="thousand samples a second (best epoch, median)")
    for axes, names, goal in (
        (digits, ("--recipe fast", "original script"), 96.93),
        (images, ("--recipe fast-cnn", "classic CNN"), 99.0),
    ):
        for color, name in zip(("C0", "0.5"), names, strict=True):
            for number, (seconds, accuracy) in enumerate(result["curves"].get(name, [])):
                shown = [100 * share for share in accuracy]
                axes.plot(seconds, shown, ".-", color=color, alpha=0.7, label=None if number else name)
        axes.axhline(goal, color="black", linewidth=0.6)
        axes.set(xlabel="seconds of training", ylabel="test accuracy (%)", xscale="log", title=f"to {goal:g} %")
        if axes.lines[1:]:
            axes.legend(fontsize=7)
    picture.savefig(path, dpi=150)


def cores_given() -> int:
    """Cores that this process, and so what it starts, may use: `taskset` can make them fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, where Linux tells it."""
    names = [line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0].strip() if names else platform.processor()}, {os.cpu_count()} cores"


def device() -> str:
    """The name of what the programs compute on."""
    from mnist_dist.run import launch, origin

    return origin.processor(launch.start().device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, help="default 5, quick 1")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--only", default="", help="part of the titles of the comparisons to run")
    parser.add_argument("--output", type=Path, default=Path("speed"), help="path of the three files, without suffix")
    args = parser.parse_args()
    place, data_dir = args.output.with_suffix(".json"), args.data_dir.resolve()
    result = json.loads(place.read_text()) if place.exists() else {"comparisons": {}, "curves": {}}
    curves: dict[str, list] = {}
    packages = ("torch", "torchvision", "accelerate", "wandb")
    if args.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # all programs ask for it
    before, now = result.get("setting", {}).get("device", device()), device()
    if before != now:
        sys.exit(f"speed.py: error: {place} is from {before}, and this is {now}: choose another --output")
    result["setting"] = {"processor": processor(), "device": now, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    for title, measure in comparisons(data_dir, args.rounds or (1 if args.quick else 5), args.quick, curves).items():
        if args.only in title:
            result["comparisons"][title] = measure()
            result["curves"] |= curves
            place.write_text(json.dumps(result, indent=1) + "\n")  # an hour's work is not lost with its last minute
    place.with_suffix(".md").write_text(markdown(result))
    draw(result, place.with_suffix(".png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
