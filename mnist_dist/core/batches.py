"""Which process sees which sample when, and random numbers that do not depend on it.

Let P be the epoch's order, B the size of a global batch and V the number of shares. Global batch k is P[kB:(k+1)B], and
position p of P is in share p mod V: no padding, no repeats, no drop. Each process has one share; or V is fixed, and it
works through some one by one, so that no tensor's shape depends on the number of processes, and all bits are equal."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor

from .processes import UserError


def stream(*words: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on these words and the kind of device (GPUs of two models are of two kinds)."""
    return torch.Generator(device).manual_seed(int.from_bytes(sha256(repr(words).encode()).digest()[:8], "little"))


@dataclass(frozen=True)
class Sharing:
    """So many shares, dealt to `world` processes of which this one is `rank`."""

    shares: int
    world: int
    rank: int
    fixed: bool = False  # their number, for the same bits at any number of processes

    def of(self, rank: int) -> range:
        """The shares of a process."""
        return range(rank * self.shares // self.world, (rank + 1) * self.shares // self.world)


@dataclass(eq=False)
class Batch:
    """What one process has of one global batch, or a part of that: n of its samples, and n may be 0."""

    source: Any  # the data set
    index: Tensor  # (n,) int64, the samples' numbers in it
    positions: Tensor  # (n,) int64, theirs in the global batch
    lengths: list[int]  # of the process's shares, which make up the n
    size: int  # samples in the global batch
    terms: int | Tensor  # in the loss of the global batch, by which it is divided, scalar; a loss may set them anew
    words: tuple[int, int, int]  # seed, epoch and number of the batch, which its random numbers depend on
    sharing: Sharing
    drawn: dict[Any, Tensor] = field(default_factory=dict)  # random numbers of the global batch

    @cached_property
    def data(self) -> Any:
        """The n rows of every tensor of the data set, in its structure."""
        return recursively_apply(lambda tensor: tensor.index_select(0, self.index), self.source)

    def rand(self, purpose: str, *shape: int, normal: bool = False) -> Tensor:
        """(n, *shape) float32, uniform in [0, 1) or normal, for a purpose, from those of the whole global batch."""
        here, draw, key = self.index.device, torch.randn if normal else torch.rand, (purpose, shape, normal)
        if key not in self.drawn:
            self.drawn[key] = draw(self.size, *shape, generator=stream(purpose, *self.words, device=here), device=here)
        return self.drawn[key][self.positions]

    def split(self, pieces: int | list[int]) -> list["Batch"]:
        """In pieces, so many or of these lengths, each still one of the whole global batch."""
        cut = Tensor.tensor_split if isinstance(pieces, int) else Tensor.split
        parts = zip(cut(self.index, pieces), cut(self.positions, pieces), strict=True)
        return [replace(self, index=i, positions=p, lengths=[len(i)], terms=self.terms + 0) for i, p in parts]


class GlobalBatches:
    """Deals out each epoch's global batches; not for `accelerator.prepare`, which would deal again (accelerate #3520).

    Args:
        data: a tensor, or a tuple or dict of tensors, each with a row for every one of the N samples, of any dtype.
        batch_size: B; the last global batch of an epoch may be smaller.
        accelerator: the processes that share, as an `Accelerator` or a `PartialState`; None for one alone.
        seed: decides the order of each epoch; None for the order of the data.
        terms: (N,) numbers, the terms that each sample adds to the loss, such as its tokens; None for 1 each.
        virtual: V, for the same bits on 1 to V processes; 0 for a share for each process."""

    def __init__(self, data: Any, batch_size: int, accelerator: Any = None, *, seed: int | None = None,
                 terms: Tensor | None = None, virtual: int = 0) -> None:  # fmt: skip
        tensors = [] if terms is None else [terms]
        recursively_apply(tensors.append, data, test_type=lambda _: True)
        if others := {type(each).__name__ for each in tensors if not isinstance(each, Tensor)}:
            raise UserError(f"the data hold {' and '.join(others)}: give a tensor, or a tuple or dict of tensors")
        rows = [str(len(tensor)) for tensor in tensors]
        if len(set(rows)) != 1:
            raise UserError(f"the tensors of the data have {' and '.join(rows)} rows: give each one for every sample")
        self.data, self.terms, self.batch_size, self.seed = data, terms, batch_size, seed
        self.samples, self.device = len(tensors[-1]), tensors[-1].device
        world, rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
        self.sharing = Sharing(virtual or world, world, rank, fixed=virtual > 0)
        fewest, what = min((self.samples, "samples"), (self.sharing.shares, "virtual processes"))
        if world > fewest:
            raise UserError(f"{world} processes are more than the {fewest} {what} they share: start fewer")

    def __len__(self) -> int:
        """Batches in an epoch, which are its updates."""
        return math.ceil(self.samples / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """P: (N,) int64, the numbers of the samples in the order of an epoch, the same whatever the device."""
        if self.seed is None:
            return torch.arange(self.samples, device=self.device)
        return torch.randperm(self.samples, generator=stream("order", self.seed, epoch)).to(self.device)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """What this process has of the batches of an epoch, from batch `first` on; both count from 0."""
        order, sharing, V = self.order(epoch), self.sharing, self.sharing.shares
        places = torch.arange(self.batch_size, device=self.device)
        for number in range(first, len(self)):
            start, words = number * self.batch_size, (self.seed or 0, epoch, number)
            whole = order[start : start + self.batch_size]
            cuts = [slice((share - start) % V, len(whole), V) for share in sharing.of(sharing.rank)]
            of_order, of_places = ([row[cut] for cut in cuts] for row in (whole, places))
            index, positions = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (of_order, of_places))
            terms = len(whole) if self.terms is None else self.terms.index_select(0, whole).sum()
            yield Batch(self.data, index, positions, [*map(len, of_order)], len(whole), terms, words, sharing)
