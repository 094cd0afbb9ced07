"""Trains with every kind of loader on several processes; see test_loaders.py.

    python tests/core/loaders_driver.py FOLDER W

writes to FOLDER/results.pt the weights of every case without and with virtual processes.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import fork
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from mnist_dist.core import ExactAccelerator

SAMPLES = 41
BATCH = 6  # which leaves a last batch of 5
EPOCHS = 2
SHARES = 4  # virtual processes


def row(number: int) -> Tensor:
    """(5,) float64, always the same for a number."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(5, generator=generator, dtype=torch.float64)


class Rows(Dataset):
    """Rows, to which a transform adds a random number."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> Tensor:
        return row(number) + 0.1 * random.random()


class Stream(IterableDataset):
    """Rows that can only be read from the beginning, to each of which a random number is added."""

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, SAMPLES, step):
            yield row(number) + 0.1 * random.random()


class Buckets(Sampler[list[int]]):
    """Batches of different sizes, in a random order, as a sampler that sorts by length makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[list[int]]:
        buckets = [[*range(3)], [*range(3, 11)], [*range(11, 12)], [*range(12, SAMPLES)]]
        for number in torch.randperm(len(buckets), generator=self.generator).tolist():
            yield buckets[number]

    def __len__(self) -> int:
        return 4


def loaders() -> dict[str, DataLoader]:
    """One of each kind."""
    rows = Rows()
    weights = [1.0 + number % 3 for number in range(SAMPLES)]
    return {
        "weighted": DataLoader(rows, BATCH, sampler=WeightedRandomSampler(weights, 20)),
        "subset": DataLoader(rows, BATCH, sampler=SubsetRandomSampler(range(0, SAMPLES, 2))),
        "with replacement": DataLoader(rows, BATCH, sampler=RandomSampler(rows, replacement=True)),
        "some": DataLoader(rows, BATCH, sampler=RandomSampler(rows, num_samples=15)),
        "buckets": DataLoader(rows, batch_sampler=Buckets()),
        "a list": DataLoader(rows, batch_sampler=[[0, 1, 2], [3], [4, 5, 6, 7]]),
        "drop last": DataLoader(rows, BATCH, shuffle=True, drop_last=True),
        "stream": DataLoader(Stream(), BATCH),
        "stream, workers": DataLoader(Stream(), BATCH, num_workers=2),
        "stream, drop last": DataLoader(Stream(), BATCH, drop_last=True),
    }


def network() -> nn.Module:
    """(n, 5) to (n, 1), float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def train(name: str, folder: Path, *, stop: bool = False, **options: Any) -> dict[str, Tensor]:
    """Train with one kind of loader.

    Args:
        name: which.
        folder: for a checkpoint.
        stop: save in the second epoch, and go on from there with everything made anew.
        options: for `ExactAccelerator`.

    Returns:
        The weights.
    """
    accelerator = ExactAccelerator(cpu=True, **options)
    model, loader, updates = fresh(accelerator, name)
    for _ in range(EPOCHS):
        for inputs in loader:
            step(accelerator, model, inputs)
            updates += accelerator.sync_gradients
            if stop and updates == len(list_of_updates(name)) + 2 and accelerator.sync_gradients:
                accelerator.save_state(folder / name)
                return resumed(name, folder, options)
    return {key: tensor.clone() for key, tensor in model[0].state_dict().items()}


def list_of_updates(name: str) -> range:
    """The updates of an epoch."""
    counts = {
        "weighted": 4,
        "subset": 4,
        "some": 3,
        "buckets": 4,
        "a list": 3,
        "stream, workers": 8,
    }
    batches = -(-SAMPLES // BATCH)
    return range(counts.get(name, batches - name.endswith("drop last")))


def resumed(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    """Go on from a checkpoint."""
    accelerator = ExactAccelerator(cpu=True, **options)
    model, loader, _ = fresh(accelerator, name)
    accelerator.load_state(folder / name)
    assert loader.first_batch == 2 and loader.next_epoch == 1
    for _ in range(loader.next_epoch, EPOCHS):
        for inputs in loader:
            step(accelerator, model, inputs)
    return {key: tensor.clone() for key, tensor in model[0].state_dict().items()}


def fresh(accelerator: ExactAccelerator, name: str) -> tuple[Any, Any, int]:
    """A model with its optimizer, a loader, and no updates."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loaders()[name])
    return (model, optimizer), loader, 0


def step(accelerator: ExactAccelerator, model: Any, inputs: Tensor) -> None:
    """One micro-batch."""
    network, optimizer = model
    loss = (network(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def main(folder: Path) -> None:
    """Train with all of them."""
    torch.set_num_threads(1)
    results = {}
    for name in loaders():
        results[name] = train(name, folder)
        results[f"{name}, virtual"] = train(name, folder, virtual_processes=SHARES)
        results[f"{name}, stopped"] = train(name, folder, stop=True)
    if ExactAccelerator(cpu=True).is_main_process:
        torch.save(results, folder / "results.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    if int(sys.argv[2]) > 1:
        fork(int(sys.argv[2]))
    main(Path(sys.argv[1]))
