"""Watches loaders: which samples they give, in which order, of what data."""

import time
from collections import deque
from typing import Any

from torch.utils.data import IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from mnist_dist.core.accelerator import ExactAccelerator
from mnist_dist.core.hooks import register_hook
from mnist_dist.core.loader import MicroBatchDataset
from mnist_dist.tools.doctor.digests import digest_of_data, digests_of_rows, plain_attributes
from mnist_dist.tools.doctor.loaders import (
    as_numbers,
    attributes_of,
    change_since,
    is_own,
    length_of,
    repeats,
    samplers_of,
    shuffles,
    whole_of,
)
from mnist_dist.tools.doctor.places import is_called_by, place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Epoch

ACCELERATE = "accelerate/data_loader.py"  # whose loaders fetch a batch ahead
KEPT = 4  # iterations over one loader whose samples are kept one by one
ROWS = 2000  # of a stream, of which digests are kept


class LoaderWatch:
    """Watches the iterators of torch's loaders, and the loaders of `ExactAccelerator`.

    A loader may ask its sampler for batches long before it gives them. So the numbers that it is
    told stand in a queue until then.

    Args:
        recorder: of this process.

    Attributes:
        data: digests of what data sets hold, by their identities.
        iterations: over each line's loader, so far.
        exact: the iteration over each loader of `ExactAccelerator`, with its epoch's number.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.data: dict[int, int] = {}
        self.held: list[Any] = []  # data sets, so that their identities stay theirs
        self.iterations: dict[str, int] = {}
        self.exact: dict[int, tuple[int, Epoch]] = {}

    def install(self) -> None:
        """Set the hooks."""
        iterator: Any = _BaseDataLoaderIter
        quietly = self.recorder.quietly
        made = iterator.__init__
        reset = iterator._reset
        next_numbers = iterator._next_index
        next_batch = iterator.__next__
        begin = quietly(self.begin)
        asked = quietly(self.asked)
        given = quietly(self.given)
        recorder = self.recorder
        ended = quietly(self.ended)

        def init(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
            made(self, loader, *args, **kwargs)
            begin(self, loader)

        def restart(self: Any, loader: Any, first_iter: bool = False) -> None:
            reset(self, loader, first_iter)
            if not first_iter:
                begin(self, loader)

        def ask(self: Any) -> Any:
            numbers = next_numbers(self)
            asked(self, numbers)
            return numbers

        def give(self: Any) -> Any:
            begun = time.monotonic()
            try:
                batch = next_batch(self)
                recorder.now.loading += time.monotonic() - begun
            except StopIteration:
                ended(self)
                raise
            given(self, batch)
            return batch

        iterator.__init__ = init
        iterator._reset = restart
        iterator._next_index = ask
        iterator.__next__ = give
        exact: Any = quietly(self.exact_batch)
        register_hook("micro_batch", exact)

    def begin(self, iterator: Any, loader: Any) -> None:
        """Note that an iteration over one of torch's loaders begins."""
        if isinstance(loader.dataset, MicroBatchDataset):
            return  # ExactAccelerator's own, which says itself what it gives
        iterator.doctor_queue = deque()
        iterator.doctor_epoch = self.new_epoch(loader)
        if loader.num_workers and loader.persistent_workers:
            now = attributes_of(loader.dataset)
            if not hasattr(iterator, "doctor_at_start"):
                iterator.doctor_at_start = now
            iterator.doctor_epoch.stale = change_since(iterator.doctor_at_start, now)
        self.recorder.write()

    def asked(self, iterator: Any, numbers: Any) -> None:
        """Note the numbers of the samples of a batch to come."""
        if hasattr(iterator, "doctor_queue"):
            iterator.doctor_queue.append(numbers)

    def given(self, iterator: Any, batch: Any) -> None:
        """Note that a batch is given."""
        if not hasattr(iterator, "doctor_queue"):
            return
        epoch = iterator.doctor_epoch
        numbers = iterator.doctor_queue.popleft()
        self.recorder.batches_from = epoch
        self.recorder.events += 1
        epoch.given += 1
        epoch.complete |= epoch.given == epoch.length  # a loop may count, and not ask for one more
        if self.iterations[epoch.place] > KEPT:
            return
        epoch.batches.append(as_numbers(numbers, iterator._dataset))
        if isinstance(iterator._dataset, IterableDataset) and len(epoch.rows) < ROWS:
            epoch.rows += digests_of_rows(batch)

    def ended(self, iterator: Any) -> None:
        """Note that all batches have been given."""
        if hasattr(iterator, "doctor_epoch"):
            iterator.doctor_epoch.complete = True

    def new_epoch(self, loader: Any) -> Epoch:
        """Put a new iteration into the record."""
        whole, part = whole_of(loader.dataset)
        chain = samplers_of(loader)
        sampler = chain[-1]
        epoch = Epoch(
            number=len(self.recorder.record.epochs),
            place=place(),
            dataset=type(whole).__name__,
            samples=length_of(loader.dataset),
            part=part,
            data=self.data_of(whole),
            sampler=type(sampler).__name__,
            shuffles=shuffles(sampler),
            repeats=repeats(sampler),
            is_own=any(is_own(each) for each in chain),
            takes_epochs=any(hasattr(each, "set_epoch") for each in chain),
            told=" ".join(str(plain_attributes(each)) for each in chain if is_own(each)),
            drops=any(getattr(each, "drop_last", False) is True for each in chain),
            length=length_of(loader),
            is_ahead=is_called_by(ACCELERATE),
        )
        self.iterations[epoch.place] = self.iterations.get(epoch.place, 0) + 1
        self.recorder.record.epochs.append(epoch)
        return epoch

    def data_of(self, dataset: Any) -> int:
        """Return the digest of what a data set holds, which is computed once."""
        if id(dataset) not in self.data:
            self.data[id(dataset)] = digest_of_data(dataset)
            self.held.append(dataset)
        return self.data[id(dataset)]

    def exact_batch(self, accelerator: ExactAccelerator) -> None:
        """Note what a loader of `ExactAccelerator` is about to give."""
        micro_batch = accelerator.micro_batch
        number, epoch = self.exact.get(micro_batch.loader, (-1, Epoch()))
        is_first = micro_batch.batch == 0 and micro_batch.opens_batch
        if number != micro_batch.epoch or is_first:
            loader: Any = accelerator._loader
            epoch = self.new_epoch(loader.loader)
            epoch.exact = True
            epoch.is_ahead = False
            epoch.length = len(loader)
            self.exact[micro_batch.loader] = (micro_batch.epoch, epoch)
            self.recorder.write()
        self.recorder.batches_from = epoch
        self.recorder.events += 1
        epoch.given += 1
        if self.iterations[epoch.place] <= KEPT:
            exact_loader: Any = accelerator._loader
            numbers = [int(number) for number in micro_batch.index]
            found = as_numbers(numbers, exact_loader.loader.dataset)
            epoch.batches.append(found)
        is_last = micro_batch.batch == epoch.length - 1
        epoch.complete = is_last and micro_batch.closes_batch
