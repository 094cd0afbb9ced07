"""Loaders of every kind: other samplers, batches of one's own and streams are the same on any number of processes."""

from pathlib import Path

import pytest
import torch
from conftest import results_of
from loaders_driver import loaders

NAMES = list(loaders())
pytestmark = pytest.mark.slow  # a minute of two cores


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What loaders_driver.py wrote on 1 and on 3 processes."""
    found = {}
    for processes in (1, 3):
        folder = tmp_path_factory.mktemp(str(processes))
        driver = Path(__file__).with_name("loaders_driver.py")
        found[processes] = results_of(driver, folder, processes)
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest between two sets of weights."""
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_training_on_three_processes(results, name):
    assert difference(results[1][name], results[3][name]) <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_same_bits_with_virtual_processes(results, name):
    assert difference(results[1][f"{name}, virtual"], results[3][f"{name}, virtual"]) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_where_it_was_stopped(results, name):
    for processes in (1, 3):
        assert difference(results[processes][name], results[processes][f"{name}, stopped"]) == 0.0


def test_the_kinds_are_different_trainings(results):
    trained = [results[1][name] for name in NAMES if name != "stream, workers"]
    for number, one in enumerate(trained):
        for other in trained[number + 1 :]:
            assert difference(one, other) > 1e-6
