"""Threads a process on the CPU, alone and beside programs that keep two cores busy: why the default is half the cores.

    python benchmarks/threads.py --rounds 5

Samples a second of the update, on random pixels: medians over rounds, each of which measures everything in turn.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1]))
from mnist_dist.core import GlobalBatches, Training
from mnist_dist.digits.config import TrainConfig
from mnist_dist.task import networks
from mnist_dist.task.objective import adam, loss_of

BESIDE = 2  # busy loops


def speed(training: Training, batches: GlobalBatches, threads: int, seconds: float) -> float:
    """Samples a second of one training with so many threads."""
    torch.set_num_threads(threads)
    rounds = (batch for epoch in range(1_000_000) for batch in batches.epoch(epoch))
    training.update(next(rounds))
    samples, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        training.update(batch := next(rounds))
        samples += batch.size
    training.latest.clear()
    return samples / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    accelerator, cores = Accelerator(cpu=True), torch.get_num_threads()
    data = torch.randn(10_000, 1, 28, 28), torch.randint(10, (10_000,))
    trainings = {}
    for model in ("mlp", "cnn"):
        for batch_size in (64, 512):
            config, network = TrainConfig(model=model, batch_size=batch_size), networks.build(model)
            training = Training(accelerator, network, adam(network, config), loss_of(network, config))
            trainings[model, batch_size] = training, GlobalBatches(data, batch_size, accelerator, seed=0)
    found: dict[tuple, list[float]] = {}
    for _ in range(args.rounds):
        for beside in (0, BESIDE):
            loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
            for (model, batch_size), parts in trainings.items():
                for threads in sorted({1, max(1, cores // 2), cores}):
                    found.setdefault((model, batch_size, beside, threads), []).append(
                        speed(*parts, threads, args.seconds)
                    )
            for loop in loops:
                loop.kill()
                loop.wait()
    print(f"{cores} cores, torch {torch.__version__}, {args.rounds} rounds\n")
    print("| model | batch | busy loops beside | threads | samples/s | range |\n|---|---:|---:|---:|---:|---:|")
    for (model, batch_size, beside, threads), speeds in sorted(found.items(), reverse=True):
        middle, least, most = statistics.median(speeds), min(speeds), max(speeds)
        print(f"| {model} | {batch_size} | {beside} | {threads} | {middle:,.0f} | {least:,.0f} to {most:,.0f} |")


if __name__ == "__main__":
    main()
