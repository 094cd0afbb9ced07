"""Parameters that begin to train later, that share a gradient, or that belong to several optimizers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from exact_cases import tokens
from exact_data import (
    BATCH,
    SAMPLES,
    SEED,
    Rows,
    accelerator,
    mlp,
    numbers,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator


def thawed(**options: Any) -> dict[str, Tensor]:
    """A layer that is frozen when training begins, and then is not; and one that is added to the optimizer later."""
    torch.manual_seed(SEED)
    case = tokens()
    exact = accelerator(**options)
    model = case.network()
    assert isinstance(model, nn.Sequential)
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    prepared, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(TensorDataset(*case.data), BATCH)
    )
    for epoch in range(3):
        if epoch == 1:
            model[2].weight.requires_grad_()
        if epoch == 2:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.2})
        for inputs, labels in loader:
            exact.backward(F.cross_entropy(prepared(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def adversaries(exact: ExactAccelerator | None) -> dict[str, Tensor]:
    """One makes rows, and the other tells them from real ones; without an accelerator in plain PyTorch."""
    torch.manual_seed(SEED)
    maker, judge = mlp(3, 5, 6), mlp(6, 5, 1)
    of_maker = torch.optim.SGD(maker.parameters(), lr=0.1, momentum=0.9)
    of_judge = torch.optim.SGD(judge.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(numbers(SAMPLES, 6), numbers(SAMPLES, 3)), BATCH)
    networks = maker, judge
    backward: Callable[[Tensor], None] = torch.Tensor.backward
    if exact:
        backward = exact.backward
        maker, judge, of_maker, of_judge, loader = exact.prepare(
            maker, judge, of_maker, of_judge, loader
        )
    for real, noise in loader:
        made = maker(noise)
        of_judge.zero_grad()
        backward(F.softplus(judge(made.detach())).mean() + F.softplus(-judge(real)).mean())
        of_judge.step()
        of_maker.zero_grad()
        backward(F.softplus(-judge(made)).mean())
        of_maker.step()
    weights = networks[0].state_dict() | {
        f"judge {name}": each for name, each in networks[1].state_dict().items()
    }
    return {name: tensor.clone() for name, tensor in weights.items()}


class Sum(nn.Module):
    """Adds two parameters, such as embeddings of a token's place and kind: autograd gives them one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(numbers(6))
        self.other = nn.Parameter(numbers(6))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * (self.one[None] + self.other[None])


def change_of_shared_gradients(clip_norm: float = 0.0, **options: Any) -> Tensor:
    """What one update changes its two parameters by."""
    exact = accelerator(**options)
    model = Sum()
    begun = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(Rows(numbers(20, 6)), 20)
    )
    for rows in loader:
        exact.backward(prepared(rows).sum(dim=1).mean())
        if clip_norm:
            exact.clip_grad_norm_(prepared.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach() - begun


SHARED: dict[str, dict[str, Any]] = {
    "plain": {},
    "virtual processes": {"virtual_processes": 7},
    "micro-batches": {"micro_batches": 3},
    "clipped": {"clip_norm": 0.01},
    "ddp": {"ddp": True},
}


def shared_gradients() -> dict[str, Tensor]:
    """The change of an update in all these ways."""
    return {name: change_of_shared_gradients(**options) for name, options in SHARED.items()}
