"""How gradients are summed: which way they travel, how many bytes are sent, and that all get the same bits."""

import json
from pathlib import Path

import pytest
from conftest import PYTHON, call, torchrun

EXCHANGE = Path(__file__).with_name("exchange_driver.py")
EXCHANGE_PARTS = Path(__file__).with_name("exchange_parts.py")


@pytest.mark.parametrize(
    ("processes", "few"),
    [
        pytest.param(2, True, marks=pytest.mark.slow),
        pytest.param(4, True, marks=pytest.mark.slow),
        pytest.param(5, False, marks=pytest.mark.slow),
    ],
)
def test_few_processes_send_small_gradients_to_each_other_and_get_the_same_bits(processes, few):
    done = torchrun(processes, EXCHANGE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_bits"] and found["right"]
    assert found["calls"] == ({"all_sums": 6, "all_reduce": 3} if few else {"all_reduce": 6})


@pytest.mark.parametrize(
    ("processes", "shares", "most"),
    [
        (5, 5, 2.0),
        pytest.param(7, 16, 3.0, marks=pytest.mark.slow),
        pytest.param(16, 16, 2.0, marks=pytest.mark.slow),
    ],
)
def test_many_processes_send_about_twice_the_gradient_and_get_the_bits_of_one(
    processes, shares, most
):
    """Each adds up a part for all; where W does not divide V it has two sums to send and not one."""
    done = call(PYTHON, EXCHANGE_PARTS, str(processes), str(shares))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found["right"])
    assert 1.5 < found["sent"] < most
