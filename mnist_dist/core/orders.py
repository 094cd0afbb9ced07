"""The sample order and batch boundaries of each epoch, for any sampler, equal on every process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from .agreement import check_same_across_processes
from .digests import digest
from .errors import UserError
from .randomness import GeneratorStates, seed_generators, seed_of
from .sampler import ExactSampler
from .sharing import Sharing

LONGEST_EPOCH = 10_000_000  # samples, or 100 times those of the data set, of any sampler


@dataclass(frozen=True)
class EpochOrder:
    """What an epoch is made of.

    Attributes:
        numbers: (N,) int64 on the CPU, the samples' numbers in the data set, in the order in which
            they are visited.
        bounds: global batch k is `numbers[bounds[k]:bounds[k + 1]]`.
    """

    numbers: Tensor
    bounds: list[int]

    @property
    def batches(self) -> int:
        """Global batches in the epoch."""
        return len(self.bounds) - 1


class Orders(Protocol):
    """The orders of all epochs of a loader."""

    sampler: Any

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch, by its number from 0."""

    def __len__(self) -> int:
        """Global batches in an epoch."""


class EqualBatches:
    """Global batches of equal size (except perhaps the last), in an order set by seed and epoch.

    Args:
        sampler: the order.
        batch_size: B, the samples of a global batch.
        drop_last: leave out the last global batch of an epoch if it has fewer.
    """

    def __init__(self, sampler: ExactSampler, batch_size: int, *, drop_last: bool = False) -> None:
        self.sampler = sampler
        whole_batches = sampler.samples // batch_size
        samples = whole_batches * batch_size if drop_last else sampler.samples
        self.bounds = [*range(0, samples, batch_size), samples]

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch, by its number from 0."""
        return EpochOrder(self.sampler.order(epoch), self.bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1


class DrawnBatches:
    """Global batches drawn by the user's sampler or batch sampler, seeded identically on every process.

    Args:
        draw: begins to give the batches of an epoch, drawn anew at each call.
        sampler: the sampler that draws them; its generator, if it has one, is seeded.
        length: returns the number of batches in an epoch.
        most: samples in an epoch, after which the sampler is taken for an endless one.
        seed, loader: what the draws depend on, beside the epoch.
    """

    def __init__(
        self,
        draw: Callable[[], Iterable[Any]],
        sampler: Any,
        length: Callable[[], int],
        *,
        most: int,
        seed: int,
        loader: int,
    ) -> None:
        self.draw = draw
        self.sampler = sampler
        self.length = length
        self.most = most
        self.seed = seed
        self.loader = loader

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch, by its number from 0; every process must ask for it.

        Raises:
            UserError: on every process, if they draw different ones.
        """
        kept = GeneratorStates()
        seed = seed_of("order", self.seed, self.loader, epoch)
        seed_generators(seed)
        for sampler in (self.sampler, getattr(self.sampler, "sampler", None)):
            generator = getattr(sampler, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            if sampler is not None and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        batches = self.draw_all()
        kept.restore()
        numbers = torch.tensor([number for batch in batches for number in batch], dtype=torch.long)
        bounds = [0, *accumulate(len(batch) for batch in batches)]
        what = (
            f"the sample orders drawn by {type(self.sampler).__name__} (they may depend only on "
            "its generator)"
        )
        check_same_across_processes(what, digest([numbers, torch.tensor(bounds)])[:12])
        return EpochOrder(numbers, bounds)

    def draw_all(self) -> list[list[int]]:
        """The batches of an epoch, as lists of indices.

        Raises:
            UserError: they do not end, or have keys that are not integers.
        """
        batches = []
        samples = 0
        for batch in self.draw():
            try:
                indices = [index(each) for each in batch]
            except TypeError:
                raise UserError(
                    f"{type(self.sampler).__name__} gives {batch!r}, but ExactAccelerator takes integers only: let it "
                    "give indices, and look up the keys in the data set's __getitem__"
                ) from None
            batches.append(indices)
            samples += len(indices)
            if samples > self.most:
                raise UserError(
                    f"{type(self.sampler).__name__} has given over {self.most:,} samples for one epoch, and may never "
                    "end: let it end, for instance after as many samples as the data set has"
                )
        return batches

    def __len__(self) -> int:
        return self.length()


def orders_of(loader: DataLoader, sharing: Sharing, *, seed: int, number: int) -> Orders:
    """The orders in which a loader is to visit its samples.

    Args:
        loader: with a map-style data set, and any sampler or batch sampler.
        sharing: who works on which shares.
        seed: seed for the orders.
        number: index of the loader among its accelerator's loaders.

    Raises:
        UserError: its samples are already split over processes, or not batched.
    """
    refuse_shared_samples(loader)
    usual = type(loader.batch_sampler) is BatchSampler
    if usual and visits_each_sample_once(loader):
        shuffle = isinstance(loader.sampler, RandomSampler)
        sampler = ExactSampler(loader.dataset, sharing, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        assert loader.batch_size is not None
        return EqualBatches(sampler, loader.batch_size, drop_last=loader.drop_last)
    batch_sampler: Any = loader.batch_sampler
    drawing = loader.sampler if usual else batch_sampler
    samples = len(loader.dataset)  # type: ignore[arg-type]
    return DrawnBatches(
        lambda: batch_sampler,
        drawing,
        lambda: len(batch_sampler),
        most=max(LONGEST_EPOCH, 100 * samples),
        seed=seed,
        loader=number,
    )


def visits_each_sample_once(loader: DataLoader) -> bool:
    """Whether a loader's sampler gives every sample once, shuffled or in the order of the data set."""
    if type(loader.sampler) is SequentialSampler:
        return True
    if type(loader.sampler) is not RandomSampler:
        return False
    whole = loader.sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return whole and not loader.sampler.replacement


def refuse_shared_samples(loader: DataLoader) -> None:
    """Raise if a loader covers only part of the samples, or does not batch them.

    Raises:
        UserError: says why, and what to give instead.
    """
    samplers = [
        loader.sampler,
        loader.batch_sampler,
        getattr(loader.batch_sampler, "sampler", None),
    ]
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise UserError(
            "the loader has a DistributedSampler, whose part prepare would split once more "
            "(accelerate #3520): leave the sampler out, and pass the global batch size"
        )
    if loader.batch_sampler is None:
        raise UserError(
            "the loader has no batch size, so the global batches are undefined: pass batch_size "
            "or a batch_sampler"
        )
