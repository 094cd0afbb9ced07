"""For each row of the table of layers in docs/accelerator.md, trainings that show what its two cells say."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import FrozenBatchNorm2d

from mnist_dist.core import ExactAccelerator, UserError

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

ROWS, BATCH = 16, 8  # two rows for each of four shares, which batch normalisation needs


class Shape(nn.Module):
    """Gives what a batch of samples (n, 6) looks like."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), *self.shape)


def around(*layers: nn.Module, shape: tuple[int, ...] = (6,)) -> nn.Sequential:
    """A classifier of (n, 6) with these layers in it."""
    flat = [nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(nn.Linear(6, 6), Shape(*shape), *layers, *flat).double()
    model.eval()(torch.zeros(2, 6, dtype=torch.float64))  # which tells the last layer its size
    return model.train()


class First(nn.Module):
    """The first of what a layer gives."""

    def __init__(self, layer: nn.Module, *, inputs: int = 1) -> None:
        super().__init__()
        self.layer = layer
        self.inputs = inputs

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(*[rows] * self.inputs)[0]


class Words(nn.Module):
    """(n, 6) numbers to (n, 3), by an embedding of their signs."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 3, **options).double()

    def forward(self, rows: Tensor) -> Tensor:
        return self.table((rows > 0).long()).sum(dim=1)


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, rows: Tensor) -> Tensor:
        return self.function(rows)


class Counter(nn.Module):
    """Counts its forward passes."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        self.passes += 1
        return rows


class TwoHeads(nn.Module):
    """Two inputs, and two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()

    def forward(self, rows: Tensor, *, turned: Tensor) -> dict[str, Tensor]:
        return {"left": self.left(rows), "right": self.right(turned)}


class OwnBatchNorm(nn.BatchNorm1d):
    """Its forward pass is not torch's."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows).relu()


def frozen() -> nn.Module:
    """Layers whose statistics stay: in evaluation mode, and torchvision's."""
    model = around(nn.BatchNorm2d(2), FrozenBatchNorm2d(2), shape=(2, 3, 1))
    model[2].eval()
    return model


def encoder(dropout: float) -> nn.Module:
    """A block of a transformer."""
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=dropout, batch_first=True)


def spectral() -> nn.Module:
    """A layer whose weights are divided by a norm that is followed in buffers."""
    return nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))


def plain_loss(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Of a classifier."""
    return F.cross_entropy(model(rows), labels)


def two_losses(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Of two inputs and two outputs."""
    outputs = model(rows, turned=rows.flip(1))
    left, right = (F.cross_entropy(output, labels) for output in outputs.values())
    return left + right


def mixup(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Rows are mixed with others of the batch."""
    other = torch.randperm(len(rows))
    part = float(torch.rand(()))
    scores = model(part * rows + (1 - part) * rows[other])
    return part * F.cross_entropy(scores, labels) + (1 - part) * F.cross_entropy(
        scores, labels[other]
    )


def diffusion(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Noise is added."""
    return F.cross_entropy(model(rows + torch.randn_like(rows)), labels)


def coin(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Python's random decides."""
    return F.cross_entropy(model(rows.flip(1) if random.random() < 0.5 else rows), labels)


PLAIN: dict[str, Loss] = {"loss": plain_loss}


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        without, virtual: what its cells say: works, converted or refused.
        models: that show it; each makes one.
        losses: that show it.
    """

    without: str
    virtual: str
    models: dict[str, Callable[[], nn.Module]]
    losses: dict[str, Loss] = PLAIN


TABLE: dict[str, Row] = {
    "linear, convolution, `Embedding`, `LayerNorm`, `GroupNorm`, attention and RNNs without dropout": Row(
        "works",
        "works",
        {
            "convolution": lambda: around(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), shape=(2, 3)),
            "Embedding": Words,
            "LayerNorm": lambda: around(nn.LayerNorm(6)),
            "attention": lambda: around(encoder(0.0), shape=(1, 6)),
            "LSTM": lambda: around(First(nn.LSTM(3, 4, 2, batch_first=True)), shape=(2, 3)),
        },
    ),
    "`Dropout`, and `dropout=` in attention, transformer and RNN layers": Row(
        "refused",
        "works",
        {
            "Dropout": lambda: around(nn.Dropout(0.3)),
            "MultiheadAttention": lambda: around(
                First(nn.MultiheadAttention(3, 1, dropout=0.3, batch_first=True), inputs=3),
                shape=(2, 3),
            ),
            "TransformerEncoderLayer": lambda: around(encoder(0.3), shape=(1, 6)),
            "GRU": lambda: around(
                First(nn.GRU(3, 4, 2, dropout=0.3, batch_first=True)), shape=(2, 3)
            ),
        },
    ),
    "`BatchNorm1d`, `2d` and `3d`": Row(
        "converted",
        "works",
        {
            "BatchNorm1d": lambda: around(nn.BatchNorm1d(6)),
            "BatchNorm2d": lambda: around(nn.BatchNorm2d(2), shape=(2, 3, 1)),
            "BatchNorm3d": lambda: around(nn.BatchNorm3d(2), shape=(2, 3, 1, 1)),
        },
    ),
    "a class derived from `BatchNorm`": Row(
        "refused", "works", {"derived": lambda: around(OwnBatchNorm(6))}
    ),
    "`SyncBatchNorm`": Row(
        "converted", "refused", {"SyncBatchNorm": lambda: around(nn.SyncBatchNorm(6))}
    ),
    "`BatchNorm` in `eval()` mode, torchvision's `FrozenBatchNorm2d`": Row(
        "works", "works", {"frozen": frozen}
    ),
    "`InstanceNorm`": Row(
        "works", "works", {"InstanceNorm1d": lambda: around(nn.InstanceNorm1d(2), shape=(2, 3))}
    ),
    "`InstanceNorm(track_running_stats=True)`": Row(
        "refused",
        "works",
        {
            "InstanceNorm1d": lambda: around(
                nn.InstanceNorm1d(2, track_running_stats=True), shape=(2, 3)
            )
        },
    ),
    "several inputs or outputs": Row("works", "works", {"heads": TwoHeads}, {"loss": two_losses}),
    "anything that draws random numbers in `forward` (`F.dropout`, `RReLU`, noise)": Row(
        "refused",
        "works",
        {
            "F.dropout": lambda: around(Function(lambda rows: F.dropout(rows, 0.3))),
            "RReLU": lambda: around(nn.RReLU()),
            "noise": lambda: around(Function(lambda rows: rows + torch.randn_like(rows))),
        },
    ),
    "a loss that draws random numbers (mixup, the noise of diffusion, `random.random()`)": Row(
        "refused",
        "works",
        {"linear": around},
        {"mixup": mixup, "diffusion": diffusion, "coin": coin},
    ),
    "a layer that changes a buffer in `forward` (`spectral_norm`, counters)": Row(
        "refused",
        "works",
        {"spectral_norm": lambda: around(spectral()), "counter": lambda: around(Counter())},
    ),
    "`Embedding(scale_grad_by_freq=True)`": Row(
        "refused", "works", {"Embedding": lambda: Words(scale_grad_by_freq=True)}
    ),
    "`Embedding(max_norm=...)`": Row(
        "refused", "refused", {"Embedding": lambda: Words(max_norm=1.0)}
    ),
}


def train(
    make: Callable[[], nn.Module],
    make_loss: Loss,
    options: dict[str, Any],
) -> dict[str, Tensor] | str:
    """Weights and buffers after an epoch, or the sentence of the refusal."""
    accelerator = ExactAccelerator(cpu=True, **options)
    torch.manual_seed(0)
    model = make()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)
    loader = DataLoader(TensorDataset(rows, torch.arange(ROWS) % 3), BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for inputs, labels in loader:
            accelerator.backward(make_loss(model, inputs, labels))
            optimizer.step()
            optimizer.zero_grad()
    except UserError as error:
        return str(error)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def cases() -> list[tuple[str, str, str]]:
    """Row, model and loss of each training."""
    return [
        (name, model, loss)
        for name, row in TABLE.items()
        for model in row.models
        for loss in row.losses
    ]


def train_all(options: dict[str, Any]) -> dict[str, Any]:
    """What each of them ends with, by its names."""
    return {
        f"{name}: {model}, {loss}": train(
            TABLE[name].models[model], TABLE[name].losses[loss], options
        )
        for name, model, loss in cases()
    }
