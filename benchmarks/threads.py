"""Threads a process on the CPU, alone and beside busy programs, and how long they spin while they wait.

    python benchmarks/threads.py --rounds 3
    taskset -c 0 python benchmarks/threads.py --rounds 3      (on one core)

Samples per second of the update, on random pixels: medians over rounds, each of which measures
everything in turn. GNU OpenMP reads how often a waiting thread looks before it sleeps
(GOMP_SPINCOUNT) when it is loaded, so each number has a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from common import (
    Training,
    cores_given,
    origin_of_result,
    print_table,
    random_digits,
    say_origin,
)

from mnist_dist.core import ExactAccelerator
from mnist_dist.digits.config import TrainConfig
from mnist_dist.task import networks

BUSY = "while True: pass"
BESIDE = 2  # busy loops
MODELS: tuple[networks.Name, ...] = ("mlp", "cnn")
BATCHES = (64, 512)
SPINS = ("default", "1000", "10000", "100000")

Key = tuple[str, int, int, str, int]  # the model, batch size, busy loops, spins and threads


def speed(training: Training, threads: int, seconds: float) -> float:
    """Samples per second of one training with so many threads, over so many seconds."""
    torch.set_num_threads(threads)
    training.make_updates(1)
    updates = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        training.make_updates(10)
        updates += 10
    taken = time.perf_counter() - begin
    return updates * training.config.batch_size / taken


def measure(seconds: float) -> None:
    """Print the speed of each network and batch size on half of the cores and on all, as JSON."""
    samples = random_digits(10_000)
    cores = cores_given()
    found = []
    for model in MODELS:
        for batch_size in BATCHES:
            config = TrainConfig(model=model, batch_size=batch_size)
            training = Training(ExactAccelerator(cpu=True), config, samples)
            for threads in sorted({max(1, cores // 2), cores}):
                found.append([model, batch_size, threads, speed(training, threads, seconds)])
    print(json.dumps(found))


def measure_with(spins: str, seconds: float) -> list[list]:
    """What `measure` prints in a process whose threads spin so often."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spins != "default":
        environment["GOMP_SPINCOUNT"] = spins
    command = [sys.executable, __file__, "--measure", "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_round(seconds: float) -> dict[Key, float]:
    """Everything once."""
    found: dict[Key, float] = {}
    for beside in (0, BESIDE):
        loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(beside)]
        for spins in SPINS:
            for model, batch_size, threads, samples in measure_with(spins, seconds):
                found[model, batch_size, beside, spins, threads] = samples
        for loop in loops:
            loop.kill()
            loop.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.seconds)
        return
    rounds = [measure_round(args.seconds) for _ in range(args.rounds)]
    say_origin(origin_of_result())
    print(f"{cores_given()} cores, {args.rounds} rounds\n")
    rows = []
    for key in sorted(rounds[0], reverse=True):
        model, batch_size, beside, spins, threads = key
        speeds = [one[key] for one in rounds]
        middle = f"{statistics.median(speeds):,.0f}"
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        rows.append([model, str(batch_size), str(beside), str(threads), spins, middle, spread])
    columns = [
        "model",
        "batch",
        "busy loops beside",
        "threads",
        "GOMP_SPINCOUNT",
        "samples/s",
        "range",
    ]
    print_table(columns, rows)


if __name__ == "__main__":
    main()
