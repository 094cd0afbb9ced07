"""The programs that speed.py compares: whole processes, with their seconds and their memory."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from common import ROOT, torchrun

FIRST_UPDATE = """
import os
import train
from mnist_dist.core import register_hook
register_hook("update", lambda accelerator: os._exit(0))
train.main()
"""
IMPORTS = "import torch, torchvision, accelerate"
DIGITS = 60_000  # in an epoch


@dataclass
class Run:
    """A training that has ended.

    Attributes:
        epoch_seconds, test_accuracy: of each epoch.
        wall: seconds from the process's start to its end.
        peak: MiB of resident memory.
    """

    epoch_seconds: list[float]
    test_accuracy: list[float]
    wall: float
    peak: float

    @property
    def speed(self) -> float:
        """Samples a second of the best epoch."""
        return DIGITS / min(self.epoch_seconds)

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds of training to the first epoch that reaches an accuracy; None if none does."""
        sums = accumulate(self.epoch_seconds)
        for seconds, reached in zip(sums, self.test_accuracy, strict=True):
            if reached >= accuracy:
                return seconds
        return None


@dataclass
class Ended:
    """A process that has ended: its standard output, its seconds, and its peak memory in MiB."""

    output: str
    wall: float
    peak: float


def drain(terminal: int) -> None:
    """Read what a program writes to a terminal until it has ended, which Linux says by an error."""
    with (
        os.fdopen(terminal, "rb") as screen,
        contextlib.suppress(OSError),
    ):
        while screen.read1():
            pass


def run(command: list[str]) -> Ended:
    """Run a process to its end; it sees a terminal as standard error, so progress bars are on."""
    ours, terminal = os.openpty()
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=terminal, cwd=ROOT)
        os.close(terminal)
        threading.Thread(target=drain, args=(ours,)).start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        if status:
            words = " ".join(command)
            raise SystemExit(f"speed.py: error: this failed, try it by itself: {words}")
        output.seek(0)
        return Ended(output.read(), wall, usage.ru_maxrss / 1024)


def as_flags(values: dict[str, Any]) -> list[str]:
    """The words of a command line for flags by name."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def run_baseline(name: str, data_dir: Path, processes: int = 1, **flags: Any) -> Run:
    """Run one of the programs of baselines.py."""
    script = str(ROOT / "benchmarks" / "baselines.py")
    command = [
        *torchrun(processes),
        script,
        name,
        f"--data-dir={data_dir}",
    ]
    ended = run([*command, *as_flags(flags)])
    found = json.loads(ended.output.splitlines()[-1])
    return Run(**found, wall=ended.wall, peak=ended.peak)


def run_train(data_dir: Path, processes: int = 1, words: str = "", **flags: Any) -> Run:
    """Run train.py on its shipped default path, with W&B offline and the progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        command = [
            *torchrun(processes),
            "train.py",
            *flags_of_train(data_dir, place),
        ]
        ended = run([*command, *words.split(), *as_flags(flags)])
        epoch_seconds = []
        test_accuracy = []
        for text in (place / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            epoch_seconds.append(DIGITS / line["samples_per_second"])
            test_accuracy.append(line["test_accuracy"])
    return Run(epoch_seconds, test_accuracy, ended.wall, ended.peak)


def flags_of_train(data_dir: Path, place: Path) -> list[str]:
    """The flags of train.py that all of its runs here have."""
    return [
        "--dataset=mnist",
        f"--data-dir={data_dir}",
        "--wandb=offline",
        f"--output-dir={place}",
    ]


def first_update(data_dir: Path) -> float:
    """Seconds from the start of train.py to the end of its first update."""
    with tempfile.TemporaryDirectory() as folder:
        flags = flags_of_train(data_dir, Path(folder) / "run")
        return run([sys.executable, "-c", FIRST_UPDATE, *flags]).wall


def imports_alone() -> float:
    """Seconds that Python takes to start and to import the large packages."""
    return run([sys.executable, "-c", IMPORTS]).wall


def evaluations(data_dir: Path) -> dict[str, Callable[[], float]]:
    """Two ways to classify the test set: functions that give the median of ten, in milliseconds."""
    import torch

    from mnist_dist.run import launch
    from mnist_dist.task import data, networks
    from mnist_dist.task.evaluation import classify, evaluation_loader

    accelerator = launch.start()
    model = networks.build("mlp").eval().to(accelerator.device)
    test = data.load("mnist", data_dir).test.to(accelerator.device)
    loader = accelerator.prepare(evaluation_loader(test))

    def forward() -> None:
        with torch.no_grad():
            model(test.images).argmax(1).cpu()

    def whole() -> None:
        classify(accelerator, model, loader).metrics("test")

    return {
        "evaluation, with loss and counts": lambda: median_milliseconds(whole),
        "one bare forward pass": lambda: median_milliseconds(forward),
    }


def median_milliseconds(function: Callable[[], object]) -> float:
    """The median of ten calls."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)
