"""Asks the core for one update of a model, and notes what it is refused with."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from exact_data import (
    BATCH,
    SAMPLES,
    SEED,
    accelerator,
    mlp,
    numbers,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator, UserError

Ask = Callable[[], object]


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


class Recurrent(nn.Module):
    """Classes of sequences of one."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 3, 2, dropout=dropout).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.gru(inputs[None])[0][0]


class Counts(nn.Module):
    """Has an embedding, which it leaves alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = mlp(6, 8, 3)
        self.table = nn.Embedding(3, 3, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def answer(ask: Ask) -> str:
    """What is said: the sentence of the refusal, or nothing."""
    torch.manual_seed(SEED)
    try:
        ask()
    except UserError as error:
        return str(error)
    return ""
