"""What a step costs on 1 to 4 processes, how well a simple model foretells it, and what is sent.

    python benchmarks/scaling.py --output benchmarks/results/scaling-cpu.json
    python benchmarks/scaling.py --bytes   (bytes sent by V on 2 to 16 processes: only counted)
    python benchmarks/scaling.py --gpus    (nothing measured: the model with assumed constants)

The model: a step of a global batch B on W processes takes

    s (a + c B / W) + r(W),    s = max(1, W / cores)

with a, the cost of a step without samples, and c, that of a sample, fitted to one process alone;
and r(W), what it costs W processes to agree, which is what their step at the smallest batch takes
beyond the rest. Their steps at the larger batches are not used in the fit: they are the check.
Summing the gradient, which is a part of r(W), is also timed alone.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Training,
    one_thread,
    origin_of_result,
    print_table,
    random_digits,
    say_origin,
    torchrun,
    write_result,
)
from traffic import count_table

from mnist_dist.core import ExactAccelerator
from mnist_dist.core.exchange import GradientSum
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch

PROCESSES = (1, 2, 3, 4)
BATCHES = (64, 256, 1024, 4096)
STEPS = 60
SUMS = 200
PARAMETERS = 109_386

COUNTED_PROCESSES = (2, 3, 4, 8, 16)
COUNTED_VIRTUAL = (0, 2, 4, 8, 16)

# Assumed, not measured: there was no GPU.
GPU_STEP_EAGER = 300e-6  # seconds a step without samples: some 60 kernels at 5 us
GPU_STEP_CAPTURED = 40e-6  # the same if all kernels are launched at once
GPU_SAMPLE = 6 * PARAMETERS / 6e12  # seconds: forward and backward at a tenth of 60 TFLOP/s
GPU_HOP = 10e-6  # seconds a level of the all-reduce's tree
GPU_BANDWIDTH = 25e9  # bytes a second between nodes


def seconds_of_steps(training: Training, steps: int) -> list[float]:
    """What each of so many updates takes, after ten that do not count."""
    times: list[float] = []
    while len(times) < steps + 10:
        begin = time.perf_counter()
        for images, labels in training.loader:
            training.learn(images, labels)
            now = time.perf_counter()
            times.append(now - begin)
            begin = now
        training.train_loss.reset()
    return times[10:]


def seconds_of_sums(accelerator: ExactAccelerator) -> list[float]:
    """What it takes each time to sum a gradient over all processes."""
    gradient = torch.ones(PARAMETERS)
    gradient_sum = GradientSum([gradient], accelerator.sharing)
    share = accelerator.process_index
    times = []
    for _ in range(SUMS):
        own = torch.ones(PARAMETERS)
        begin = time.perf_counter()
        gradient_sum.add(share, [own], complete=True)
        gradient_sum.total()
        times.append(time.perf_counter() - begin)
    return times


def worker(path: Path, steps: int) -> None:
    """Be one process: measure the median seconds of a step at each batch, and of summing."""
    found = {}
    samples = random_digits(8 * max(BATCHES))
    for size in BATCHES:
        accelerator = launch.start(cpu=True, mixed_precision="no")
        training = Training(accelerator, TrainConfig(batch_size=size), samples)
        times = seconds_of_steps(training, steps)
        found[f"step-{size}"] = statistics.median(times)
    if accelerator.num_processes > 1:
        found["average"] = statistics.median(seconds_of_sums(accelerator))
    if accelerator.is_main_process:
        path.write_text(json.dumps(found))


def measure(processes: int, path: Path, steps: int) -> dict[str, float]:
    """What so many processes, with a thread each, find."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [*torchrun(processes), __file__]
    command += ["--worker", str(path), "--steps", str(steps)]
    subprocess.run(command, check=True, env=one_thread())
    return json.loads(path.read_text())


def fit(measured: dict[str, float]) -> tuple[float, float]:
    """Fit the model to one process.

    Returns:
        a and c: the seconds of a step without samples, and those of a sample.
    """
    sizes = np.array(BATCHES)
    seconds = np.array([measured[f"step-{size}"] for size in BATCHES])
    table = np.stack([np.ones(len(sizes)), sizes], axis=1)
    # Relative errors count, so each point is divided by what was measured.
    relative = table / seconds[:, None]
    solution, *_ = np.linalg.lstsq(relative, np.ones(len(sizes)), rcond=None)
    per_step, per_sample = solution
    return float(per_step), float(per_sample)


def model(found: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Fit the model, foretell every step, and print how well it does.

    Args:
        found: for each number of processes the medians that were measured.

    Returns:
        The constants, and a point for each number of processes and each batch.
    """
    cores = os.cpu_count() or 1
    per_step, per_sample = fit(found[1])
    print(f"a = {1e6 * per_step:.0f} us a step, c = {1e6 * per_sample:.2f} us a sample")
    agree = {}
    points = []
    for world, measured in found.items():
        slowed = max(1, world / cores)
        apart = {}
        for size in BATCHES:
            apart[size] = slowed * (per_step + per_sample * size / world)
        agreeing = 0.0
        if world > 1:
            agreeing = measured[f"step-{BATCHES[0]}"] - apart[BATCHES[0]]
            agree[world] = agreeing
            alone = 1e6 * measured["average"]
            print(f"r({world}) = {1e6 * agreeing:.0f} us; summing alone takes {alone:.0f}")
        for size in BATCHES:
            taken = measured[f"step-{size}"]
            foretold = apart[size] + agreeing
            points.append(
                {
                    "processes": world,
                    "batch": size,
                    "measured": taken,
                    "model": foretold,
                }
            )
            error = 100 * (foretold / taken - 1)
            row = f"W={world} B={size:5d}  {1e6 * taken:7.0f} us"
            print(f"{row}, model {1e6 * foretold:7.0f} us ({error:+.0f}%)")
    return {
        "seconds_a_step": per_step,
        "seconds_a_sample": per_sample,
        "agree_seconds": agree,
        "average_seconds": {w: found[w]["average"] for w in found if w > 1},
        "points": points,
    }


def foretell(world: int, size: float, step: float) -> float:
    """Seconds of a step on GPUs, by the same model with the assumed constants."""
    levels = GPU_HOP * math.log2(world)
    gradient = 4 * PARAMETERS
    sent = 2 * (world - 1) / world * gradient
    return step + GPU_SAMPLE * size / world + levels + sent / GPU_BANDWIDTH


def foretell_gpus() -> None:
    """Print the tables of docs/scaling.md."""
    for name, step in (("eager", GPU_STEP_EAGER), ("captured", GPU_STEP_CAPTURED)):
        rows = []
        for world in (1, 8, 64, 512, 4096):
            row = [f"{world:,}"]
            for size in (64, 4096):
                seconds = foretell(world, size, step)
                faster = foretell(1, size, step) / seconds
                row += [f"{1e6 * seconds:,.0f}", f"{faster:.2f}"]
            # t(1, B) = W t(W, B) / 2, solved for B
            half = (world * foretell(world, 0, step) - 2 * step) / GPU_SAMPLE
            row.append(f"{half:,.0f}" if world > 1 else "")
            rows.append(row)
        columns = [
            f"GPUs ({name})",
            "us a step at 64",
            "speed-up",
            "us a step at 4,096",
            "speed-up",
            "half of ideal at batch",
        ]
        print_table(columns, rows)


def print_bytes(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the bytes that a process sends for an update, a row for each number of processes."""
    rows = []
    for world, counted in table.items():
        row = [world]
        for virtual in COUNTED_VIRTUAL:
            found = counted.get(str(virtual))
            row.append(f"{found['in all']:,.0f}" if found else "")
        rows.append(row)
    columns = ["processes", "bytes an update, no V"]
    columns += [f"V = {virtual}" for virtual in COUNTED_VIRTUAL[1:]]
    print_table(columns, rows)


def medians(
    rounds: list[dict[int, dict[str, float]]],
) -> dict[int, dict[str, float]]:
    """The medians over the rounds, for each number of processes and each thing measured."""
    found: dict[int, dict[str, float]] = {}
    for world, first in rounds[0].items():
        found[world] = {}
        for name in first:
            values = [one[world][name] for one in rounds]
            found[world][name] = statistics.median(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("scaling.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="updates that are timed")
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--gpus", action="store_true", help="print the model's tables for GPUs")
    parser.add_argument("--bytes", action="store_true", help="only count what is sent")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        launch.run(lambda: worker(args.worker, args.steps), "scaling.py")
    if args.gpus:
        foretell_gpus()
        return
    result = origin_of_result()
    say_origin(result)
    if args.bytes:
        earlier = json.loads(args.output.read_text()) if args.output.exists() else {}
        table = count_table(COUNTED_PROCESSES, COUNTED_VIRTUAL)
        print_bytes(table)
        counted = result | {
            "batch": 64,
            "parameters": PARAMETERS,
            "by W and V": table,
        }
        write_result(args.output, earlier | {"bytes": counted})
        return
    rounds = []
    for _ in range(args.rounds):
        one = {}
        for world in args.processes:
            one[world] = measure(world, args.output, args.steps)
        rounds.append(one)
    result["rounds"] = args.rounds
    result |= model(medians(rounds))
    write_result(args.output, result)


if __name__ == "__main__":
    main()
