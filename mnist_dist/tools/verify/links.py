"""How fast processes reach each other, and how fast each of them is."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

FEW = 8  # processes up to which every pair is measured; beyond, each and the next in a ring
BYTES = 16 * 2**20  # of the all-reduce that gives the bandwidth
MESSAGE = 2**20  # bytes of the message that gives a link's
FLOAT = 4  # bytes of a float32
SLOW = 4.0  # times a good link
PATIENCE = 0.01  # seconds that no good link takes
NOTICED = 1e-3  # seconds: less costs little, and is noise on a busy machine
LONG = 1.0  # seconds, many times the slice that a scheduler gives to a process
FEWEST = 3  # calls in that time

Pair = tuple[int, int]  # numbers of two processes


class Link(NamedTuple):
    """What was measured between two processes.

    Attributes:
        one: the number of the first.
        other: the number of the second.
        latency: seconds there and back.
        bandwidth: bytes a second.
    """

    one: int
    other: int
    latency: float
    bandwidth: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def average_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Measure a function for at least a second, after one call to warm up.

    Args:
        function: what to measure.
        device: where it works.

    Returns:
        Seconds that a call takes on average.
    """
    function()
    synchronize(device)
    calls = 0
    passed = 0.0
    begin = time.perf_counter()
    while passed < LONG or calls < FEWEST:
        function()
        synchronize(device)
        calls += 1
        passed = time.perf_counter() - begin
    return passed / calls


def median_seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Measure a function.

    Args:
        function: what to measure.
        repeats: how often to call it.
        device: where it works.

    Returns:
        The median of the seconds that a call takes.
    """
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def all_reduce(
    accelerator: Accelerator,
    gather: Callable[[Any], list[Any]],
) -> dict[str, float]:
    """Measure the sum over all processes, which all must call alike.

    Args:
        accelerator: the processes.
        gather: gathers the values of all processes.

    Returns:
        Seconds for one number, and bytes a second for many, of the slowest process.
    """
    device = accelerator.device
    small = torch.ones(1, device=device)
    large = torch.ones(BYTES // FLOAT, device=device)
    latency = median_seconds(lambda: dist.all_reduce(small), 200, device)
    duration = median_seconds(lambda: dist.all_reduce(large), 5, device)
    return {
        "all_reduce_seconds": max(gather(latency)),
        "all_reduce_bytes_per_second": BYTES / max(gather(duration)),
    }


def measure(accelerator: Accelerator, wait: Callable[[], object]) -> list[Link]:
    """Measure all links, one after the other, which all processes must call alike.

    Args:
        accelerator: the processes.
        wait: waits for all processes.

    Returns:
        The links; the first process has the figures of all.
    """
    device = accelerator.device
    rank = accelerator.process_index
    pairs = pairs_of(accelerator.num_processes)
    table = torch.zeros(len(pairs), 2, device=device)
    for number, pair in enumerate(pairs):
        if rank in pair:
            figures = measure_pair(pair, rank, device)
            if rank == pair[0]:
                table[number] = torch.tensor(figures)
        wait()
    dist.all_reduce(table)
    links = []
    for (one, other), (latency, duration) in zip(pairs, table.tolist(), strict=True):
        bandwidth = 2 * MESSAGE / max(duration, 1e-9)
        links.append(Link(one, other, latency, bandwidth))
    return links


def pairs_of(world: int) -> list[Pair]:
    """Return the processes whose links are measured, two and two.

    Args:
        world: the number of processes.
    """
    ranks = range(world)
    if world > FEW:
        return [(rank, (rank + 1) % world) for rank in ranks]
    return [(one, other) for one in ranks for other in ranks if one < other]


def measure_pair(pair: Pair, rank: int, device: torch.device) -> tuple[float, float]:
    """Measure the link between this process and another one.

    Args:
        pair: both of them.
        rank: this one.
        device: what holds the messages.

    Returns:
        The seconds that a message takes there and back, a small and a large one.
    """
    one, other = pair
    is_first = rank == one
    partner = other if is_first else one
    small = torch.ones(1, device=device)
    large = torch.ones(MESSAGE // FLOAT, device=device)
    send_there_and_back(large, partner, is_first)  # to connect them
    return (
        median_seconds(lambda: send_there_and_back(small, partner, is_first), 10, device),
        median_seconds(lambda: send_there_and_back(large, partner, is_first), 10, device),
    )


def send_there_and_back(message: Tensor, partner: int, is_first: bool) -> None:
    """Send a message to another process, and receive it from there.

    Args:
        message: what to send, and where to receive.
        partner: the number of the other process, which calls this alike.
        is_first: whether this process begins.
    """
    if is_first:
        dist.send(message, partner)
        dist.recv(message, partner)
    else:
        dist.recv(message, partner)
        dist.send(message, partner)


def judge(links: Sequence[Sequence[Any]], nodes: Sequence[str]) -> tuple[bool, str]:
    """Judge whether no link is far slower than a good one of its kind.

    There are two kinds: links within a node, and links between two.

    Args:
        links: all of them, as `Link` or as JSON gives it back.
        nodes: where each process is.

    Returns:
        Whether no link is slow, and the slowest one in words.
    """
    found = [Link(*link) for link in links]
    kinds: dict[bool, list[Link]] = {True: [], False: []}
    for link in found:
        kinds[is_within_node(link, nodes)].append(link)

    def slowness(link: Link) -> float:
        return times_slower(link, kinds[is_within_node(link, nodes)])

    worst = max(found, key=lambda link: (slowness(link), link.latency))
    kind = kinds[is_within_node(worst, nodes)]
    good = figures_in_words(good_latency(kind), good_bandwidth(kind), "us there and back")
    bad = figures_in_words(worst.latency, worst.bandwidth, "us")
    ends = [f"{rank} on {nodes[rank]}" for rank in (worst.one, worst.other)]
    detail = f"{len(found)} of them, {good}; the slowest, {' to '.join(ends)}: {bad}"
    return slowness(worst) <= SLOW, detail


def is_within_node(link: Link, nodes: Sequence[str]) -> bool:
    """Return whether both processes of a link are on one node."""
    return nodes[link.one] == nodes[link.other]


def figures_in_words(latency: float, bandwidth: float, unit: str) -> str:
    """Return what a link takes, in seconds and bytes a second, in words."""
    return f"{1e6 * latency:,.0f} {unit} and {bandwidth / 1e9:.2f} GB/s"


def times_slower(link: Link, kind: Sequence[Link]) -> float:
    """Return how many times slower a link is than a good one; 1 if it is not noticed.

    Args:
        link: the link.
        kind: all links of its kind.
    """
    late = 1.0
    if link.latency > NOTICED:
        late = link.latency / min(good_latency(kind), PATIENCE)
    narrow = 1.0
    if MESSAGE / link.bandwidth > NOTICED:
        narrow = max(good_bandwidth(kind), MESSAGE / PATIENCE) / link.bandwidth
    return max(late, narrow)


# Good is what the best quarter has: a process whose links are all slow must not set the measure.


def good_latency(kind: Sequence[Link]) -> float:
    """Return the seconds there and back of a good one of some links."""
    latencies = sorted(link.latency for link in kind)
    return latencies[len(latencies) // 4]


def good_bandwidth(kind: Sequence[Link]) -> float:
    """Return the bytes a second of a good one of some links."""
    bandwidths = sorted((link.bandwidth for link in kind), reverse=True)
    return bandwidths[len(bandwidths) // 4]
