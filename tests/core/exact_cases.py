"""Small trainings in float64: for each its data, network, loss and optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from exact_data import (
    LENGTH,
    NONE,
    SAMPLES,
    VOCABULARY,
    Speaker,
    mlp,
    numbers,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Rand = Callable[..., Tensor]  # as `MicroBatch.rand`


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        data: a tensor, or a dict or tuple of tensors, with a row for every sample.
        network: makes it, in float64.
        loss: of the model, rows and random numbers: the mean over the rows, and None; or the mean over other terms, and
            their number.
        output: of the model and rows: what is evaluated, (n, ...).
        optimizer: of the model's parameters.
        scheduler: of the optimizer; None: the rates stay.
        micro_batches: pieces that every share is given in.
        accumulated: global batches an update.
        clip_norm: of the gradients of an update; 0: not limited.
        shuffled: whether every epoch has an order of its own.
    """

    data: Any
    network: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any, Rand], tuple[Tensor, Tensor | None]]
    output: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9
    )
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None
    micro_batches: int = 1
    accumulated: int = 1
    clip_norm: float = 0.0
    shuffled: bool = True


def tokens(**options: Any) -> Case:
    """Tokens: int64 inputs and three classes, in a tuple."""

    def network() -> nn.Module:
        return nn.Sequential(nn.EmbeddingBag(VOCABULARY, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    return Case(
        data=(numbers(SAMPLES, 4, below=VOCABULARY), numbers(SAMPLES, below=3)),
        network=network,
        loss=lambda model, rows, _: (F.cross_entropy(model(rows[0]), rows[1]), None),
        output=lambda model, rows: model(rows[0]),
        **options,
    )


def sparse() -> Case:
    """An embedding whose gradients are sparse."""

    def network() -> nn.Module:
        bag = nn.EmbeddingBag(VOCABULARY, 6, sparse=True, mode="sum")
        return nn.Sequential(bag, nn.Tanh(), nn.Linear(6, 3)).double()

    case = tokens()
    return Case(
        case.data,
        network,
        case.loss,
        case.output,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )


def pictures() -> Case:
    """Pictures: uint8 inputs, in a dict, in the order of the data set."""

    def network() -> nn.Module:
        layers = (
            nn.Conv2d(3, 4, 3),
            nn.GroupNorm(2, 4),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 3),
        )
        return nn.Sequential(*layers).double()

    def scores(model: nn.Module, rows: Any) -> Tensor:
        return model(rows["picture"].double() / 255)

    return Case(
        data={
            "picture": numbers(SAMPLES, 3, 8, 8, below=256).to(torch.uint8),
            "label": numbers(SAMPLES, below=3),
        },
        network=network,
        loss=lambda model, rows, _: (F.cross_entropy(scores(model, rows), rows["label"]), None),
        output=scores,
        shuffled=False,
    )


def regression() -> Case:
    """A regression from bfloat16 inputs, which are their own targets: one tensor."""

    def loss(model: nn.Module, rows: Tensor, _: Rand) -> tuple[Tensor, None]:
        inputs = rows.double()
        return (model(inputs) - inputs).square().sum(dim=1).mean(), None

    return Case(
        data=numbers(SAMPLES, 6).bfloat16(),
        network=partial(mlp, 6, 3, 6),
        loss=loss,
        output=lambda model, rows: model(rows.double()),
    )


def groups() -> Case:
    """Two groups of parameters, each with its own rate, under a schedule."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, nn.Sequential)
        first = {"params": model[0].parameters(), "lr": 0.01}
        last = {"params": model[2].parameters(), "lr": 0.002}
        return torch.optim.AdamW([first, last], weight_decay=0.1)

    return Case(
        data=(numbers(SAMPLES, 6), numbers(SAMPLES, 1)),
        network=partial(mlp, 6, 5, 1),
        loss=lambda model, rows, _: (F.mse_loss(model(rows[0]), rows[1]), None),
        output=lambda model, rows: model(rows[0]),
        optimizer=optimizer,
        scheduler=lambda optimizer: LambdaLR(optimizer, lambda update: 1.0 - update / 20),
    )


def sentences(**options: Any) -> Case:
    """Sequences of different lengths: the loss is the mean over the tokens of the global batch."""
    lengths = 1 + numbers(SAMPLES, below=LENGTH)
    text = numbers(SAMPLES, LENGTH + 1, below=VOCABULARY)
    targets = text[:, 1:].masked_fill(torch.arange(LENGTH) >= lengths[:, None], NONE)

    def loss(model: nn.Module, rows: Any, _: Rand) -> tuple[Tensor, Tensor]:
        inputs, wanted = rows
        scores = model(inputs).transpose(1, 2)
        return F.cross_entropy(scores, wanted, ignore_index=NONE), (wanted != NONE).sum()

    return Case(
        data=(text[:, :-1].contiguous(), targets),
        network=Speaker,
        loss=loss,
        output=lambda model, rows: model(rows[0]),
        **options,
    )


def masked() -> Case:
    """Tokens to be guessed are chosen at random: a sample may have no term at all."""

    def loss(model: nn.Module, text: Tensor, rand: Rand) -> tuple[Tensor, Tensor]:
        hidden = rand("mask", LENGTH) < 0.2
        scores = model(text.masked_fill(hidden, 0))
        return F.cross_entropy(scores[hidden], text[hidden]), hidden.sum()

    return Case(
        data=1 + numbers(SAMPLES, LENGTH, below=VOCABULARY - 1),
        network=Speaker,
        loss=loss,
        output=lambda model, text: model(text),
        micro_batches=2,
    )


def dropout() -> Case:
    """Random numbers: dropout and noise, of which every sample has its own however it is shared."""

    def loss(model: nn.Module, rows: Any, rand: Rand) -> tuple[Tensor, None]:
        inputs, labels = rows
        noisy = inputs + 0.1 * rand("noise", 6, normal=True)
        kept = (rand("dropout", 6) >= 0.25) / 0.75
        return F.cross_entropy(model((noisy * kept).to(inputs.dtype)), labels), None

    return Case(
        data=(numbers(SAMPLES, 6), numbers(SAMPLES, below=3)),
        network=partial(mlp, 6, 8, 3),
        loss=loss,
        output=lambda model, rows: model(rows[0]),
        micro_batches=3,
    )


def penalty() -> Case:
    """A penalty on the weights, which does not come from samples."""
    case = tokens()

    def loss(model: nn.Module, rows: Any, rand: Rand) -> tuple[Tensor, None]:
        mean, _ = case.loss(model, rows, rand)
        return mean + 0.01 * sum(weight.square().sum() for weight in model.parameters()), None

    return Case(case.data, case.network, loss, case.output, case.optimizer)


def normalized(*, synchronized: bool = False) -> Case:
    """Batch normalisation of every kind: the last batch of an epoch has one sample, so most processes have none.

    Args:
        synchronized: use `SyncBatchNorm` where there are several processes.
    """

    def network() -> nn.Module:
        layers = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 5, 3),
            nn.BatchNorm2d(5, momentum=None),
            nn.Flatten(2),
            nn.Linear(16, 6),
            nn.BatchNorm1d(5, affine=False),
            nn.Flatten(),
            nn.Linear(30, 3),
        )
        model = nn.Sequential(*layers).double()
        if synchronized and dist.is_initialized():
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    return Case(
        data=(numbers(SAMPLES, 3, 8, 8), numbers(SAMPLES, below=3)),
        network=network,
        loss=lambda model, rows, _: (F.cross_entropy(model(rows[0]), rows[1]), None),
        output=lambda model, rows: model.eval()(rows[0]),
        clip_norm=0.5,
    )


CASES: dict[str, Callable[[], Case]] = {
    "tokens": tokens,
    "tokens-accumulated": partial(tokens, accumulated=3),
    "sparse": sparse,
    "pictures": pictures,
    "regression": regression,
    "groups": groups,
    "sentences": sentences,
    "sentences-in-micro-batches": partial(sentences, micro_batches=3),
    "sentences-accumulated": partial(sentences, accumulated=2, micro_batches=2),
    "sentences-clipped": partial(sentences, micro_batches=3, clip_norm=0.05),
    "masked": masked,
    "dropout": dropout,
    "penalty": penalty,
    "batch-norm": normalized,
    "sync-batch-norm": partial(normalized, synchronized=True),
}
# Virtual processes normalise each share by itself, whatever the number of processes.
OF_THE_WHOLE_BATCH = {"batch-norm", "sync-batch-norm"}
