"""Processes that have no loop over a prepared loader in common."""

from pathlib import Path

import pytest
import torch
from conftest import PYTHON, call, torchrun
from exact_data import accelerator, numbers
from torch.utils.data import DataLoader, TensorDataset

APART = Path(__file__).with_name("apart.py")


def order_of(loader: DataLoader) -> list[int]:
    """The numbers of the samples of an epoch."""
    return [int(number) for (numbers,) in loader for number in numbers]


def test_a_loader_that_is_prepared_later_has_an_order_of_its_own():
    exact = accelerator()
    dataset = TensorDataset(torch.arange(40))
    loaders = [exact.prepare(DataLoader(dataset, 8, shuffle=True)) for _ in range(3)]
    orders = [order_of(loader) for loader in loaders]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_random_transforms_of_a_later_loader_are_others():
    exact = accelerator()
    loaders = [exact.prepare(DataLoader(TensorDataset(numbers(8)), 8)) for _ in range(2)]
    drawn = []
    for loader in loaders:
        for _ in loader:
            drawn.append(exact.micro_batch.rand("noise", 2))
    assert not torch.equal(*drawn)


@pytest.mark.slow
def test_rows_outside_of_a_loop_are_counted_once(tmp_path):
    for processes in (1, 2):
        file = tmp_path / f"{processes}.pt"
        if processes == 1:
            done = call(PYTHON, APART, "statistics", file)
        else:
            done = torchrun(processes, APART, "statistics", file)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{processes}.pt", weights_only=True) for processes in (1, 2))
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-12) for name in one)


@pytest.mark.slow
def test_processes_that_never_met_are_refused(tmp_path):
    done = torchrun(2, APART, "unconnected", tmp_path)
    assert done.returncode != 0
    assert "2 processes were started but 1 is connected" in done.stderr
