"""Loops as people write them: each is the same training, or what is wrong with it is said."""

from pathlib import Path

import pytest
import torch
from conftest import results_of
from loops_driver import LOOPS, OPTIONS

pytestmark = pytest.mark.slow  # a minute of two cores


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What loops_driver.py wrote on 1 and on 3 processes."""
    found = {}
    for processes in (1, 3):
        folder = tmp_path_factory.mktemp(str(processes))
        driver = Path(__file__).with_name("loops_driver.py")
        found[processes] = results_of(driver, folder, processes)
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest between two sets of weights and buffers."""
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("loop", LOOPS)
def test_on_three_processes_it_is_the_same_training(results, loop, options):
    tolerance = 0.0 if options == "virtual" else 1e-12
    one, three = (results[processes][f"{options}: {loop}"] for processes in (1, 3))
    assert difference(one, three) <= tolerance


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop not in ("plain", "left early")])
def test_it_is_the_same_training_as_the_plain_loop(results, loop, options):
    assert difference(results[1][f"{options}: {loop}"], results[1][f"{options}: plain"]) == 0.0


@pytest.mark.parametrize("processes", [1, 3])
def test_a_backward_pass_that_is_left_out_is_named(results, processes):
    assert "backward was not called for a micro-batch" in results[processes]["left out"]


def test_buffers_that_differ_between_processes_are_noticed(results):
    assert "no longer have the same buffers after update 2" in results[3]["buffers"]
    assert results[1]["buffers"] == ""
