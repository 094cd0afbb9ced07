"""What the core must refuse, by the words that its sentence has to hold, and what it must accept."""

import os
import tempfile
from collections.abc import Callable
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
from exact_cases import BATCH, SAMPLES, SEED, Rows, mlp, numbers
from exact_parts import adversaries
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

from mnist_dist.core import ExactAccelerator, UserError

Ask = Callable[[], object]


def accelerator(**options: Any) -> ExactAccelerator:
    """One on the CPU."""
    return ExactAccelerator(cpu=True, seed=SEED, **options)


def data() -> TensorDataset:
    """6 numbers and a class for each sample."""
    return TensorDataset(numbers(SAMPLES, 6), numbers(SAMPLES, below=3))


def first_update(
    model: nn.Module, exact: ExactAccelerator | None = None, **loss_options: Any
) -> None:
    """One update of a classifier of 6 numbers into 3 classes; a refusal leaves its weights as they were."""
    exact = exact or accelerator()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        prepared, optimizer, loader = exact.prepare(
            model, optimizer, DataLoader(data(), BATCH, shuffle=True)
        )
        for inputs, labels in loader:
            loss = F.cross_entropy(prepared(inputs), labels, **loss_options)
            exact.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if exact.updates == 1:
                break
    except UserError:
        assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
        raise
    assert not torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))


def network(*layers: nn.Module) -> nn.Module:
    """A classifier with these layers in it."""
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3)).double()


def encoder(dropout: float = 0.0) -> nn.Module:
    """A block of a transformer."""
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=dropout, batch_first=True)


class OwnBatchNorm(nn.BatchNorm1d):
    """Its forward pass is not torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).relu()


class Drops(nn.Module):
    """Draws random numbers in its forward, without a layer that could be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(6, 8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.dropout(self.layer(inputs), 0.5, self.training)


class Counts(nn.Module):
    """Has an embedding, which it leaves alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = mlp(6, 8, 3)
        self.table = nn.Embedding(3, 3, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


class Endless(IterableDataset):
    """Samples that have no numbers."""

    def __iter__(self) -> Any:
        return iter(numbers(SAMPLES, 6))


def parameters_of_the_loss() -> None:
    """A loss with parameters of its own, which the optimizer is given, too."""
    model = mlp(6, 5, 1)
    temperature = nn.Parameter(numbers(1))
    accelerator().prepare(model, torch.optim.SGD([*model.parameters(), temperature], lr=0.1))


def prepare_loader(dataset: Dataset | None = None, **options: Any) -> object:
    """A loader that is to be prepared."""
    return accelerator().prepare(DataLoader(dataset or data(), **options))


def distributed_sampler() -> object:
    """A loader that is shared out already."""
    sampler = DistributedSampler(data(), num_replicas=2, rank=0)
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


REFUSED: dict[str, tuple[Ask, str]] = {
    "a batch norm of the user's": (
        lambda: first_update(network(OwnBatchNorm(6))),
        "OwnBatchNorm 1 computes statistics over",
    ),
    "instance norm with averages": (
        lambda: first_update(
            network(
                nn.Unflatten(1, (3, 2)),
                nn.InstanceNorm1d(3, track_running_stats=True),
                nn.Flatten(),
            )
        ),
        "GroupNorm or LayerNorm, or set virtual_processes",
    ),
    "batch norm in pieces": (
        lambda: first_update(network(nn.BatchNorm1d(6)), accelerator(micro_batches=2)),
        "BatchNorm1d 1 needs all rows of a batch at once",
    ),
    "dropout": (
        lambda: first_update(network(nn.Dropout(0.1))),
        "Dropout 1 draws random numbers for",
    ),
    "dropout in an encoder": (
        lambda: first_update(network(nn.Unflatten(1, (1, 6)), encoder(0.1), nn.Flatten())),
        "MultiheadAttention 2.self_attn draws random numbers for",
    ),
    "dropout between GRUs": (
        lambda: first_update(Recurrent(0.1)),
        "GRU gru draws random numbers for",
    ),
    "dropout in the forward": (
        lambda: first_update(Drops()),
        "the model or loss draws random numbers (torch)",
    ),
    "noise in the forward": (
        lambda: first_update(network(nn.RReLU())),
        "draws random numbers (torch)",
    ),
    "a state in the forward": (
        lambda: first_update(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3).double())),
        "changes its buffer parametrizations.weight.0._",
    ),
    "a loss for each": (
        lambda: first_update(network(), reduction="none"),
        "give the mean over its rows, a scalar",
    ),
    "an embedding's frequencies": (
        lambda: first_update(Counts(scale_grad_by_freq=True)),
        "scale_grad_by_freq",
    ),
    "an embedding's norm": (lambda: first_update(Counts(max_norm=1.0)), "leave out max_norm"),
    "an embedding's norm with virtual processes": (
        lambda: first_update(Counts(max_norm=1.0), accelerator(virtual_processes=7)),
        "leave out max_norm",
    ),
    "batch normalisation over processes": (
        lambda: first_update(
            network(nn.SyncBatchNorm(6).double()), accelerator(virtual_processes=7)
        ),
        "use BatchNorm with virtual_processes",
    ),
    "parameters of the loss": (
        parameters_of_the_loss,
        "not the model's, so they would not be saved: make them part of the model",
    ),
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
    "a checkpoint of Accelerate": (
        load_state_of_accelerate,
        "written by Accelerate's own save_state",
    ),
}
SEVERAL_ONLY = {
    "too few samples",
    "too few virtual processes",
}  # one process has not too few of anything


class Recurrent(nn.Module):
    """Classes of sequences of one."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 3, 2, dropout=dropout).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.gru(inputs[None])[0][0]


def precise_targets() -> None:
    """A loss in float64 of a network in float32."""
    exact = accelerator()
    model = mlp(6, 512, 1).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = TensorDataset(
        numbers(SAMPLES, 6).float(), torch.zeros(SAMPLES, 1, dtype=torch.float64)
    )
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(dataset, 14))
    for inputs, targets in loader:
        exact.backward((model(inputs) - targets).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def evaluation_that_draws() -> None:
    """Random numbers outside of what is trained, in the midst of an epoch: nothing depends on them."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train, test = DataLoader(data(), BATCH), DataLoader(data(), BATCH)
    model, optimizer, train, test = exact.prepare(model, optimizer, train, test)
    for inputs, labels in train:
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()
        for inputs_of_test, _ in test:
            with torch.no_grad():
                model(inputs_of_test + torch.rand(1))


def one_batch_of_another_loader() -> None:
    """A loop over a loader that is left after its first batch, in the midst of that over another."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train, test = DataLoader(data(), BATCH), DataLoader(data(), 4)
    model, optimizer, train, test = exact.prepare(model, optimizer, train, test)
    for inputs, labels in train:
        for inputs_of_test, _ in test:
            model(inputs_of_test)
            break
        first_of_test, _ = next(iter(test))
        model(first_of_test)
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()


def slopes() -> None:
    """A loss that asks for gradients, such as of a physical equation that its inputs are to obey."""
    exact = accelerator()
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(Rows(numbers(SAMPLES, 6)), 7)
    )
    for rows in loader:
        inputs = rows.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        exact.backward(slope.square().sum(dim=1).mean())
        optimizer.step()
        optimizer.zero_grad()


ACCEPTED: dict[str, Ask] = {
    "dropout 0": lambda: first_update(network(nn.Dropout(0.0))),
    "a GRU without dropout": lambda: first_update(Recurrent(0.0)),
    "an encoder without dropout": lambda: first_update(
        network(nn.Unflatten(1, (1, 6)), encoder(), nn.Flatten())
    ),
    "an embedding": lambda: first_update(Counts()),
    "batch norm": lambda: first_update(network(nn.BatchNorm1d(6))),
    "batch norm without averages": lambda: first_update(
        network(nn.BatchNorm1d(6, track_running_stats=False))
    ),
    "group norm": lambda: first_update(network(nn.GroupNorm(2, 6))),
    "layer norm": lambda: first_update(network(nn.LayerNorm(6))),
    "dropout with virtual processes": lambda: first_update(
        network(nn.Dropout(0.5)), accelerator(virtual_processes=7)
    ),
    "noise with virtual processes": lambda: first_update(
        network(nn.RReLU()), accelerator(virtual_processes=7)
    ),
    "label smoothing": lambda: first_update(network(), label_smoothing=0.1),
    "float64 targets": precise_targets,
    "an evaluation that draws": evaluation_that_draws,
    "one batch of another loader": one_batch_of_another_loader,
    "gradients in the loss": slopes,
}


def answer(ask: Ask) -> str:
    """What is said: the sentence of the refusal, or nothing."""
    torch.manual_seed(SEED)
    try:
        ask()
    except UserError as error:
        return str(error)
    return ""
