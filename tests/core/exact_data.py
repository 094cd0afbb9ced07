"""Data and networks of the small trainings in float64, the same on every process."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from mnist_dist.core import ExactAccelerator

SAMPLES = 41
BATCH = 10  # the last batch of an epoch has one sample, so that all processes but one have an empty share
EPOCHS = 2
SEED = 5
VOCABULARY = 11
LENGTH = 7
NONE = -100  # `ignore_index` of torch's losses


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


def accelerator(**options: Any) -> ExactAccelerator:
    """One on the CPU."""
    return ExactAccelerator(cpu=True, seed=SEED, **options)
