"""Messages between processes over gloo, each direction on a connection of its own.

gloo's thread retries a connection's lock in a loop while another thread holds it (`handleEvents` in
its tcp/pair.cc), so a connection that has to send and receive at once wastes time on both sides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Up to this many processes, each sends what it has to every other one: latency dominates then, and
# this takes the fewest messages in sequence.
FEW_PROCESSES = 4
PATIENCE = timedelta(minutes=15)  # timeout for a process that does not respond


class Connections:
    """Two connections between every pair of processes: one up the ranks, and one down.

    Every process must create one at the same time.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.upwards: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.downwards: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    def send(self, tensor: Tensor, rank: int) -> Any:
        """Begin to send a tensor; the tensor must not change before the returned message is done."""
        return dist.isend(tensor, rank, self.upwards if rank > self.rank else self.downwards)

    def receive(self, tensor: Tensor, rank: int) -> Any:
        """Begin to receive into a tensor, which holds the data when the returned message is done."""
        with not_profiled():
            return dist.irecv(tensor, rank, self.upwards if rank < self.rank else self.downwards)


@contextmanager
def not_profiled() -> Iterator[None]:
    """Keep torch's profiler from watching messages that may arrive when it has ended.

    It would then write into memory that has been freed (torch 2.14).
    """
    torch.autograd._enable_record_function(False)
    try:
        yield
    finally:
        torch.autograd._enable_record_function(True)


class SmallGather:
    """Gathers small tensors from a few processes, which layers need in the midst of a model's forward pass.

    Receives are posted before the other processes can send. Otherwise a message that arrives while
    its receive is being posted may cost both sides a time slice, 3 to 4 ms. A receive must know its
    length, so all messages have the same one, and float64 holds any other type without rounding.

    Every process must create one at the same time.
    """

    LONGEST = 4096  # elements

    def __init__(self) -> None:
        self.connections = Connections()
        ranks = range(self.connections.world)
        # The tensors may be made in an evaluation, and are then used in training.
        with torch.inference_mode(False):
            self.sent = torch.zeros(self.LONGEST, dtype=torch.float64)
            self.received = {
                rank: torch.zeros_like(self.sent) for rank in ranks if rank != self.connections.rank
            }
        self.expect()

    def expect(self) -> None:
        """Post the receives for what the others will send next."""
        self.receives = [
            self.connections.receive(buffer, rank) for rank, buffer in self.received.items()
        ]

    def gather(self, own: Tensor) -> Tensor:
        """The tensors of all processes.

        Args:
            own: (K,) that of this process, K up to LONGEST.

        Returns:
            (W, K), in the order of the ranks.
        """
        count = len(own)
        self.sent[:count] = own
        messages = [self.connections.send(self.sent, rank) for rank in self.received]
        for message in messages + self.receives:
            message.wait()
        buffers = self.received | {self.connections.rank: self.sent}
        tensors = [buffers[rank][:count].to(own.dtype) for rank in sorted(buffers)]
        gathered = torch.stack(tensors)
        self.expect()
        return gathered


def gather_from_processes(own: Tensor) -> Tensor:
    """Small tensors of all processes, by the fastest way there is.

    Args:
        own: (K,) that of this process.

    Returns:
        (W, K), in the order of the ranks, the same on every process.
    """
    if not dist.is_initialized():
        return own[None]
    few = dist.get_world_size() <= FEW_PROCESSES
    if own.is_cpu and few and len(own) <= SmallGather.LONGEST:
        return small_gather(dist.group.WORLD).gather(own)
    tensors = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(tensors, own)
    return torch.stack(tensors)


@lru_cache(maxsize=1)
def small_gather(_processes: Any) -> SmallGather:
    """That of these processes, made when it is first needed."""
    return SmallGather()
