"""Threads a process on the CPU, alone and beside busy programs: why the default is half the cores.

    python benchmarks/threads.py --rounds 5

Samples a second of the update, on random pixels: medians over rounds, each of which measures
everything in turn.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from common import (
    Training,
    origin_of_result,
    print_table,
    random_digits,
    say_origin,
)

from mnist_dist.core import ExactAccelerator
from mnist_dist.digits.config import TrainConfig

BUSY = "while True: pass"
BESIDE = 2  # busy loops
MODELS = ("mlp", "cnn")
BATCHES = (64, 512)


def speed(training: Training, threads: int, seconds: float) -> float:
    """Samples a second of one training with so many threads, over so many seconds."""
    torch.set_num_threads(threads)
    training.make_updates(1)
    updates = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        training.make_updates(10)
        updates += 10
    taken = time.perf_counter() - begin
    return updates * training.config.batch_size / taken


def make_trainings() -> dict[tuple[str, int], Training]:
    """A training for each network and batch size."""
    samples = random_digits(10_000)
    trainings = {}
    for model in MODELS:
        for batch_size in BATCHES:
            config = TrainConfig(model=model, batch_size=batch_size)
            accelerator = ExactAccelerator(cpu=True)
            trainings[model, batch_size] = Training(accelerator, config, samples)
    return trainings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    cores = torch.get_num_threads()
    trainings = make_trainings()
    found: dict[tuple[str, int, int, int], list[float]] = {}
    for _ in range(args.rounds):
        for beside in (0, BESIDE):
            loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(beside)]
            for (model, batch_size), training in trainings.items():
                for threads in sorted({1, max(1, cores // 2), cores}):
                    key = (model, batch_size, beside, threads)
                    found.setdefault(key, []).append(speed(training, threads, args.seconds))
            for loop in loops:
                loop.kill()
                loop.wait()
    say_origin(origin_of_result())
    print(f"{cores} cores, {args.rounds} rounds\n")
    rows = []
    for key, speeds in sorted(found.items(), reverse=True):
        model, batch_size, beside, threads = key
        middle = f"{statistics.median(speeds):,.0f}"
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        rows.append([model, str(batch_size), str(beside), str(threads), middle, spread])
    columns = [
        "model",
        "batch",
        "busy loops beside",
        "threads",
        "samples/s",
        "range",
    ]
    print_table(columns, rows)


if __name__ == "__main__":
    main()
