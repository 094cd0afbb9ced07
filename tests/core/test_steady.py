"""What a loop does for each share of a batch, although it should do it once for each update."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact_asking import data
from exact_data import BATCH, accelerator, mlp
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from mnist_dist.core import ExactAccelerator, UserError

Body = Callable[[ExactAccelerator, nn.Module, StepLR], Any]


def train(body: Body, **options: Any) -> None:
    """Two updates of a loop that does something after each step."""
    exact = accelerator(**options)
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1, 0.5)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(data(), BATCH))
    for inputs, labels in loader:
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()
        body(exact, model, scheduler)
        if exact.updates == 2:
            break


@torch.no_grad()
def decay(_: ExactAccelerator, model: nn.Module, __: StepLR) -> None:
    """Weight decay by hand."""
    for parameter in model.parameters():
        parameter.mul_(0.99)


def next_rate(_: ExactAccelerator, __: nn.Module, scheduler: StepLR) -> None:
    """A scheduler that was not prepared."""
    scheduler.step()


def once(body: Body) -> Body:
    """Do it once for each update."""

    def at_the_end(exact: ExactAccelerator, model: nn.Module, scheduler: StepLR) -> None:
        if exact.sync_gradients:
            body(exact, model, scheduler)

    return at_the_end


# Torch's scheduler says that too, where no optimizer has made a step yet.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

several_micro_batches = pytest.mark.parametrize(
    "options", [{"virtual_processes": 4}, {"micro_batches": 2}], ids=str
)


@several_micro_batches
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (decay, "changes weights between two micro-batches of one update"),
        (next_rate, "pass the scheduler to accelerator.prepare"),
    ],
)
def test_a_change_between_two_micro_batches_is_refused(body, words, options):
    with pytest.raises(UserError, match=words):
        train(body, **options)


@several_micro_batches
@pytest.mark.parametrize("body", [decay, next_rate])
def test_a_change_once_for_each_update_is_right(body, options, capsys):
    train(once(body), **options)
    assert "discarded" not in capsys.readouterr().err


@pytest.mark.parametrize("body", [decay, next_rate])
def test_with_one_micro_batch_a_batch_all_is_right(body):
    train(body)


@several_micro_batches
def test_a_loop_that_is_left_within_an_update_costs_a_warning(options, capsys):
    exact = accelerator(**options)
    model, loader = exact.prepare(mlp(6, 3), DataLoader(data(), BATCH))
    for inputs, labels in loader:
        exact.backward(F.cross_entropy(model(inputs), labels))
        break
    assert "a loop was left within an update" in capsys.readouterr().err
