"""How fast processes reach each other, and how fast each of them is."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

FEW = 8  # processes up to which every pair is measured; beyond, each and the next in a ring
BYTES = 16 * 2**20  # of the all-reduce that gives the bandwidth
MESSAGE = 2**20  # bytes, of the message that gives a link's
SLOW = 4.0  # times a good link
PATIENCE = 0.01  # seconds that no good link takes
NOTICED = 1e-3  # seconds: less costs little, and is noise on a busy machine
LONG = 1.0  # seconds, many times the slice that a scheduler gives to a process

Link = tuple[int, int, float, float]  # two processes, seconds there and back, bytes a second


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def long_enough(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes on average over at least a second, after one to warm up."""
    function()
    synchronize(device)
    calls, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < LONG or calls < 3:
        function()
        synchronize(device)
        calls += 1
    return passed / calls


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The median of so many calls."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def all_reduce(accelerator: Accelerator, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
    """Seconds for one number, and bytes a second for many, of the slowest process."""
    device = accelerator.device
    small, large = torch.ones(1, device=device), torch.ones(BYTES // 4, device=device)
    latency = seconds(lambda: dist.all_reduce(small), 200, device)
    duration = seconds(lambda: dist.all_reduce(large), 5, device)
    return {
        "all_reduce_seconds": max(gather(latency)),
        "all_reduce_bytes_per_second": BYTES / max(gather(duration)),
    }


def measure(accelerator: Accelerator, meet: Callable[[], object]) -> list[Link]:
    """All links, one after the other; the first process has the figures of all.

    Args:
        meet: waits for all processes.
    """
    world, rank, device = accelerator.num_processes, accelerator.process_index, accelerator.device
    every = [(one, other) for one in range(world) for other in range(one + 1, world)]
    pairs = every if world <= FEW else [(one, (one + 1) % world) for one in range(world)]
    table = torch.zeros(len(pairs), 2, device=device)
    small, large = torch.ones(1, device=device), torch.ones(MESSAGE // 4, device=device)
    for number, (one, other) in enumerate(pairs):
        if rank in (one, other):

            def there_and_back(message: Tensor, first: bool = rank == one, to: int = one + other - rank) -> None:
                for sends in (first, not first):
                    if sends:
                        dist.send(message, to)
                    else:
                        dist.recv(message, to)

            there_and_back(large)  # to connect them
            found = [seconds(lambda: there_and_back(m), 10, device) for m in (small, large)]  # noqa: B023
            if rank == one:
                table[number] = torch.tensor(found)
        meet()
    dist.all_reduce(table)
    return [
        (*pair, latency, 2 * MESSAGE / max(both, 1e-9))
        for pair, (latency, both) in zip(pairs, table.tolist(), strict=True)
    ]


def judge(found: list[Link], nodes: list[str]) -> tuple[bool, str]:
    """Whether no link is far slower than a good one of its kind (within a node, between two); the slowest, in words.

    Args:
        nodes: where each process is.
    """

    def good(link: Link, figure: int) -> float:
        """What the best quarter of its kind has: a process whose links are all slow must not set the measure."""
        alike = [other for other in found if (nodes[other[0]] == nodes[other[1]]) == (nodes[link[0]] == nodes[link[1]])]
        figures = sorted((other[figure] for other in alike), reverse=figure == 3)
        return figures[len(figures) // 4]

    def slowness(link: Link) -> float:
        late = link[2] / min(good(link, 2), PATIENCE) if link[2] > NOTICED else 1.0
        narrow = max(good(link, 3), MESSAGE / PATIENCE) / link[3] if MESSAGE / link[3] > NOTICED else 1.0
        return max(late, narrow)

    worst = max(found, key=lambda link: (slowness(link), link[2]))
    best = good(worst, 2), good(worst, 3)
    detail = f"{len(found)} of them, {1e6 * best[0]:,.0f} us there and back and {best[1] / 1e9:.2f} GB/s; the slowest, "
    detail += f"{worst[0]} on {nodes[worst[0]]} to {worst[1]} on {nodes[worst[1]]}: "
    return slowness(worst) <= SLOW, detail + f"{1e6 * worst[2]:,.0f} us and {worst[3] / 1e9:.2f} GB/s"
