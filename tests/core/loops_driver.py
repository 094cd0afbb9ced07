"""Trains with loops as people write them on several processes; see test_loops.py.

    python tests/core/loops_driver.py FOLDER W

writes the weights that each kind of loop ends with, under each of the options, to FOLDER/results.pt.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from forked import fork
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator, MeanLoss

SAMPLES = 21  # with batches of 10 the last one has one sample, so other processes have none
LOOPS = (
    "plain",
    "zero_grad first",
    "evaluation in the body",
    "left early",
    "loss read in a share",
    "gradients cleared and clipped by torch each time",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "alone": {},
    "ddp": {"ddp": True},
    "accumulated": {"gradient_accumulation_steps": 2},
    "accumulated, ddp": {"gradient_accumulation_steps": 2, "ddp": True},
    "pieces": {"micro_batches": 2},
    "virtual": {"virtual_processes": 4},
}


def data() -> TensorDataset:
    """Samples of three classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.arange(SAMPLES) % 3)


def network(virtual: bool) -> nn.Module:
    """A classifier; with layers that draw and keep statistics where these are exact."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(6, affine=False), nn.Dropout(0.3)] if virtual else []
    return nn.Sequential(nn.Linear(5, 6), *layers, nn.Tanh(), nn.Linear(6, 3)).double()


def train(loop: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Train for two epochs.

    Args:
        loop: one of LOOPS.
        options: for `ExactAccelerator`.

    Returns:
        Weights and buffers.
    """
    accelerator = ExactAccelerator(cpu=True, **options)
    virtual = "virtual_processes" in options
    model = network(virtual)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # Batch normalisation needs two rows of each share.
    rows = TensorDataset(*(tensor[:16] for tensor in data().tensors)) if virtual else data()
    train_loader = DataLoader(rows, batch_size=8 if virtual else 10, shuffle=True)
    test_loader = DataLoader(data(), batch_size=8)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, optimizer, train_loader, test_loader
    )
    mean_loss = MeanLoss(accelerator)
    epochs = 3 if loop == "left early" else 2
    for epoch in range(epochs):
        model.train()
        for number, (inputs, labels) in enumerate(train_loader):
            if loop == "left early" and epoch == 0 and number == 1:
                break
            if loop == "zero_grad first":
                optimizer.zero_grad()
            if loop == "evaluation in the body":
                evaluate(accelerator, model, test_loader)
            loss = F.cross_entropy(model(inputs), labels)
            mean_loss.update(loss)
            accelerator.backward(loss)
            if loop == "gradients cleared and clipped by torch each time":
                # Not those of an update in progress, of which the loop sees nothing.
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
                if not accelerator.sync_gradients:
                    model.zero_grad()
            optimizer.step()
            if loop != "zero_grad first":
                optimizer.zero_grad()
            if loop == "loss read in a share":
                mean_loss.compute_recent()
    return {
        name: tensor.clone()
        for name, tensor in accelerator.unwrapped_models[0].state_dict().items()
    }


def evaluate(accelerator: ExactAccelerator, model: nn.Module, loader: Any) -> None:
    """Evaluate in the midst of an epoch, and of an update."""
    model.eval()
    with torch.no_grad():
        for inputs, _ in loader:
            accelerator.gather_for_metrics(model(inputs))
    model.train()


def buffers_that_part() -> str:
    """What is said of a forward pass in training mode behind an update's last backward pass."""
    accelerator = ExactAccelerator(cpu=True, virtual_processes=4)
    model = network(virtual=True)
    optimizer = torch.optim.Adam(model.parameters())
    rows = TensorDataset(*(tensor[:16] for tensor in data().tensors))
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, 8))
    try:
        for inputs, labels in loader:
            accelerator.backward(F.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
            model(inputs + accelerator.process_index)
    except Exception as error:
        return str(error)
    return ""


def left_out(processes: int) -> str:
    """What is said if `backward` is not called for every share."""
    accelerator = ExactAccelerator(cpu=True, virtual_processes=2 * processes)
    model = network(virtual=False)
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 10))
    try:
        for number, (inputs, labels) in enumerate(loader):
            if number % 2 == 0:
                accelerator.backward(F.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
    except Exception as error:
        return str(error)
    return ""


def main(folder: Path, processes: int) -> None:
    """Train in every way."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        for loop in LOOPS:
            results[f"{name}: {loop}"] = train(loop, options)
    results["left out"] = left_out(processes)
    results["buffers"] = buffers_that_part()
    if ExactAccelerator(cpu=True).is_main_process:
        torch.save(results, folder / "results.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    count = int(sys.argv[2])
    if count > 1:
        fork(count)
    main(Path(sys.argv[1]), count)
