"""Loaders, options and loops that the core must refuse, by the words that its sentence has to hold."""

import os
import tempfile
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate import DataLoaderConfiguration, FullyShardedDataParallelPlugin
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
)
from exact_asking import Ask, data, first_update
from exact_data import (
    BATCH,
    SAMPLES,
    Rows,
    accelerator,
    mlp,
    numbers,
)
from exact_unusual import adversaries
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset


class Endless(IterableDataset):
    """Samples that have no numbers."""

    def __iter__(self) -> Any:
        return iter(numbers(SAMPLES, 6))


def prepare_loader(dataset: Dataset | None = None, **options: Any) -> Iterable[Any]:
    """A loader that is to be prepared."""
    return accelerator().prepare(DataLoader(dataset or data(), **options))


def distributed_sampler() -> object:
    """A loader that is shared out already."""
    sampler: DistributedSampler[Any] = DistributedSampler(data(), num_replicas=2, rank=0)
    return prepare_loader(batch_size=4, sampler=sampler)


def with_environment(name: str) -> None:
    """As `accelerate launch` says it to the processes."""
    with patch.dict(os.environ, {name: "true"}):
        accelerator()


def gradients_of_each_process() -> None:
    """Accelerate's way to skip the averaging."""
    exact = accelerator()
    model = exact.prepare(mlp(6, 3))
    with exact.no_sync(model):
        pass


def closure() -> None:
    """An optimizer that computes the loss several times."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.LBFGS(model.parameters())
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(data(), BATCH))
    for inputs, labels in loader:

        def again(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
            loss = F.cross_entropy(model(inputs), labels)
            exact.backward(loss)
            return loss

        optimizer.step(again)


def backward_outside_of_a_loop() -> None:
    """A batch from anywhere."""
    exact = accelerator()
    model, _ = exact.prepare(mlp(6, 3), DataLoader(data(), BATCH))
    exact.backward(model(numbers(4, 6)).sum())


def noisy(rows: list[Any]) -> Any:
    """A `collate_fn` that draws."""
    inputs = torch.stack([inputs for inputs, _ in rows])
    return inputs + torch.rand(len(rows), 1), torch.stack([label for _, label in rows])


def collate_that_draws(workers: int) -> None:
    """The first batch of a loader whose `collate_fn` draws."""
    for _ in prepare_loader(batch_size=BATCH, collate_fn=noisy, num_workers=workers):
        break


def backward_twice_for_a_share() -> None:
    """Two losses, one after the other, of one of the several shares that a process has."""
    exact = accelerator(virtual_processes=9)
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(data(), BATCH))
    for inputs, _ in loader:
        exact.backward(model(inputs).square().mean())
        exact.backward(model(inputs).mean())


def more_processes_than_samples() -> object:
    """A data set that is too small."""
    return prepare_loader(Rows(torch.zeros(accelerator().num_processes - 1)), batch_size=1)


def gather(*shape: int) -> None:
    """Rows that are not those of the batch."""
    exact = accelerator()
    for inputs, _ in exact.prepare(DataLoader(data(), BATCH)):
        exact.gather_for_metrics(torch.zeros(len(inputs) + 1, *shape))


def side_by_side() -> None:
    """Two loaders in turns, of which nobody knows whose rows a loss is of."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one, other = DataLoader(data(), BATCH), DataLoader(data(), 4)
    model, optimizer, one, other = exact.prepare(model, optimizer, one, other)
    for (inputs, labels), (unlabelled, _) in zip(one, other, strict=False):
        exact.backward(F.cross_entropy(model(inputs), labels) + model(unlabelled).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def skipping_a_part_of_an_update() -> None:
    """Batches that are skipped in the midst of an update's."""
    exact = accelerator(gradient_accumulation_steps=3)
    exact.skip_first_batches(exact.prepare(DataLoader(data(), BATCH)), 2)


def save_state_without_a_folder() -> object:
    """Nobody says where."""
    return accelerator().save_state()


def load_state_from_nowhere() -> None:
    """A folder that is not there."""
    accelerator().load_state("/nonexistent")


def load_state_of_accelerate() -> None:
    """What stock Accelerate has written."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "random_states_0.pkl").touch()
        accelerator().load_state(folder)


def without_end() -> None:
    """A sampler that goes on for ever, as for trainings that count steps."""
    endless: Any = cycle(range(SAMPLES))
    with patch("mnist_dist.core.orders.LONGEST_EPOCH", 1000):
        loader = prepare_loader(batch_size=4, sampler=endless)
    next(iter(loader))


def keys_for_indices() -> None:
    """A sampler of names."""
    next(iter(prepare_loader(batch_size=1, sampler=["one", "other"])))


def some_rows_only() -> None:
    """A loss over the rows of which the model is sure, as in semi-supervised training."""
    exact = accelerator()
    model, loader = exact.prepare(mlp(6, 3), DataLoader(data(), BATCH))
    for inputs, labels in loader:
        each = F.cross_entropy(model(inputs), labels, reduction="none")
        exact.backward(each[labels > 0].mean())


def rows_with_each_other() -> None:
    """A contrastive loss."""
    exact = accelerator()
    model, loader = exact.prepare(mlp(6, 3), DataLoader(data(), BATCH))
    for inputs, _ in loader:
        outputs = model(inputs)
        similarities = outputs @ model(inputs + 1).T
        exact.backward(F.cross_entropy(similarities, torch.arange(len(inputs))))


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def noise_between_two_passes() -> None:
    """As a GAN draws it, for the second of its losses."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(data(), BATCH))
    for inputs, labels in loader:
        exact.backward(F.cross_entropy(model(inputs), labels))
        noisy = inputs + torch.randn(inputs.shape, dtype=inputs.dtype)
        exact.backward(F.cross_entropy(model(noisy), labels))
        optimizer.step()
        optimizer.zero_grad()


REFUSED_USES: dict[str, tuple[Ask, str]] = {
    "noise between two passes": (noise_between_two_passes, "model or loss draws random numbers"),
    "a DistributedSampler": (distributed_sampler, "has a DistributedSampler"),
    "no batches": (lambda: prepare_loader(batch_size=None), "the loader has no batch size"),
    "a stream without batches": (
        lambda: prepare_loader(Endless(), batch_size=None),
        "the loader has no batch size",
    ),
    "dispatch_batches": (
        lambda: accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=True)),
        "dispatch_batches makes the first process read all data",
    ),
    "FSDP": (
        lambda: accelerator(fsdp_plugin=FullyShardedDataParallelPlugin()),
        "fsdp shards the model",
    ),
    "a launch with FSDP": (
        lambda: with_environment("ACCELERATE_USE_FSDP"),
        "fsdp shards the model",
    ),
    "a launch with DeepSpeed": (
        lambda: with_environment("ACCELERATE_USE_DEEPSPEED"),
        "deepspeed shards the model",
    ),
    "a launch with Megatron": (
        lambda: with_environment("ACCELERATE_USE_MEGATRON_LM"),
        "megatron_lm shards the model",
    ),
    "fp8": (
        lambda: accelerator(mixed_precision="fp8"),
        "is not exact yet: use 'no', 'fp16' or 'bf16'",
    ),
    "updates over the epoch's end": (
        lambda: accelerator(
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=2, sync_with_dataloader=False
            )
        ),
        "leave it at True",
    ),
    "no_sync": (
        gradients_of_each_process,
        "accelerator.no_sync would leave gradients unsynchronised",
    ),
    "a closure": (closure, "LBFGS.step was given a closure"),
    "backward outside of a loop": (
        backward_outside_of_a_loop,
        "outside of a loop over a prepared loader",
    ),
    "a collate_fn that draws": (lambda: collate_that_draws(0), "collate_fn draws random numbers"),
    "a collate_fn that draws in a worker": (
        lambda: collate_that_draws(1),
        "collate_fn draws random numbers",
    ),
    "two losses of a share": (backward_twice_for_a_share, "called twice for one share of a batch"),
    "two networks in turns, of several shares": (
        lambda: adversaries(accelerator(virtual_processes=9)),
        "called twice for one share of a batch",
    ),
    "two networks in turns, in pieces": (
        lambda: adversaries(accelerator(micro_batches=2)),
        "called twice for one micro-batch, with no optimizer step possible in between",
    ),
    "weights of classes": (
        lambda: first_update(mlp(6, 3), weight=CLASS_WEIGHTS),
        "the loss weights classes, so it is not the mean over rows",
    ),
    "ignored targets": (
        lambda: first_update(mlp(6, 3), ignore_index=0),
        "(ignore_index), so it is not the mean over rows",
    ),
    "a sum": (
        lambda: first_update(mlp(6, 3), reduction="sum"),
        "the loss is a sum, and should be a mean over the ",
    ),
    "some rows only": (some_rows_only, "so rows have unequal numbers of them"),
    "rows with each other": (
        rows_with_each_other,
        "the loss compares the rows of a batch with each other",
    ),
    "a sparse optimizer": (
        lambda: accelerator().prepare(torch.optim.SparseAdam(mlp(6, 3).parameters())),
        "SparseAdam needs sparse gradients",
    ),
    "a communication hook": (
        lambda: accelerator(
            kwargs_handlers=[DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)]
        ),
        "the DDP communication hook fp16 cannot be used",
    ),
    "too few samples": (more_processes_than_samples, " samples: start at most "),
    "too few virtual processes": (
        lambda: accelerator(virtual_processes=max(1, accelerator().num_processes - 1)),
        "virtual processes: start at most ",
    ),
    "rows too many": (gather, "pass one row for each sample that the loader has just yielded"),
    "loaders in turns": (side_by_side, "two loaders are read in turns"),
    "a part of an update": (skipping_a_part_of_an_update, "gradient_accumulation_steps"),
    "no folder": (save_state_without_a_folder, "save_state was given no folder"),
    "no checkpoint": (load_state_from_nowhere, "there is no checkpoint /nonexistent"),
    "a sampler without end": (without_end, "has given over "),
    "keys for indices": (keys_for_indices, "but ExactAccelerator takes integers only"),
    "a hook on saving": (
        lambda: accelerator().register_save_state_pre_hook(print),
        "register_save_state_pre_hook was given a hook",
    ),
    "a hook on loading": (
        lambda: accelerator().register_load_state_pre_hook(print),
        "register_load_state_pre_hook was given a hook",
    ),
    "an option of saving": (
        lambda: accelerator().save_state("/nonexistent", max_shard_size="1GB"),
        "save_state was given max_shard_size",
    ),
    "an option of loading": (
        lambda: accelerator().load_state("/nonexistent", strict=False),
        "load_state was given strict",
    ),
    "a checkpoint of Accelerate": (
        load_state_of_accelerate,
        "written by Accelerate's own save_state",
    ),
}


# One process has not too few of anything.
SEVERAL_ONLY = {"too few samples", "too few virtual processes"}
