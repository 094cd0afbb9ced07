"""Loaders that yield each process's rows of every global batch, from tensors in place or through workers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from .agreement import check_same_across_processes
from .collating import identity, without_rows
from .contents import visible_content
from .digests import digest
from .errors import SingleProcessError, UserError
from .microbatches import MicroBatchSampler
from .orders import Orders, orders_of
from .randomness import GeneratorStates, seed_generators, seed_of, seed_of_loader
from .sharing import MicroBatch
from .steady import warn_of_a_resumed_loop_without_training
from .streams import Stream, StreamReader
from .workers import before_workers_start, begin_worker

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator


class ExactDataLoader:
    """A `DataLoader` prepared by `ExactAccelerator`; its batch size is the global batch size.

    Iterating over it gives this process's micro-batches of one epoch: one of every global batch,
    unless there are virtual processes or `micro_batches`. Each iteration is another epoch, in
    another order if the loader shuffles; after `load_state` the first one begins where the saved
    training was. An iteration that is left at its first batch without an update, such as
    `next(iter(loader))`, does not count. Other attributes (`dataset`, `collate_fn`, ...) are those
    of the original loader.

    Args:
        accelerator: the processes.
        loader: a loader that batches any data set.
        number: index of this loader among the accelerator's loaders.

    Raises:
        UserError: the loader cannot be split exactly.
    """

    _is_accelerate_prepared = True  # tells Accelerate to leave it alone

    def __init__(self, accelerator: "ExactAccelerator", loader: DataLoader, number: int) -> None:
        self.accelerator = accelerator
        self.loader = loader
        streamed = isinstance(loader.dataset, IterableDataset)
        seed = seed_of_loader(accelerator.seed, number)
        orders: Orders
        if streamed:
            orders = Stream(loader)
        else:
            orders = orders_of(loader, accelerator.sharing, seed=seed, number=number)
        self.sampler = orders.sampler
        self.batch_size = loader.batch_size
        self.batches = MicroBatchSampler(
            orders,
            accelerator.sharing,
            seed=seed,
            pieces=accelerator.micro_batches,
            number=number,
            device=accelerator.device,
        )
        self.next_epoch = 0
        self.first_batch = 0  # of the next iteration
        self.restored = False  # whether `load_state` has said where the next iteration begins
        self.position: tuple[int, int] | None = None  # epoch and batch of the iteration in progress
        # The batch at which an iteration resumes that no loss has come from yet.
        self.resumed_at: int | None = None
        self.end_of_dataloader = False
        self.remainder = -1  # for Accelerate: nothing was padded
        self.micro_batches_given = 0  # in all iterations
        self.compared = False
        self.reader = self.make_reader()

    def make_reader(self) -> "TensorReader | WorkerReader | StreamReader":
        """Choose how rows are fetched: by indexing tensors in place, or through torch's `DataLoader`."""
        dataset = self.loader.dataset
        if isinstance(dataset, IterableDataset):
            return StreamReader(self.loader, self.batches, self.accelerator)
        plain = self.loader.collate_fn is default_collate and self.loader.num_workers == 0
        if type(dataset) is TensorDataset and plain:
            where = {kind_and_number(tensor.device) for tensor in dataset.tensors}
            if where == {kind_and_number(self.accelerator.device)}:
                return TensorReader(list(dataset.tensors), self.batches)
        return WorkerReader(self.loader, self.batches, self.accelerator)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        """Global batches in an epoch: the number of its updates, unless gradients are accumulated."""
        return len(self.batches)

    def length_if_known(self) -> int | None:
        """Global batches in an epoch; None for a stream that does not know."""
        try:
            return len(self)
        except TypeError:
            return None

    @property
    def total_batch_size(self) -> int | None:
        """Samples in a global batch, under the name that Accelerate's loaders have for it; None if they differ."""
        return self.batch_size

    @property
    def samples(self) -> int | None:
        """Samples in the data set; None for a stream, which may not know."""
        dataset: Any = self.loader.dataset
        return None if isinstance(dataset, IterableDataset) else len(dataset)

    @property
    def total_dataset_length(self) -> int | None:
        """Samples in the data set, under the name that Accelerate's loaders have for it."""
        return self.samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a position that `load_state` has set within it stays."""
        if epoch != self.next_epoch and self.restored:
            self.first_batch = 0
        self.next_epoch = epoch

    def skip(self, batches: int) -> "ExactDataLoader":
        """Skip global batches at the start of the next iteration, unless `load_state` has set its position.

        Raises:
            UserError: skipping would begin in the middle of an update, or `load_state` has set
                another position.
        """
        steps = self.accelerator.gradient_accumulation_steps
        if self.restored:
            self.refuse_another_position(batches, steps)
            return self
        if batches % steps:
            raise UserError(
                f"{batches} batches cannot be skipped, because an update has "
                f"gradient_accumulation_steps={steps} of them: skip a multiple of {steps}"
            )
        self.first_batch = batches
        return self

    def refuse_another_position(self, batches: int, steps: int) -> None:
        """Raise if the batches to skip are not those that `load_state` already skips.

        Args:
            batches: the number of batches to skip.
            steps: global batches per update; a resume begins with the first batch of an update.

        Raises:
            UserError: the numbers differ, or the loop cannot know the number, because how many
                batches this loader yields depends on the number of processes.
        """
        way_out = "leave skip_first_batches out, and start the loop at the loader's next_epoch"
        asked = (
            f"skip_first_batches was asked to skip {batches} batches, but load_state has already "
            f"set the loader to epoch {self.next_epoch}, batch {self.first_batch}"
        )
        if self.accelerator.several_micro_batches:
            raise UserError(
                f"{asked}, and what a loop counts are micro-batches, whose number depends on the "
                f"number of processes, so it cannot compute an epoch from them either: {way_out}"
            )
        if not self.first_batch <= batches < self.first_batch + steps:
            raise UserError(f"{asked}: {way_out}")

    def __iter__(self) -> Iterator[Any]:
        accelerator = self.accelerator
        self.compare_between_processes()
        outer = accelerator.begin_loop()
        nested = outer.micro_batch is not None
        begin = self.next_epoch, self.first_batch, self.restored
        epoch, first, is_resumed = begin
        self.resumed_at = first if is_resumed else None
        self.next_epoch, self.first_batch, self.restored = epoch + 1, 0, False
        self.position = epoch, first
        knows_epoch: Any
        for knows_epoch in (self.sampler, self.loader.dataset):
            if hasattr(knows_epoch, "set_epoch"):
                knows_epoch.set_epoch(epoch)
        self.end_of_dataloader = False
        ended = False
        given_before = self.micro_batches_given
        accelerator.gradient_state._add_dataloader(self)
        try:
            steps = accelerator.gradient_accumulation_steps
            for micro_batch, rows in self.reader.epoch(epoch, first, steps):
                self.refuse_turns()
                self.end_of_dataloader = micro_batch.ends_epoch
                accelerator.begin_micro_batch(micro_batch, self, nested=nested)
                self.micro_batches_given += 1
                yield rows
                if micro_batch.closes_update:
                    self.position = behind(micro_batch)
            ended = True
            if self.resumed_at and self.batches.number == 0:  # in the midst of a training's epoch
                warn_of_a_resumed_loop_without_training(first)
            accelerator.end_epoch()
        finally:
            if not ended and self.position == (epoch, first) and self.next_epoch == epoch + 1:
                # Nothing was done but to look at a batch: the next iteration begins here again.
                self.next_epoch, self.first_batch, self.restored = begin
            self.position = None
            accelerator.gradient_state._remove_dataloader(self)
            given = self.micro_batches_given - given_before
            accelerator.end_loop(outer, self, epoch, given)

    def refuse_turns(self) -> None:
        """Raise if the loops over two loaders are interleaved.

        Raises:
            UserError: it would be unclear which rows a loss belongs to.
        """
        if self.accelerator.gradient_state.active_dataloader is not self:
            raise UserError(
                "two loaders are read in turns, as with zip or iter, so it is unclear which rows "
                "a loss averages over: finish the loop over one before you continue the other, or "
                "combine both into one data set"
            )

    def note_backward(self, micro_batch: MicroBatch) -> None:
        """Note that a loss has come from this micro-batch.

        Raises:
            UserError: on every process, if it is the first one after a resume, and batches before
                it were left out.
        """
        resumed_at, self.resumed_at = self.resumed_at, None
        if resumed_at is None or micro_batch.batch == resumed_at:
            return
        raise UserError(
            f"the loop has left out {micro_batch.batch - resumed_at} batches after load_state, which had already set "
            f"the loader to epoch {micro_batch.epoch}, batch {resumed_at}: skip nothing in a resumed loop"
        )

    def update_is_done(self, micro_batch: MicroBatch) -> None:
        """Note that the weights have been updated from this micro-batch and those before it."""
        if self.position and micro_batch.closes_update:
            self.position = behind(micro_batch)

    def compare_between_processes(self) -> None:
        """See once that every process has the same data set.

        Raises:
            UserError: they differ.
        """
        if self.compared:
            return
        self.compared = True
        what = (
            "the data sets (every process must hold all samples, in the same order: sort lists of "
            "files, and seed random splits)"
        )
        check_same_across_processes(what, self.reader.fingerprint())

    def state_dict(self) -> dict[str, int]:
        """Where the next update begins: the epoch, and the number of the global batch within it."""
        epoch, batch = self.position or (self.next_epoch, self.first_batch)
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration where `state_dict` was asked for."""
        self.next_epoch = state["epoch"]
        self.first_batch = state["batch"]
        self.restored = True


def kind_and_number(device: torch.device) -> tuple[str, int]:
    """The kind and the number of a device; without a number it is the first of its kind."""
    return device.type, device.index or 0


def behind(micro_batch: MicroBatch) -> tuple[int, int]:
    """The position after a micro-batch: the epoch, and the index of the next global batch in it."""
    if micro_batch.ends_epoch:
        return micro_batch.epoch + 1, 0
    return micro_batch.epoch, micro_batch.batch + 1


class TensorReader:
    """Takes rows of tensors by one `index_select` each, on the device that they are on.

    Args:
        tensors: each with a row for every sample.
        batches: the samples of each micro-batch.
    """

    def __init__(self, tensors: list[Tensor], batches: MicroBatchSampler) -> None:
        self.tensors = tensors
        self.batches = batches

    def epoch(
        self, epoch: int, first: int, batches_per_update: int
    ) -> Iterator[tuple[MicroBatch, list[Tensor]]]:
        """Each micro-batch of an epoch with its rows; the arguments are those of `MicroBatchSampler.epoch`."""
        device = self.tensors[0].device
        for micro_batches in self.batches.epoch(epoch, first, batches_per_update, device):
            for micro_batch in micro_batches:
                yield (
                    micro_batch,
                    [tensor.index_select(0, micro_batch.index) for tensor in self.tensors],
                )

    def fingerprint(self) -> dict[str, str]:
        """A digest of a thousand rows of each tensor."""
        step = max(1, len(self.tensors[0]) // 1000)
        digests = [digest([tensor[::step]])[:12] for tensor in self.tensors]
        return {f"tensor {number}": each for number, each in enumerate(digests)}


class WorkerReader:
    """Reads rows of any map-style data set through torch's `DataLoader`, with its workers.

    Args:
        loader: the user's loader, which supplies the data set, `collate_fn` and worker options.
        batches: the samples of each micro-batch.
        accelerator: the processes.
    """

    def __init__(
        self, loader: DataLoader, batches: MicroBatchSampler, accelerator: "ExactAccelerator"
    ) -> None:
        self.batches = batches
        self.accelerator = accelerator
        self.dataset = loader.dataset
        self.plan = MicroBatchPlan(batches)
        fetch = MicroBatchDataset(
            loader.dataset, loader.collate_fn, may_draw=accelerator.sharing.virtual
        )
        self.loader: DataLoader = DataLoader(
            fetch,
            batch_size=None,
            sampler=self.plan,
            collate_fn=identity,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=partial(begin_worker, loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            # Without a generator of its own it would draw from the global one.
            generator=torch.Generator().manual_seed(0),
        )

    def epoch(
        self, epoch: int, first: int, batches_per_update: int
    ) -> Iterator[tuple[MicroBatch, Any]]:
        """Each micro-batch of an epoch with its rows; the arguments are those of `MicroBatchSampler.epoch`."""
        self.plan.choose(epoch, first, batches_per_update)
        move = self.accelerator.device_placement
        before_workers_start(self.loader)
        for micro_batches, rows, problem in self.loader:
            if problem:
                raise SingleProcessError(problem)
            for micro_batch, its_rows in zip(micro_batches, rows, strict=True):
                if move:
                    device, blocking = self.accelerator.device, not self.loader.pin_memory
                    its_rows = send_to_device(its_rows, device, non_blocking=not blocking)
                yield micro_batch, its_rows

    def fingerprint(self) -> dict[str, Any]:
        """How many samples there are, and what can be seen of them: to read them all would take too long."""
        samples = len(self.dataset)  # type: ignore[arg-type]
        return {"length": samples, **visible_content(self.dataset)}


class MicroBatchPlan:
    """A sampler of micro-batches that can be retargeted, so one `DataLoader` and its workers serve all epochs."""

    def __init__(self, batches: MicroBatchSampler) -> None:
        self.batches = batches
        self.choose(0, 0, 1)

    def choose(self, epoch: int, first: int, batches_per_update: int) -> None:
        """Choose what the next iteration is to give; the arguments are those of `MicroBatchSampler.epoch`."""
        self.arguments = epoch, first, batches_per_update

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for micro_batches in self.batches.epoch(*self.arguments):
            for micro_batch in micro_batches:
                micro_batch.index = micro_batch.index.tolist()
            yield micro_batches

    def __len__(self) -> int:
        return len(self.batches)


class MicroBatchDataset(Dataset):
    """Reads the rows of micro-batches, in a worker or in the process itself.

    Before each sample is read, and before rows are collated, the generators of Python, NumPy and
    torch are seeded: for a sample by the seed of the training, the epoch and the sample's number.
    So what a transform draws does not depend on the process, its workers, or where the training was
    resumed.

    Args:
        dataset: a map-style data set.
        collate: makes a batch of a list of samples.
        may_draw: whether `collate` may draw random numbers; only with virtual processes.
    """

    def __init__(
        self, dataset: Dataset, collate: Callable[[list[Any]], Any], *, may_draw: bool
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.may_draw = may_draw
        self.checked = may_draw

    def __getitem__(
        self, micro_batches: list[MicroBatch]
    ) -> tuple[list[MicroBatch], list[Any], str]:
        """The micro-batches, the rows of each, and an error message, empty if there is none."""
        in_a_worker = get_worker_info() is not None
        kept = None if in_a_worker else GeneratorStates()
        try:
            rows = [self.rows(micro_batch) for micro_batch in micro_batches]
            return micro_batches, rows, ""
        except UserError as error:
            # Returned as text: an exception raised in a worker has its traceback in the message.
            return [], [], str(error)
        finally:
            if kept:
                kept.restore()

    def rows(self, micro_batch: MicroBatch) -> Any:
        """The collated rows of a micro-batch; if it is empty, a batch of one sample cut to zero rows."""
        numbers = micro_batch.index or [0]
        samples = []
        for number in numbers:
            seed_generators(seed_of("sample", micro_batch.seed, micro_batch.epoch, number))
            samples.append(self.dataset[number])
        place = micro_batch.batch, micro_batch.share, micro_batch.piece
        seed_generators(seed_of("collate", micro_batch.seed, micro_batch.epoch, *place))
        before = None if self.checked else GeneratorStates()
        rows = self.collate(samples)
        if before:
            self.refuse_draws(before)
        return rows if micro_batch.index else without_rows(rows)

    def refuse_draws(self, before: GeneratorStates) -> None:
        """Look once whether collating draws random numbers.

        Raises:
            UserError: it does, and without virtual processes these would depend on how batches are
                shared.
        """
        self.checked = True
        if before.changed():
            raise UserError(
                "collate_fn draws random numbers for each process's own samples, so the trained "
                "model would depend on the number of processes: pass virtual_processes to "
                "ExactAccelerator, or draw in the data set's __getitem__"
            )
