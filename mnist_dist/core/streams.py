"""Iterable data sets: every process reads the whole stream, and keeps only its own rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from .collating import identity, without_rows
from .errors import UserError
from .microbatches import MicroBatchSampler
from .orders import EpochOrder
from .randomness import GeneratorStates, seed_generators, seed_of
from .sharing import MicroBatch
from .workers import before_workers_start, begin_worker

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator


class Stream:
    """Takes the place of `Orders` for an iterable data set, whose order is unknown until it is read.

    Args:
        loader: with an iterable data set and a batch size.

    Raises:
        UserError: the loader has no batch size.
    """

    sampler = None

    def __init__(self, loader: DataLoader) -> None:
        if loader.batch_size is None:
            raise UserError(
                "the loader has no batch size, so the global batches are undefined: pass "
                "batch_size, and let the data set yield single samples"
            )
        self.loader = loader

    def epoch(self, epoch: int) -> EpochOrder:
        """Always raises: the order of a stream is not known in advance."""
        raise TypeError(f"the order of epoch {epoch} is unknown until the stream has been read")

    def __len__(self) -> int:
        """Global batches in an epoch, if the data set knows its length."""
        return len(self.loader)


class StreamReader:
    """Reads a stream to its end on every process, and keeps this process's rows of every global batch.

    What the data set draws at random while it is read depends on seed and epoch alone. All
    processes must use the same number of workers, because torch takes batches from them in turns.
    After a resume, the batches before the resume point are read and discarded.

    Args:
        loader: the user's, with an iterable data set.
        batches: divides global batches.
        accelerator: the processes.
    """

    def __init__(
        self, loader: DataLoader, batches: MicroBatchSampler, accelerator: "ExactAccelerator"
    ) -> None:
        self.batches = batches
        self.accelerator = accelerator
        self.collate: Callable[[list[Any]], Any] = loader.collate_fn
        self.workers = loader.num_workers
        self.generator = torch.Generator()
        self.loader: DataLoader = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=identity,
            num_workers=loader.num_workers,
            timeout=loader.timeout,
            worker_init_fn=partial(begin_worker, loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            generator=self.generator,
        )

    def fingerprint(self) -> str:
        """What must be the same on every process; what they read is not compared."""
        return f"a stream read by {self.workers} workers"

    def epoch(
        self, epoch: int, first: int, batches_per_update: int
    ) -> Iterator[tuple[MicroBatch, Any]]:
        """Each micro-batch of an epoch with its rows.

        Args:
            epoch: its number, from 0.
            first: number of global batches to skip.
            batches_per_update: global batches that the gradients of an update are accumulated over.
        """
        start = 0
        # Batch number, start and samples, of one update.
        group: list[tuple[int, int, list[Any]]] = []
        for number, samples, is_last in self.with_end(epoch):
            group.append((number, start, samples))
            start += len(samples)
            if len(group) == batches_per_update or is_last:
                if number >= first:
                    yield from self.update(epoch, group, is_last)
                group = []

    def update(
        self, epoch: int, group: list[tuple[int, int, list[Any]]], ends_epoch: bool
    ) -> Iterator[tuple[MicroBatch, Any]]:
        """The micro-batches of one update with their rows.

        Args:
            epoch: its number.
            group: the number, the start and the samples of each global batch of the update.
            ends_epoch: whether it is the last one.
        """
        update_size = sum(len(samples) for _, _, samples in group)
        for place, (number, start, samples) in enumerate(group):
            is_last = place == len(group) - 1
            for micro_batch in self.batches.divide(
                torch.arange(start, start + len(samples)),
                epoch,
                number,
                start=start,
                update_size=update_size,
                ends_update=is_last,
                ends_epoch=is_last and ends_epoch,
            ):
                yield micro_batch, self.rows(micro_batch, samples)

    def rows(self, micro_batch: MicroBatch, samples: list[Any]) -> Any:
        """The collated rows of a micro-batch, on the device."""
        mine = [samples[position] for position in micro_batch.positions]
        kept = GeneratorStates()
        place = micro_batch.batch, micro_batch.share, micro_batch.piece
        seed_generators(seed_of("collate", micro_batch.seed, micro_batch.epoch, *place))
        rows = self.collate(mine) if mine else without_rows(self.collate(samples[:1]))
        kept.restore()
        if self.accelerator.device_placement:
            return send_to_device(rows, self.accelerator.device)
        return rows

    def with_end(self, epoch: int) -> Iterator[tuple[int, list[Any], bool]]:
        """The global batches of an epoch: number, samples, and whether it is the last one."""
        before: tuple[int, list[Any]] | None = None
        for number, samples in enumerate(self.read(epoch)):
            if before is not None:
                yield *before, False
            before = number, samples
        if before is not None:
            yield *before, True

    def read(self, epoch: int) -> Iterator[list[Any]]:
        """The samples of each global batch, read with random-generator states separate from the training's."""
        seed = seed_of("stream", self.batches.seed, self.batches.number, epoch)
        self.generator.manual_seed(seed)
        own = getattr(self.loader.dataset, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(seed)
        outside = GeneratorStates()
        seed_generators(seed)
        before_workers_start(self.loader)
        batches = iter(self.loader)
        while True:
            samples = next(batches, None)
            inside = GeneratorStates()
            outside.restore()
            if samples is None:
                return
            yield samples
            outside = GeneratorStates()
            inside.restore()
