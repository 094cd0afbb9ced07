"""A small training on a few rows: the pieces of which script_cases.py and script_refusals.py are made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator

SAMPLES = 23  # with batches of 6 the last one has five
BATCH = 6

Weights = dict[str, Tensor]
Script = Callable[[dict[str, Any], Path], Any]


def numbers(*shape: int) -> Tensor:
    """Standard normal float64 numbers, always the same ones for a shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def data(samples: int = SAMPLES) -> TensorDataset:
    """Rows of three classes, with their numbers."""
    return TensorDataset(numbers(samples, 5), torch.arange(samples) % 3, torch.arange(samples))


def classifier() -> nn.Module:
    """(n, 5) to (n, 3), float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def make(options: dict[str, Any], **more: Any) -> ExactAccelerator:
    """An accelerator on the CPU."""
    return ExactAccelerator(cpu=True, **options, **more)


def prepare(accelerator: ExactAccelerator, model: nn.Module, *loaders: DataLoader) -> Any:
    """The model with its optimizer, and loaders."""
    return accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.02), *loaders)


def loader(batch_size: int = BATCH) -> DataLoader:
    """Of all rows, in an order of their own in each epoch."""
    return DataLoader(data(), batch_size, shuffle=True)


def weights(model: nn.Module) -> Weights:
    """A copy."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def step(accelerator: ExactAccelerator, model: Any, optimizer: Any, batch: list[Tensor]) -> Tensor:
    """One micro-batch; its loss."""
    loss = F.cross_entropy(model(batch[0]), batch[1])
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss
