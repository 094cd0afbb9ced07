"""Two processes on gloo: a hand-written DDP loop, ExactAccelerator with DDP, and with its exchange.

    python benchmarks/ddp.py
    python benchmarks/ddp.py --processes 2 --rounds 1 --least 0.05   (smallest)

The MLP 784-128-64-10 on random images, fused Adam, batch 64 and 512, one thread per process. Three
loops take turns in the same processes:

hand-written: `DistributedDataParallel` and torch's own optimizer, over tensors in memory.
ddp: `ExactAccelerator(ddp=True)`: DDP, with a hook that sums, so that gradients travel during the
    backward pass.
exchange: `ExactAccelerator(ddp=False)`: one exchange after the backward pass, the default on CPUs.

Printed are medians over the rounds of samples/s, and of the ratios within a round to the
hand-written loop.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.utils import set_seed
from common import (
    RESULTS,
    median_ratio,
    one_thread,
    origin_of_result,
    print_table,
    random_digits,
    say_origin,
    torchrun,
    write_result,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator
from mnist_dist.run import launch
from mnist_dist.task import networks

BATCHES = (64, 512)
SAMPLES = 8192
LOOPS = ("hand-written", "ddp", "exchange")
MakeUpdates = Callable[[int], None]


def make_network() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network and its optimizer, the same for all loops and processes."""
    set_seed(0)
    network = networks.build("mlp")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    return network, optimizer


def hand_written(samples: TensorDataset, batch_size: int) -> MakeUpdates:
    """A loop as one would write it by hand: each process works on its part of every batch.

    Returns:
        A function that makes so many updates.
    """
    images, labels = samples.tensors
    network, optimizer = make_network()
    model = DistributedDataParallel(network, gradient_as_bucket_view=True)
    rank = dist.get_rank()
    world = dist.get_world_size()
    own_size = batch_size // world

    def make_updates(count: int) -> None:
        made = 0
        epoch = 0
        while made < count:
            generator = torch.Generator().manual_seed(epoch)
            order = torch.randperm(len(labels), generator=generator)[rank::world]
            for index in order.split(own_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[index]), labels[index])
                loss.backward()
                optimizer.step()
                made += 1
                if made == count:
                    break
            epoch += 1

    return make_updates


def exact(samples: TensorDataset, batch_size: int, *, ddp: bool) -> MakeUpdates:
    """The loop of Accelerate's documentation on `ExactAccelerator`.

    Returns:
        A function that makes so many updates.
    """
    accelerator = ExactAccelerator(cpu=True, ddp=ddp)
    network, optimizer = make_network()
    loader = DataLoader(samples, batch_size=batch_size, shuffle=True)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)

    def make_updates(count: int) -> None:
        made = 0
        while made < count:
            for images, labels in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                made += 1
                if made == count:
                    break

    return make_updates


def make_loop(name: str, samples: TensorDataset, batch_size: int) -> MakeUpdates:
    """The loop of that name."""
    if name == "hand-written":
        return hand_written(samples, batch_size)
    return exact(samples, batch_size, ddp=name == "ddp")


def seconds_of(make_updates: MakeUpdates, count: int) -> float:
    """What so many updates take, from when all processes are ready until all are done."""
    dist.barrier()
    begin = time.perf_counter()
    make_updates(count)
    dist.barrier()
    return time.perf_counter() - begin


def agree_on_count(seconds: float, least: float) -> int:
    """How many updates take so many seconds at least, the same number on all processes."""
    count = torch.tensor(max(10, int(least / seconds)))
    dist.broadcast(count, src=0)
    return int(count)


def worker(args: argparse.Namespace) -> None:
    """Be one process; the first writes the samples/s of each batch size and loop, by round."""
    accelerator = launch.start(cpu=True, mixed_precision="no")
    samples = random_digits(SAMPLES)
    found: dict[str, dict[str, list[float]]] = {}
    for batch_size in BATCHES:
        loops = {}
        counts = {}
        for name in LOOPS:
            loop = make_loop(name, samples, batch_size)
            loop(3)  # to be warm
            each = seconds_of(loop, 10) / 10
            counts[name] = agree_on_count(each, args.least)
            loops[name] = loop
        speeds: dict[str, list[float]] = {name: [] for name in LOOPS}
        for _ in range(args.rounds):
            for name, loop in loops.items():
                seconds = seconds_of(loop, counts[name])
                speeds[name].append(counts[name] * batch_size / seconds)
        found[str(batch_size)] = speeds
    if accelerator.is_main_process:
        args.worker.write_text(json.dumps(found))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What the processes find, with a thread each."""
    with tempfile.NamedTemporaryFile() as file:
        command = [*torchrun(args.processes), __file__, "--worker", file.name]
        command += ["--rounds", str(args.rounds), "--least", str(args.least)]
        subprocess.run(command, check=True, env=one_thread())
        return json.loads(Path(file.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2, help="at least 2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--least", type=float, default=1.0, help="seconds a measurement")
    parser.add_argument("--output", type=Path, default=RESULTS / "ddp.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        launch.run(lambda: worker(args), "ddp.py")
    if args.processes < 2:
        parser.error("--processes: DDP needs at least 2")
    result = origin_of_result()
    say_origin(result)
    found = measure(args)
    rows = []
    for batch_size, speeds in found.items():
        for name in LOOPS:
            middle = statistics.median(speeds[name])
            spread = f"{min(speeds[name]):,.0f} to {max(speeds[name]):,.0f}"
            ratio = median_ratio(speeds[name], speeds["hand-written"])
            rows.append([name, batch_size, f"{middle:,.0f}", spread, f"{ratio:.2f}"])
    columns = ["loop", "batch", "samples/s", "range", "ratio to hand-written"]
    print_table(columns, rows)
    result |= {
        "processes": args.processes,
        "rounds": args.rounds,
        "unit": "samples/s by round, by batch size and loop",
        "speeds": found,
    }
    write_result(args.output, result)


if __name__ == "__main__":
    main()
