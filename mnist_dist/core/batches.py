"""Which process sees which sample when, and random numbers that do not depend on it.

Let P be the epoch's order, B the size of a global batch and W the number of processes. Global batch k is P[kB:(k+1)B],
and position p of P is process p mod W's. So the shares of a batch differ by at most one sample, together they are the
batch, and the batch is the same at any W: no padding, no repeats, no drop.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import UserError


def stream(*words: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on these words and the kind of device (GPUs of two models are of two kinds)."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


def each(data: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same structure with what the function gives for each tensor."""
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {name: function(tensor) for name, tensor in data.items()}
    return tuple(function(tensor) for tensor in data)


@dataclass(slots=True, eq=False)
class Batch:
    """The share that one process has of one global batch: n of its samples, and n may be 0."""

    data: Any  # their rows of every tensor of the data set, in its structure
    index: Tensor  # (n,) int64, their numbers in the data set
    positions: slice  # theirs in the global batch
    size: int  # samples in the global batch
    terms: int | Tensor  # in the loss of the global batch, by which it is divided; an integer scalar if a tensor
    words: tuple[int, int, int]  # seed, epoch and number of the batch, which its random numbers depend on

    def rand(self, purpose: str, *shape: int, normal: bool = False) -> Tensor:
        """(n, *shape) float32 random numbers for a purpose, uniform in [0, 1) or normal, on the samples' device.

        They are drawn for the whole global batch, so they do not depend on its sharing, as those of `torch.rand` do.
        """
        device, draw = self.index.device, torch.randn if normal else torch.rand
        generator = stream(purpose, *self.words, device=device)
        return draw(self.size, *shape, generator=generator, device=device)[self.positions]

    def split(self, pieces: int) -> list["Batch"]:
        """The share in so many pieces, each still one of the whole global batch."""
        if pieces == 1:
            return [self]
        parts, start, places = [], 0, range(self.size)[self.positions]
        for index in self.index.tensor_split(pieces):
            rows = slice(start, start := start + len(index))
            positions = slice(places[rows].start, places[rows].stop, places[rows].step)
            data = each(self.data, lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]
            parts.append(replace(self, data=data, index=index, positions=positions))
        return parts


class GlobalBatches:
    """Deals out the global batches of each epoch, to every process its share of data that each holds whole.

    Not for `accelerator.prepare`, which would deal the samples out a second time (accelerate #3520).

    Args:
        data: a tensor, or a tuple or dict of tensors, each with a row for every one of the N samples, of any dtype.
        batch_size: B; the last global batch of an epoch may be smaller.
        accelerator: the processes that share, as an `Accelerator` or a `PartialState`; None for one alone.
        seed: decides the order of each epoch; None for the order of the data.
        terms: (N,) integers, the terms that each sample adds to the loss, such as its tokens; None for 1 each.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        accelerator: Any = None,
        *,
        seed: int | None = None,
        terms: Tensor | None = None,
    ) -> None:
        tensors = [] if terms is None else [terms]
        each(data, tensors.append)
        rows = [str(len(tensor)) for tensor in tensors]
        if len(set(rows)) != 1:
            raise UserError(f"the tensors of the data have {' and '.join(rows)} rows: give each one for every sample")
        self.data, self.terms, self.batch_size, self.seed = data, terms, batch_size, seed
        self.samples, self.device = len(tensors[-1]), tensors[-1].device
        self.world: int = accelerator.num_processes if accelerator else 1
        self.rank: int = accelerator.process_index if accelerator else 0
        if self.world > self.samples:
            raise UserError(f"{self.world} processes are more than the {self.samples} samples they share: start fewer")

    def __len__(self) -> int:
        """Batches in an epoch, which are its updates."""
        return math.ceil(self.samples / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """P: (N,) int64, the numbers of the samples in the order of an epoch."""
        if self.seed is None:
            return torch.arange(self.samples, device=self.device)
        # Drawn on the CPU, so that it is the same whatever the device.
        return torch.randperm(self.samples, generator=stream("order", self.seed, epoch)).to(self.device)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """This process's shares of the batches of an epoch, from batch `first` on; both count from 0."""
        order = self.order(epoch)
        for number in range(first, len(self)):
            start = number * self.batch_size
            whole = order[start : start + self.batch_size]
            positions = slice((self.rank - start) % self.world, len(whole), self.world)
            index = whole[positions]
            data = each(self.data, lambda tensor, index=index: tensor.index_select(0, index))  # type: ignore[misc]
            terms = len(whole) if self.terms is None else self.terms.index_select(0, whole).sum()
            yield Batch(data, index, positions, len(whole), terms, (self.seed or 0, epoch, number))
