"""Trainings with nothing but the core, each with the same in plain PyTorch beside it; see test_core.py.

    torchrun --nproc-per-node W tests/core_driver.py FOLDER
    python tests/core_driver.py FOLDER W

trains every case in the processes it finds itself in, plants the faults, asks for what must be refused, stops and
resumes in FOLDER/run, and writes what came out to FOLDER/results.pt.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from forked import fork
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import AveragedModel

from mnist_dist.core import Batch, Checkpoints, GlobalBatches, Stopped, Training, UserError, evaluate, stream

SAMPLES, BATCH, EPOCHS, SEED = 41, 10, 2, 5  # the last batch has one sample: the other processes have an empty share
VOCABULARY, LENGTH, NONE = 11, 7, -100  # NONE: `ignore_index` of torch's losses

Words = tuple[int, int, int]  # seed, epoch and number of a batch


@dataclass(frozen=True)
class Case:
    """One training, for the core and for plain PyTorch."""

    data: Any  # as `GlobalBatches` takes it
    network: Callable[[], nn.Module]  # in float64
    loss: Callable[[nn.Module, Batch], Tensor]  # for the core: the sum over the terms
    losses: Callable[[nn.Module, Any, Words], Tensor]  # in plain PyTorch: (terms,) for the rows of a whole batch
    output: Callable[[nn.Module, Any], Tensor]  # (n, ...) for rows, to be evaluated
    terms: Tensor | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9
    )
    factor: Callable[[int], float] | None = None  # of the rates, by the number of the update
    pieces: int = 1
    clip_norm: float = 0.0


def numbers(*shape: int, below: int = 0) -> Tensor:
    """The same for everyone: float64 and normal, or int64 and below a limit."""
    generator = torch.Generator().manual_seed(sum(shape))
    if below:
        return torch.randint(below, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rows(data: Any, index: Tensor) -> Any:
    """These samples, in the structure of the data."""
    if isinstance(data, Tensor):
        return data[index]
    if isinstance(data, Mapping):
        return {name: tensor[index] for name, tensor in data.items()}
    return tuple(tensor[index] for tensor in data)


def mlp(*widths: int) -> nn.Sequential:
    layers = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


class Speaker(nn.Module):
    """(n, T) token numbers to (n, T, VOCABULARY) float64 scores, each from the tokens so far."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
        return self.head(self.block(self.embed(tokens), src_mask=causal, is_causal=True))


# Tokens: int64 inputs and three classes, in a tuple.
def tokens() -> Case:
    def network() -> nn.Module:
        return nn.Sequential(nn.EmbeddingBag(VOCABULARY, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    return Case(
        (numbers(SAMPLES, 4, below=VOCABULARY), numbers(SAMPLES, below=3)),
        network,
        lambda model, batch: F.cross_entropy(model(batch.data[0]), batch.data[1], reduction="sum"),
        lambda model, data, _: F.cross_entropy(model(data[0]), data[1], reduction="none"),
        lambda model, data: model(data[0]),
    )


# Pictures: uint8 inputs, in a dict.
def pictures() -> Case:
    def network() -> nn.Module:
        layers = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        return nn.Sequential(*layers).double()

    def scores(model: nn.Module, data: Any) -> Tensor:
        return model(data["picture"].double() / 255)

    return Case(
        {"picture": numbers(SAMPLES, 3, 8, 8, below=256).to(torch.uint8), "label": numbers(SAMPLES, below=3)},
        network,
        lambda model, batch: F.cross_entropy(scores(model, batch.data), batch.data["label"], reduction="sum"),
        lambda model, data, _: F.cross_entropy(scores(model, data), data["label"], reduction="none"),
        scores,
    )


# A regression from bfloat16 inputs, which are their own targets: one tensor.
def regression() -> Case:
    def squares(model: nn.Module, data: Tensor) -> Tensor:
        return (model(data.double()) - data.double()).square().sum(dim=1)

    return Case(
        numbers(SAMPLES, 6).bfloat16(),
        partial(mlp, 6, 3, 6),
        lambda model, batch: squares(model, batch.data).sum(),
        lambda model, data, _: squares(model, data),
        lambda model, data: model(data.double()),
    )


# Two groups of parameters, each with its own rate, under a schedule.
def groups() -> Case:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        first, *_, last = (layer for layer in model if isinstance(layer, nn.Linear))
        two = {"params": first.parameters(), "lr": 0.01}, {"params": last.parameters(), "lr": 0.002}
        return torch.optim.AdamW(two, weight_decay=0.1)

    return Case(
        (numbers(SAMPLES, 6), numbers(SAMPLES, 1)),
        partial(mlp, 6, 5, 1),
        lambda model, batch: F.mse_loss(model(batch.data[0]), batch.data[1], reduction="sum"),
        lambda model, data, _: (model(data[0]) - data[1]).square(),
        lambda model, data: model(data[0]),
        optimizer=optimizer,
        factor=lambda update: 1.0 - update / 20,
    )


# Sequences of different lengths: the loss is per token of the global batch.
def sentences(**options: Any) -> Case:
    lengths = 1 + numbers(SAMPLES, below=LENGTH)
    text = numbers(SAMPLES, LENGTH + 1, below=VOCABULARY)
    targets = text[:, 1:].masked_fill(torch.arange(LENGTH) >= lengths[:, None], NONE)

    def score(model: nn.Module, data: Any, reduction: str) -> Tensor:
        return F.cross_entropy(model(data[0]).transpose(1, 2), data[1], reduction=reduction, ignore_index=NONE)

    return Case(
        (text[:, :-1].contiguous(), targets),
        Speaker,
        lambda model, batch: score(model, batch.data, "sum"),
        lambda model, data, _: score(model, data, "none")[data[1] != NONE],
        lambda model, data: model(data[0]),
        lengths,
        **options,
    )


# Tokens to be guessed are chosen at random: the loss sets the terms.
def masked() -> Case:
    def chosen(words: Words, size: int) -> Tensor:
        return torch.rand(size, LENGTH, generator=stream("mask", *words)) < 0.3

    def losses(model: nn.Module, text: Tensor, hidden: Tensor) -> Tensor:
        scores = model(text.masked_fill(hidden, 0))
        return F.cross_entropy(scores[hidden], text[hidden], reduction="none")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        hidden = chosen(batch.words, batch.size)
        batch.terms = hidden.sum()
        return losses(model, batch.data, hidden[batch.positions]).sum()

    return Case(
        1 + numbers(SAMPLES, LENGTH, below=VOCABULARY - 1),
        Speaker,
        loss,
        lambda model, text, words: losses(model, text, chosen(words, len(text))),
        lambda model, text: model(text),
        pieces=2,
    )


# Random numbers: dropout and noise, of which every sample has its own however it is shared.
def dropout() -> Case:
    def losses(model: nn.Module, data: Any, uniform: Tensor, normal: Tensor) -> Tensor:
        inputs, labels = data
        return F.cross_entropy(model((inputs + 0.1 * normal) * (uniform >= 0.25) / 0.75), labels, reduction="none")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return losses(model, batch.data, batch.rand("dropout", 6), batch.rand("noise", 6, normal=True)).sum()

    def plain(model: nn.Module, data: Any, words: Words) -> Tensor:
        shape = len(data[0]), 6
        uniform = torch.rand(shape, generator=stream("dropout", *words))
        return losses(model, data, uniform, torch.randn(shape, generator=stream("noise", *words)))

    return Case(
        (numbers(SAMPLES, 6), numbers(SAMPLES, below=3)),
        partial(mlp, 6, 8, 3),
        loss,
        plain,
        lambda model, data: model(data[0]),
        pieces=3,
    )


CASES: dict[str, Callable[[], Case]] = {
    "tokens": tokens,
    "pictures": pictures,
    "regression": regression,
    "groups": groups,
    "sentences": sentences,
    "sentences-in-pieces": partial(sentences, pieces=3),
    "sentences-clipped": partial(sentences, pieces=3, clip_norm=0.05),
    "masked": masked,
    "dropout": dropout,
}


def plain(case: Case) -> dict[str, Any]:
    """The case in one process and plain PyTorch: every update is one on the mean over the whole batch."""
    torch.manual_seed(SEED)
    model = case.network()
    optimizer, update, losses = case.optimizer(model), 0, [torch.zeros(0)]
    rates = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(EPOCHS):
        order, losses = GlobalBatches(case.data, BATCH, seed=SEED).order(epoch), []
        for number, index in enumerate(order.split(BATCH)):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (case.factor(update) if case.factor else 1.0)
            losses.append(case.losses(model, rows(case.data, index), (SEED, epoch, number)))
            optimizer.zero_grad()
            losses[-1].mean().backward()
            if case.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
            optimizer.step()
            update += 1
    return {
        "weights": model.state_dict(),
        "train_loss": torch.cat([each.detach().flatten() for each in losses]).mean().item(),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "outputs": case.output(model, case.data).detach(),
    }


def train(accelerator: Accelerator, case: Case, checked: bool = False) -> dict[str, Any]:
    """The same with the core, on all processes; `checked` switches off its look at the loss."""
    torch.manual_seed(SEED)
    model = case.network()
    batches = GlobalBatches(case.data, BATCH, accelerator, seed=SEED, terms=case.terms)
    training = Training(accelerator, model, case.optimizer(model), case.loss)
    training.checked = checked
    while training.progress.epoch < EPOCHS:
        for batch in training.epoch(batches):
            if case.factor:
                training.set_rate(case.factor(training.progress.global_step))
            training.update(batch, pieces=case.pieces, clip_norm=case.clip_norm)
    held_out = GlobalBatches(case.data, 9, accelerator)
    outputs = evaluate(accelerator, model, held_out, lambda model, batch: case.output(model, batch.data))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"weights": weights, "outputs": outputs} | training.figures


# The faults that the comparison must see.
def mean_per_share(accelerator: Accelerator, checked: bool) -> dict[str, Any]:
    """The mean over the tokens of each process's share, averaged over the processes, as in most training scripts."""
    case = sentences()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        mine = int((batch.data[1] != NONE).sum())
        return case.loss(model, batch) * batch.terms / accelerator.num_processes / max(mine, 1)

    return train(accelerator, replace(case, loss=loss), checked)


def share_of_the_terms(accelerator: Accelerator, checked: bool) -> dict[str, Any]:
    """The sum is divided by the tokens of each process's share: the loss is a sum, and the weight is wrong."""
    deal = GlobalBatches.epoch

    def own_terms(self: GlobalBatches, *args: int, **options: int) -> Any:
        for batch in deal(self, *args, **options):
            if self.terms is not None:
                batch.terms = int(self.terms[batch.index].sum().clamp(min=1)) * self.sharing.world
            yield batch

    with patch.object(GlobalBatches, "epoch", own_terms):
        return train(accelerator, sentences(), checked)


def dropout_drawn_by_every_process(accelerator: Accelerator, checked: bool) -> dict[str, Any]:
    """`torch.rand` for the samples of a share, as `nn.Dropout` does, instead of `batch.rand`."""

    def own(self: Batch, _: str, *shape: int, normal: bool = False) -> Tensor:
        return (torch.randn if normal else torch.rand)(len(self.index), *shape)

    with patch.object(Batch, "rand", own):
        return train(accelerator, dropout(), checked)


def processes_weighed_equally(accelerator: Accelerator, checked: bool) -> dict[str, Any]:
    """The mean over each share's samples, averaged over the processes (pytorch #67253)."""
    case = tokens()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return case.loss(model, batch) * batch.size / accelerator.num_processes / max(len(batch.index), 1)

    return train(accelerator, replace(case, loss=loss), checked)


FAULTS = {  # the case that shows each, and what is said of it: the loss that is divided by other terms is a sum
    mean_per_share: ("sentences", "is no sum over samples"),
    share_of_the_terms: ("sentences", ""),
    dropout_drawn_by_every_process: ("dropout", "draws at random"),
    processes_weighed_equally: ("tokens", "is no sum over samples"),
}


# What must be refused, before the first update.
class Drops(nn.Module):
    """Draws random numbers in its forward, without a layer that could be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(6, 8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.dropout(self.layer(inputs), 0.5, self.training)


def first_update(accelerator: Accelerator, network: nn.Module, reduction: str = "sum", **loss: Any) -> None:
    """An update of a classifier of 6 numbers into 3 classes."""
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    data = numbers(SAMPLES, 6), numbers(SAMPLES, below=3)

    def score(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.data[0]), batch.data[1], reduction=reduction, **loss)

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    try:
        training = Training(accelerator, network, optimizer, score)
        training.update(next(training.epoch(GlobalBatches(data, BATCH, accelerator, seed=SEED))))
    except UserError:
        assert torch.equal(before, nn.utils.parameters_to_vector(network.parameters()))  # it is as it was
        raise


def precise_targets(accelerator: Accelerator) -> None:
    """A loss in float64 of a network in float32, whose halves differ from the whole as float32 does."""
    model, data = mlp(6, 512, 1).float(), (numbers(SAMPLES, 6).float(), torch.zeros(SAMPLES, 1, dtype=torch.float64))

    def score(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch.data[0]) - batch.data[1]).square().sum()  # torch 2.11 has no `mse_loss` of two dtypes

    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), score)
    training.update(next(GlobalBatches(data, 14, accelerator).epoch()))


class Counts(nn.Module):
    """Has an embedding, which it may leave alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer, self.table = mlp(6, 8, 3), nn.Embedding(3, 3, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def other_parameters(accelerator: Accelerator) -> None:
    """A loss with parameters of its own, which the optimizer is given, too."""
    model, temperature = mlp(6, 5, 1), nn.Parameter(numbers(1))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    Training(accelerator, model, optimizer, lambda model, batch: (model(batch.data) * temperature).sum())


def terms_of_its_rows(accelerator: Accelerator) -> None:
    """A masked loss that counts in its own rows what is not masked."""
    model = mlp(6, 5, 1)

    def score(model: nn.Module, batch: Batch) -> Tensor:
        batch.terms = (batch.data < 9).all(dim=1).sum()
        return model(batch.data).square().sum()

    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), score)
    training.update(next(GlobalBatches(numbers(20, 6), 14, accelerator).epoch()))


def penalty(accelerator: Accelerator, size: int, weight: float) -> None:
    """A term that does not come from samples, in float32."""
    model = mlp(6, 5, 1).float()

    def score(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.data).square().sum() + weight * sum(each.square().sum() for each in model.parameters())

    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), score)
    training.update(next(GlobalBatches(numbers(400, 6).float(), size, accelerator).epoch()))


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3)).double()


def encoder(dropout: float = 0.0) -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=dropout, batch_first=True)


REFUSED: dict[str, tuple[Callable[[Accelerator], object], str]] = {
    "batch norm": (lambda a: first_update(a, network(nn.BatchNorm1d(6))), "BatchNorm1d"),
    "batch norm without averages": (
        lambda a: first_update(a, network(nn.BatchNorm1d(6, track_running_stats=False))),
        "use GroupNorm or LayerNorm",
    ),
    "dropout": (lambda a: first_update(a, network(nn.Dropout(0.1))), "Dropout"),
    "dropout in an encoder": (lambda a: first_update(a, network(encoder(0.1))), "1.self_attn"),
    "dropout between GRUs": (lambda a: first_update(a, network(nn.GRU(6, 6, 2, dropout=0.1))), "GRU"),
    "dropout in the forward": (lambda a: first_update(a, Drops()), "draws at random"),
    "attention between samples": (lambda a: first_update(a, network(encoder())), "is no sum over samples"),
    "noise in the forward": (lambda a: first_update(a, network(nn.RReLU())), "draws at random"),
    "a state in the forward": (
        lambda a: first_update(a, nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3).double())),
        "changes its buffers",
    ),
    "a mean": (lambda a: first_update(a, network(), "mean"), "reduction='sum'"),
    "a loss for each": (lambda a: first_update(a, network(), "none"), "give its sum"),
    "700 and 640 rows": (lambda a: GlobalBatches((torch.zeros(700, 2), torch.zeros(640)), 10, a), "700 and 640 rows"),
    "an embedding's frequencies": (lambda a: first_update(a, Counts(scale_grad_by_freq=True)), "scale_grad_by_freq"),
    "an embedding's norm": (lambda a: first_update(a, Counts(max_norm=1.0)), "max_norm"),
    "parameters of the loss": (other_parameters, "not the model's: make them part of it"),
    "terms of its rows": (terms_of_its_rows, "the loss sets terms by its own rows"),
    "a penalty": (lambda a: penalty(a, 380, 0.01), "is no sum over samples"),
    "a penalty, a sample for each process": (lambda a: penalty(a, a.num_processes, 0.01), "is no sum over samples"),
    "terms of others": (lambda a: GlobalBatches(torch.zeros(9), 3, a, terms=torch.ones(8)), "8 and 9 rows"),
}
ACCEPTED: dict[str, Callable[[Accelerator], object]] = {
    "dropout 0": lambda a: first_update(a, network(nn.Dropout(0.0))),
    "an encoder without dropout": lambda a: first_update(a, network(nn.Unflatten(1, (1, 6)), encoder(), nn.Flatten())),
    "an embedding": lambda a: first_update(a, Counts()),
    "group norm": lambda a: first_update(a, network(nn.GroupNorm(2, 6))),
    "layer norm": lambda a: first_update(a, network(nn.LayerNorm(6))),
    "float64 targets": precise_targets,
    "label smoothing": lambda a: first_update(a, network(), label_smoothing=0.1),
}


def answer(ask: Callable[[Accelerator], object], accelerator: Accelerator) -> str:
    """What is said: the sentence of the refusal, or nothing."""
    torch.manual_seed(SEED)
    try:
        ask(accelerator)
    except UserError as error:
        return str(error)
    return ""


# Evaluations: any dtype and trailing shape.
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float64": lambda scores: scores,
    "float32": lambda scores: scores.float(),
    "bfloat16": lambda scores: scores.bfloat16(),
    "bool": lambda scores: scores[:, 0] > scores[:, 1],
    "int64": lambda scores: scores.argmax(dim=1),
    "uint8": lambda scores: (scores > 0).to(torch.uint8),
    "deep": lambda scores: torch.stack([scores, -scores], dim=1)[:, None],
}


def evaluations(accelerator: Accelerator) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """The answers of a network in all these forms, with the network and its inputs."""
    torch.manual_seed(SEED)
    model, inputs = tokens().network(), numbers(SAMPLES, 4, below=VOCABULARY)
    batches = GlobalBatches(inputs, 9, accelerator)
    return (
        model,
        inputs,
        {
            name: evaluate(accelerator, model, batches, lambda model, batch, form=form: form(model(batch.data)))
            for name, form in OUTPUTS.items()
        },
    )


def thawed(accelerator: Accelerator) -> dict[str, Tensor]:
    """A layer that is frozen when training begins, and then is not; and one that is added to the optimizer later."""
    torch.manual_seed(SEED)
    case, model = tokens(), tokens().network()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    training = Training(accelerator, model, optimizer, case.loss)
    for epoch, batches in enumerate(3 * [GlobalBatches(case.data, BATCH, accelerator, seed=SEED)]):
        if epoch == 1:
            model[2].weight.requires_grad_()
        if epoch == 2:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.2})
        for batch in batches.epoch(epoch):
            training.update(batch)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def other_data(accelerator: Accelerator) -> None:
    """The same files, listed in another order."""
    data, model = numbers(SAMPLES, 6).roll(accelerator.process_index, 0), mlp(6, 8, 3)
    training = Training(
        accelerator, model, torch.optim.SGD(model.parameters()), lambda model, batch: model(batch.data).sum()
    )
    training.update(next(GlobalBatches(data, BATCH, accelerator).epoch()))


def other_buffers(accelerator: Accelerator) -> None:
    model = mlp(6, 8, 3)
    model.register_buffer("projection", torch.full((3,), float(accelerator.process_index)))
    Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), tokens().loss)


# Checkpoints: asked to stop, and gone on from a checkpoint within an epoch.
def stop_and_resume(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """A float32 run that is never stopped, and the same stopped by a signal to one process and resumed elsewhere."""
    data, batch_size, epochs, every = (numbers(SAMPLES, 6).float(), numbers(SAMPLES, below=3)), 4, 4, 3

    def begin(run: Path) -> tuple[Training, Checkpoints, GlobalBatches]:
        torch.manual_seed(SEED)
        model = mlp(6, 8, 3).float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        training = Training(accelerator, model, optimizer, dropout().loss)
        parts = {"schedule": ExponentialLR(optimizer, 0.95), "average": AveragedModel(model)}
        checkpoints = Checkpoints(run, training, parts, {"--seed": SEED}, every)
        return training, checkpoints, GlobalBatches(data, batch_size, accelerator, seed=SEED)

    def go_on(training: Training, checkpoints: Checkpoints, batches: GlobalBatches, signal_at: int = 0) -> None:
        while training.progress.epoch < epochs:
            for batch in training.epoch(batches):
                training.update(batch, pieces=2)
                checkpoints.parts["schedule"].step()
                checkpoints.parts["average"].update_parameters(training.bare)
                checkpoints.values["seen"] = [*checkpoints.values.get("seen", []), batch.index.tolist()]
                if training.progress.global_step == signal_at and accelerator.process_index == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                checkpoints.after_update()
            checkpoints.values["losses"] = [*checkpoints.values.get("losses", []), training.figures["train_loss"]]
            checkpoints.save(last=training.progress.epoch == epochs)

    def state(training: Training, checkpoints: Checkpoints) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in checkpoints.parts.items() if name != "training"}
        return {"weights": training.bare.state_dict(), "values": checkpoints.values} | parts

    whole = begin(folder / "whole")
    go_on(*whole)
    stopped_at = 0
    first = begin(folder / "stopped")
    try:
        with patch("mnist_dist.core.stopping.MOST_SECONDS", 0):  # ask after every update
            go_on(*first, signal_at=5)
    except Stopped:
        stopped_at = first[0].progress.global_step
    if accelerator.is_main_process:  # as if it had been killed: back to the checkpoint before, in the midst of an epoch
        shutil.rmtree(max((folder / "stopped" / "checkpoints").glob("step-*")))
    accelerator.wait_for_everyone()
    second = begin(folder / "stopped")
    assert second[1].resume()
    resumed_at, within = second[0].progress.global_step, second[0].progress.step
    go_on(*second)
    return {
        "whole": state(*whole[:2]),
        "resumed": state(*second[:2]),
        "stopped_at": gather_object([stopped_at]),
        "resumed_at": resumed_at,
        "within": within,
    }


def other_order(accelerator: Accelerator) -> None:
    """Parameters as a set, whose order depends on where they are in memory, gives them to the optimizer."""
    model = mlp(6, 5, 1)
    turned = [*model.parameters()][:: -1 if accelerator.process_index else 1]
    Training(accelerator, model, torch.optim.SGD(turned, lr=0.1), lambda model, batch: model(batch.data).sum())


def parted(accelerator: Accelerator) -> None:
    """Something changes the weights by itself on each process."""
    model = mlp(6, 5, 1)
    training = Training(
        accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), lambda model, batch: model(batch.data).sum()
    )
    for batch in training.epoch(GlobalBatches(numbers(20, 6), 7, accelerator)):
        training.update(batch)
        with torch.no_grad():
            model[0].weight[0, 0] += 0.01 * accelerator.process_index


def main() -> None:
    folder, accelerator = Path(sys.argv[1]), Accelerator(cpu=True)
    results: dict[str, Any] = {"cases": {name: train(accelerator, case()) for name, case in CASES.items()}}
    results["faults"] = {fault.__name__: fault(accelerator, True) for fault in FAULTS}
    results["faults seen"] = {fault.__name__: answer(partial(fault, checked=False), accelerator) for fault in FAULTS}
    asked: dict[str, Callable[[Accelerator], object]] = {name: ask for name, (ask, _) in REFUSED.items()}
    asked |= {"buffers": other_buffers, "data": other_data, "order": other_order, "parted": parted}
    asked["few samples"] = lambda accelerator: GlobalBatches(torch.zeros(accelerator.num_processes - 1), 1, accelerator)
    results["refused"] = {name: gather_object([answer(ask, accelerator)]) for name, ask in asked.items()}
    results["accepted"] = {name: gather_object([answer(ask, accelerator)]) for name, ask in ACCEPTED.items()}
    results["thawed"] = thawed(accelerator)
    results["evaluations"] = evaluations(accelerator)[2]
    results["resumed"] = stop_and_resume(accelerator, folder)
    if accelerator.is_main_process:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        fork(int(sys.argv[2]))
    main()
