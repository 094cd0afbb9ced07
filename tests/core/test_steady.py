"""What a loop does for each share of a batch, although it should do it once for each update."""

from collections.abc import Callable, Iterable
from itertools import islice
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


def with_optimizer(exact: ExactAccelerator) -> Any:
    """A model, its optimizer and a loader, prepared."""
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return exact.prepare(model, optimizer, DataLoader(data(), BATCH))


def train(body: Body, **options: Any) -> None:
    """Two updates of a loop that does something after each step."""
    exact = accelerator(**options)
    model, optimizer, loader = with_optimizer(exact)
    scheduler = StepLR(optimizer.optimizer, 1, 0.5)
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


def updates_of_one_epoch(exact: ExactAccelerator, take: Callable[[Any], Iterable[Any]]) -> None:
    """An epoch, or what a loop takes of it."""
    model, optimizer, loader = with_optimizer(exact)
    for inputs, labels in take(loader):
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()


@several_micro_batches
def test_a_loop_over_as_many_micro_batches_as_there_are_batches_costs_a_warning(options, capsys):
    def take(loader: Any) -> Iterable[Any]:
        return islice(loader, len(loader))

    updates_of_one_epoch(accelerator(**options), take)
    assert "as many as len(loader), which counts global batches" in capsys.readouterr().err


@several_micro_batches
def test_so_does_a_loop_that_counts_them_over_several_epochs(options, capsys):
    """With 5 batches of 2 or 4 micro-batches the 15th comes within an epoch."""
    exact = accelerator(**options)
    model, optimizer, loader = with_optimizer(exact)
    steps = 0
    while steps < 3 * len(loader):
        for inputs, labels in loader:
            exact.backward(F.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps >= 3 * len(loader):
                break
    said = capsys.readouterr().err
    assert "left after 15 micro-batches, 3 times as many as len(loader), which counts" in said
    assert f" and {exact.updates} updates: " in said


@pytest.mark.parametrize("options", [{}, {"virtual_processes": 4}], ids=str)
def test_other_numbers_cost_none(options, capsys):
    def take(loader: Any) -> Iterable[Any]:
        micro_batches = len(loader) * max(1, options.get("virtual_processes", 0))
        return islice(loader, micro_batches)

    updates_of_one_epoch(accelerator(**options), take)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "names_after", "warnings"),
    [
        ({"virtual_processes": 4}, "micro-batches", 1),
        ({"virtual_processes": 4}, "updates", 0),
        ({}, "micro-batches", 0),
    ],
    ids=str,
)
def test_a_checkpoint_named_after_micro_batches_costs_one(
    options, names_after, warnings, tmp_path, capsys
):
    exact = accelerator(**options)
    model, optimizer, loader = with_optimizer(exact)
    for count, (inputs, labels) in enumerate(loader, start=1):
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()
        if exact.sync_gradients:
            name = count if names_after == "micro-batches" else exact.updates
            exact.save_state(tmp_path / f"step_{name}")
    said = capsys.readouterr().err
    assert said.count("is named after the micro-batches so far") == warnings
    assert ("the checkpoint step_4 is named" in said) == bool(warnings)


@several_micro_batches
def test_a_loop_that_is_left_within_an_update_costs_a_warning(options, capsys):
    exact = accelerator(**options)
    model, loader = exact.prepare(mlp(6, 3), DataLoader(data(), BATCH))
    for inputs, labels in loader:
        exact.backward(F.cross_entropy(model(inputs), labels))
        break
    assert "a loop was left within an update" in capsys.readouterr().err
