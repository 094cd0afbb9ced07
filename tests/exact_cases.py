"""Small trainings in float64, each for the core and, in the same words, for plain PyTorch in one process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mnist_dist.core import ExactAccelerator, MeanLoss, stream

SAMPLES = 41
BATCH = 10  # the last batch of an epoch has one sample, so that all processes but one have an empty share
EPOCHS = 2
SEED = 5
VOCABULARY = 11
LENGTH = 7
NONE = -100  # `ignore_index` of torch's losses

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


class Rows(Dataset):
    """Any structure of tensors as a map-style data set."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        first = next(iter(self.data.values())) if isinstance(self.data, Mapping) else self.data
        return len(first)

    def __getitem__(self, number: int) -> Any:
        return rows_of(self.data, number)


def dataset_of(data: Any) -> Dataset:
    """The data as a user would give them: tuples as a `TensorDataset`."""
    return TensorDataset(*data) if isinstance(data, tuple) else Rows(data)


def rows_of(data: Any, index: Any) -> Any:
    """These samples, in the structure of the data."""
    if isinstance(data, Tensor):
        return data[index]
    if isinstance(data, Mapping):
        return {name: tensor[index] for name, tensor in data.items()}
    return tuple(tensor[index] for tensor in data)


def numbers(*shape: int, below: int = 0) -> Tensor:
    """The same for everyone: float64 and normal, or int64 and below a limit."""
    generator = torch.Generator().manual_seed(sum(shape))
    if below:
        return torch.randint(below, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers in float64 with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
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
        causal = nn.Transformer.generate_square_subsequent_mask(
            tokens.shape[1], dtype=torch.float64
        )
        return self.head(self.block(self.embed(tokens), src_mask=causal, is_causal=True))


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


def order_of(case: Case, epoch: int) -> Tensor:
    """The numbers of all samples in the order of an epoch."""
    if not case.shuffled:
        return torch.arange(SAMPLES)
    return torch.randperm(SAMPLES, generator=stream("order", SEED, epoch))


def plain(case: Case) -> dict[str, Any]:
    """The case in one process and plain PyTorch: every update is one on the mean over all of its rows."""
    torch.manual_seed(SEED)
    model = case.network()
    optimizer = case.optimizer(model)
    scheduler = case.scheduler(optimizer) if case.scheduler else None
    losses: list[float] = []
    for epoch in range(EPOCHS):
        losses = []
        for number, index in enumerate(order_of(case, epoch).split(BATCH * case.accumulated)):

            def rand(
                purpose: str,
                *shape: int,
                normal: bool = False,
                words: Any = (epoch, number),
                size: int = len(index),
            ) -> Tensor:
                draw = torch.randn if normal else torch.rand
                return draw(size, *shape, generator=stream(purpose, SEED, *words))

            mean, terms = case.loss(model, rows_of(case.data, index), rand)
            count = len(index) if terms is None else int(terms)
            losses += count * [mean.item()]
            optimizer.zero_grad()
            mean.backward()
            if case.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
            optimizer.step()
            if scheduler:
                scheduler.step()
    return {
        "weights": model.state_dict(),
        "train_loss": sum(losses) / len(losses),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "outputs": case.output(model, case.data).detach(),
    }


def accelerator_for(case: Case, **options: Any) -> ExactAccelerator:
    """An accelerator that gives batches as the case asks for them."""
    return ExactAccelerator(
        cpu=True,
        seed=SEED,
        micro_batches=case.micro_batches,
        gradient_accumulation_steps=case.accumulated,
        **options,
    )


def train(case: Case, **options: Any) -> dict[str, Any]:
    """The case on all processes, in Accelerate's loop.

    Args:
        case: what to train.
        options: for `ExactAccelerator`.
    """
    accelerator = accelerator_for(case, **options)
    torch.manual_seed(SEED)
    model = case.network()
    optimizer = case.optimizer(model)
    scheduler = case.scheduler(optimizer) if case.scheduler else None
    dataset = dataset_of(case.data)
    train_loader = DataLoader(dataset, batch_size=BATCH, shuffle=case.shuffled)
    test_loader = DataLoader(dataset, batch_size=9)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, optimizer, train_loader, test_loader
    )
    if scheduler:
        scheduler = accelerator.prepare(scheduler)
    mean_loss = MeanLoss(accelerator)
    for _ in range(EPOCHS):
        mean_loss.reset()
        for rows in train_loader:
            with accelerator.accumulate(model):
                loss, terms = case.loss(model, rows, accelerator.micro_batch.rand)
                accelerator.backward(loss, terms=terms)
                mean_loss.update(loss, terms)
                if case.clip_norm:
                    accelerator.clip_grad_norm_(model.parameters(), case.clip_norm)
                optimizer.step()
                if scheduler:
                    scheduler.step()
                optimizer.zero_grad()
    outputs = []
    with torch.no_grad():
        for rows in test_loader:
            outputs.append(accelerator.gather_for_metrics(case.output(model, rows)))
    bare = accelerator.unwrap_model(model)
    return {
        "weights": {name: tensor.clone() for name, tensor in bare.state_dict().items()},
        "train_loss": mean_loss.compute(),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "outputs": torch.cat(outputs),
    }
