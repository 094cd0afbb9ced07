"""Loops that leave out batches after `load_state`, as scripts do that skip by themselves."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact_asking import data
from exact_data import BATCH, accelerator, mlp
from torch.utils.data import DataLoader

from mnist_dist.core import ExactAccelerator, UserError

STOPPED_AT = 2  # of 5 batches


def prepared(**options: Any) -> tuple[ExactAccelerator, Any, Any, Any]:
    """An accelerator with a model, an optimizer and a loader."""
    exact = accelerator(**options)
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data(), BATCH, shuffle=True)
    return exact, *exact.prepare(model, optimizer, loader)


def go_through(training: tuple[ExactAccelerator, Any, Any, Any], left_out: int = 0) -> None:
    """The rest of an epoch but for the first micro-batches of it."""
    exact, model, optimizer, loader = training
    for number, (inputs, labels) in enumerate(loader):
        if number < left_out:
            continue
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(params=[{}, {"virtual_processes": 2}], ids=str)
def resumed(request, tmp_path):
    """A training that has been resumed within an epoch."""
    exact, model, optimizer, loader = prepared(**request.param)
    for inputs, labels in loader:
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()
        if exact.updates == STOPPED_AT and exact.sync_gradients:
            exact.save_state(tmp_path / "state")
            break
    training = prepared(**request.param)
    training[0].load_state(tmp_path / "state")
    return training


def test_a_loop_that_goes_through_the_rest_is_right(resumed, capsys):
    go_through(resumed)
    assert resumed[0].updates == 5
    assert "warning" not in capsys.readouterr().err


def test_batches_that_are_left_out_are_an_error(resumed):
    words = "has left out 1 batches after load_state, which had already set the loader to epoch 0, batch 2"
    with pytest.raises(UserError, match=words):
        go_through(resumed, left_out=resumed[0].sharing.rounds)


def test_an_epoch_that_is_left_out_is_a_warning(resumed, capsys):
    go_through(resumed, left_out=100)
    assert (
        "a resumed loop has gone through the rest of its epoch, from batch 2"
        in capsys.readouterr().err
    )


def test_only_the_resumed_loop_is_looked_at(resumed, capsys):
    go_through(resumed)
    go_through(
        resumed, left_out=resumed[0].sharing.rounds
    )  # an epoch of which a script takes a part
    assert "warning" not in capsys.readouterr().err
