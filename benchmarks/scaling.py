"""Measures what a step costs on 1 to 4 processes, and how well a simple model of it foretells the points left out.

    python benchmarks/scaling.py --output benchmarks/results/scaling-cpu.json
    python benchmarks/scaling.py --gpus           (nothing measured: the model read with assumed constants)

The model: a step of a global batch B on W processes takes

    s (a + c B / W) + r(W),    s = max(1, W / cores)

with a, the cost of a step without samples, and c, that of a sample, fitted to one process alone; and r(W), what it
costs W processes to agree, which is what their step at the smallest batch takes beyond the rest. Their steps at the
larger batches are not used in the fit: they are the check. Averaging the gradient, which is a part of r(W), is also
timed alone.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist.core import GlobalBatches, Training
from mnist_dist.core.batches import Sharing
from mnist_dist.core.gradients import GradientSum
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.launch import run, start
from mnist_dist.task import networks
from mnist_dist.task.objective import adam, loss_of

PROCESSES, BATCHES, STEPS = (1, 2, 3, 4), (64, 256, 1024, 4096), 60
PARAMETERS = 109_386
# Assumed, not measured: there was no GPU.
GPU_STEP_EAGER, GPU_STEP_CAPTURED = 300e-6, 40e-6  # seconds a step without samples: some 60 kernels at 5 us; a graph
GPU_SAMPLE = 6 * PARAMETERS / 6e12  # seconds a sample: forward and backward at a tenth of 60 TFLOP/s
GPU_HOP, GPU_BANDWIDTH = 10e-6, 25e9  # seconds a level of the all-reduce's tree; bytes a second between nodes


def worker(path: Path) -> None:
    """One process: the median seconds of a step at each batch, and of averaging the gradient."""
    accelerator = start(cpu=True, mixed_precision="no")
    torch.manual_seed(0)  # the same samples and weights on all processes
    samples = torch.randn(8 * max(BATCHES), 1, 28, 28), torch.randint(0, 10, (8 * max(BATCHES),))
    found = {}
    for size in BATCHES:
        network, config, times = networks.build("mlp"), TrainConfig(), list[float]()
        training = Training(accelerator, network, adam(network, config), loss_of(network, config))
        batches = GlobalBatches(samples, size, accelerator, seed=0)
        while len(times) < STEPS + 10:
            for batch in batches.epoch():
                begin = time.perf_counter()
                training.update(batch)
                times.append(time.perf_counter() - begin)
        found[f"step-{size}"] = statistics.median(times[10:])
    if accelerator.num_processes > 1:
        world, rank = accelerator.num_processes, accelerator.process_index
        parameter, times = torch.nn.Parameter(torch.ones(PARAMETERS)), []
        gradients = GradientSum([parameter], Sharing(world, world, rank))
        for _ in range(200):
            parameter.grad = torch.ones(PARAMETERS)
            begin = time.perf_counter()
            gradients.take(rank)
            gradients.finish()
            times.append(time.perf_counter() - begin)
        found["average"] = statistics.median(times)
    if accelerator.is_main_process:
        path.write_text(json.dumps(found))


def measure(processes: int, path: Path) -> dict[str, float]:
    """What so many processes, with a thread each, find."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, __file__, "--worker", str(path)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    return json.loads(path.read_text())


def foretell(world: int, size: float, step: float) -> float:
    """Seconds of a step on GPUs, by the same model with the assumed constants."""
    reduce = GPU_HOP * math.log2(world) + 2 * (world - 1) / world * 4 * PARAMETERS / GPU_BANDWIDTH
    return step + GPU_SAMPLE * size / world + reduce


def foretell_gpus() -> None:
    """Print the tables of docs/scaling.md."""
    for name, step in (("eager", GPU_STEP_EAGER), ("captured", GPU_STEP_CAPTURED)):
        print(
            f"\n| GPUs ({name}) | us a step at 64 | speed-up | us a step at 4,096 | speed-up | half of ideal at batch |"
        )
        print("|---:|---:|---:|---:|---:|---:|")
        for world in (1, 8, 64, 512, 4096):
            cells = [f"{world:,}"]
            for size in (64, 4096):
                seconds = foretell(world, size, step)
                cells += [f"{1e6 * seconds:,.0f}", f"{foretell(1, size, step) / seconds:.2f}"]
            # t(1, B) = W t(W, B) / 2, solved for B
            half = (world * foretell(world, 0, step) - 2 * step) / GPU_SAMPLE
            cells.append(f"{half:,.0f}" if world > 1 else "")
            print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("scaling.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpus", action="store_true", help="print the model's tables for GPUs, measuring nothing")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        run(lambda: worker(args.worker), "scaling.py")
    if args.gpus:
        foretell_gpus()
        return
    rounds = [{world: measure(world, args.output) for world in PROCESSES} for _ in range(args.rounds)]
    found = {
        world: {name: statistics.median(one[world][name] for one in rounds) for name in rounds[0][world]}
        for world in PROCESSES
    }
    # Relative errors count, so each point is divided by what was measured.
    measured = np.array([found[1][f"step-{size}"] for size in BATCHES])
    table = np.stack([np.ones(len(BATCHES)), np.array(BATCHES)], axis=1)
    (per_step, per_sample), *_ = np.linalg.lstsq(table / measured[:, None], np.ones(len(BATCHES)), rcond=None)
    cores, agree, points = os.cpu_count() or 1, {}, []
    print(f"a = {1e6 * per_step:.0f} us a step, c = {1e6 * per_sample:.2f} us a sample")
    for world in PROCESSES:
        apart = {size: max(1, world / cores) * (per_step + per_sample * size / world) for size in BATCHES}
        if world > 1:
            agree[world] = found[world][f"step-{BATCHES[0]}"] - apart[BATCHES[0]]
            average = found[world]["average"]
            print(f"r({world}) = {1e6 * agree[world]:.0f} us, of which averaging alone takes {1e6 * average:.0f}")
        for size in BATCHES:
            foretold = apart[size] + agree.get(world, 0.0)
            point = {"processes": world, "batch": size, "measured": found[world][f"step-{size}"], "model": foretold}
            points.append(point)
            error = 100 * (foretold / point["measured"] - 1)
            taken, said = 1e6 * point["measured"], 1e6 * foretold
            print(f"W={world} B={size:5d}  {taken:7.0f} us, model {said:7.0f} us ({error:+.0f}%)")
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {cores} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rounds": args.rounds,
        "seconds_a_step": per_step,
        "seconds_a_sample": per_sample,
        "agree_seconds": agree,
        "average_seconds": {world: found[world]["average"] for world in PROCESSES if world > 1},
        "points": points,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
