"""Faults planted into the core, each of which another number of processes must show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from exact_cases import dropout, normalized, sentences, tokens
from exact_training import train
from torch import Tensor

from mnist_dist.core import (
    ExactAccelerator,
    MicroBatch,
    batch_norm,
    buffers,
    exchange,
    guard,
    loader,
    update,
)
from mnist_dist.core import accelerator as accelerator_module
from mnist_dist.core.tree import ShareRange

Fault = Callable[[], Any]  # a context in which the core has it


# In what a loss counts for. Each of these trains a case by itself.
@contextmanager
def counting(count: Callable[[MicroBatch], Any]) -> Iterator[None]:
    """`backward` takes something else for the terms of a loss."""
    right = ExactAccelerator.backward

    def wrong(self: ExactAccelerator, loss: Tensor, **_: Any) -> None:
        right(self, loss, count(self.micro_batch))

    with patch.object(ExactAccelerator, "backward", wrong):
        yield


def mean_of_means() -> dict[str, Any]:
    """The mean over the tokens of each process, averaged over the processes, as in most training scripts."""
    with counting(lambda _: 1):
        return train(sentences())


def rows_for_tokens() -> dict[str, Any]:
    """The mean over the tokens of each process, weighed by its rows."""
    with counting(len):
        return train(sentences())


def processes_weighed_equally() -> dict[str, Any]:
    """The mean over the rows of each process, averaged over the processes (pytorch #67253)."""
    with counting(lambda _: 1):
        return train(tokens())


def own_random_numbers(self: MicroBatch, _: str, *shape: int, normal: bool = False) -> Tensor:
    """`torch.rand` for the rows of a process, as `nn.Dropout` draws, instead of `MicroBatch.rand`."""
    return (torch.randn if normal else torch.rand)(len(self), *shape)


def dropout_drawn_by_every_process() -> dict[str, Any]:
    """Nobody looks whether the model draws, and it does."""
    unseen = patch.object(guard.ForwardGuard, "check", lambda *_: None)
    with unseen, patch.object(MicroBatch, "rand", own_random_numbers):
        return train(dropout())


def dropout_drawn_by_every_process_is_refused() -> dict[str, Any]:
    """The same, and somebody looks."""
    with patch.object(MicroBatch, "rand", own_random_numbers):
        return train(dropout())


def averaged_by_ddp() -> dict[str, Any]:
    """`DistributedDataParallel` averages over processes, as it does without a hook of ours."""

    def average(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        dist.all_reduce(buffer)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(buffer / dist.get_world_size())
        return done

    with patch.object(update, "sum_gradients", average):
        return train(tokens(), ddp=True)


def normalized_by_each_process() -> dict[str, Any]:
    """Batch normalisation over the rows of each process, with running statistics that are the same everywhere."""

    def of_one(own: Tensor) -> Tensor:
        count = own[-1]
        # A process without rows would be refused, so it gets any statistics.
        return own[None] if count > 0 else torch.full_like(own, 2.0)[None]

    with patch.object(batch_norm, "gather_from_processes", of_one):
        return train(normalized())


IN_CASES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {  # the case that shows each
    "mean of means": ("sentences", mean_of_means),
    "rows for tokens": ("sentences", rows_for_tokens),
    "processes weighed equally": ("tokens", processes_weighed_equally),
    "dropout drawn by every process": ("dropout", dropout_drawn_by_every_process),
    "averaged by DDP": ("tokens", averaged_by_ddp),
    "normalized by each process": ("batch-norm", normalized_by_each_process),
}


# In what makes the bits the same. The script of a user shows these.
def buffers_not_put_back() -> Any:
    """Every share finds the buffers as the one before has left them."""
    return patch.object(buffers, "put", lambda *_: None)


def shares_not_seeded() -> Any:
    """What layers draw goes on from one share to the next."""
    return patch.object(accelerator_module, "seed_generators", lambda *_: None)


def samples_seeded_by_rank() -> Any:
    """What a transform draws for a sample depends on the process that reads it."""
    right = loader.seed_of

    def wrong(*words: Any) -> int:
        own = dist.get_rank() if dist.is_initialized() else 0
        return right(*words, own)

    return patch.object(loader, "seed_of", wrong)


def sum_in_order_of_arrival() -> Any:
    """Every process adds its own sums first, and then those of the others."""

    def wrong(sums: dict[ShareRange, list[Tensor]], first: int, stop: int) -> list[Tensor]:
        total: list[Tensor] = []
        for (begin, end), tensors in sums.items():
            if first <= begin and end <= stop:
                total = list(torch._foreach_add(total, tensors)) if total else tensors
        return total

    return patch.object(exchange, "tree_sum", wrong)


def scheduler_steps_once_a_process() -> Any:
    """As Accelerate's own does."""
    right = accelerator_module.ExactScheduler.step

    def wrong(self: Any, *words: Any) -> None:
        for _ in range(dist.get_world_size() if dist.is_initialized() else 1):
            right(self, *words)

    return patch.object(accelerator_module.ExactScheduler, "step", wrong)


OF_BITS: dict[str, Fault] = {
    "buffers not put back": buffers_not_put_back,
    "shares not seeded": shares_not_seeded,
    "samples seeded by rank": samples_seeded_by_rank,
    "sum in order of arrival": sum_in_order_of_arrival,
    "scheduler steps once a process": scheduler_steps_once_a_process,
}
