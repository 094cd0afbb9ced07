"""Models that need at least one row, on a process that has none of a batch."""

import pytest
import torch
from exact_data import accelerator, numbers
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import UserError

ROWS = 7
BATCH = 3  # with 4 shares one of them is empty in every batch, and 3 in the last one


class Packed(nn.Module):
    """A recurrent network over sequences of different lengths, none of which may be 0."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(2, 3, batch_first=True)

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(sequences, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.recurrent(packed)
        return last[0]


class Picky(nn.Module):
    """A network that refuses rows of zeros, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, sequences: Tensor, _: Tensor) -> Tensor:
        if not sequences.any():
            raise ValueError("nothing but zeros")
        return self.layer(sequences[:, 0])


def train(model: nn.Module) -> None:
    """An epoch with virtual processes, some of which have no rows."""
    exact = accelerator(virtual_processes=4)
    dataset = TensorDataset(numbers(ROWS, 5, 2).float(), torch.arange(ROWS) % 5 + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(dataset, BATCH))
    for sequences, lengths in loader:
        exact.backward(model(sequences, lengths).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def test_packed_sequences_are_trained_on():
    torch.manual_seed(0)
    model = Packed()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    train(model)
    after = nn.utils.parameters_to_vector(model.parameters())
    assert torch.isfinite(after).all() and not torch.equal(before, after)


def test_a_model_that_cannot_do_without_rows_is_named():
    with pytest.raises(UserError, match="Picky fails on a batch without rows"):
        train(Picky())
