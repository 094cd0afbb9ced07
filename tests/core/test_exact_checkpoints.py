"""Checkpoints of the core: what they refuse, what comes back, damaged ones, and requests to stop."""

import os
import signal
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from exact_data import Rows, accelerator, mlp, numbers
from test_exact_accelerator import same_bits
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from mnist_dist.core import UserError, files
from mnist_dist.core.checkpointing import Checkpoints
from mnist_dist.core.stopping import SIGNALS


@pytest.fixture(autouse=True)
def handlers():
    """What this process does on signals, which `Checkpoints` changes."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def checkpoints_with(
    run, fixed=None, custom=(), turned=False, batch_size=7, **options
) -> Checkpoints:
    """Those of a small training with a schedule."""
    exact = accelerator(**options)
    model = mlp(6, 5, 1)
    parameters = [*model.parameters()]
    optimizer = torch.optim.Adam(reversed(parameters) if turned else parameters)
    loader = DataLoader(Rows(numbers(20, 6)), batch_size)
    exact.prepare(model, optimizer, loader, ExponentialLR(optimizer, 0.9))
    exact.register_for_checkpointing(*custom)
    return Checkpoints(exact, run, fixed or {})


@pytest.mark.parametrize(
    ("then", "now", "sentence"),
    [
        ({"--seed": 1}, {"--seed": 2}, "--seed is 2, but the run in {run} was trained with 1"),
        (
            {"--seed": 1, "--lr": 0.1},
            {"--seed": 1},
            "--lr is not set here, but the run in {run} was trained with 0.1",
        ),
        (
            {},
            {"the digest": "abc"},
            "the digest is abc, but the run in {run} was trained without it: resume",
        ),
        (
            {"--widths": [6, 5]},
            {"--widths": [6, 4]},
            "--widths is [6, 4], but the run in {run} was trained with [6, 5]",
        ),
        ({"--seed": 1, "--lr": None}, {"--seed": 1, "--lr": None}, None),
    ],
)
def test_what_is_fixed_and_differs_is_refused_by_name(then, now, sentence, tmp_path):
    checkpoints_with(tmp_path, then).save()
    resumed = checkpoints_with(tmp_path, now)
    weights = resumed.accelerator.unwrapped_models[0].state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with pytest.raises(UserError) if sentence else nullcontext() as refusal:
        assert resumed.resume()
    if sentence:
        assert refusal is not None
        assert sentence.format(run=tmp_path) in str(refusal.value) and "\n" not in str(
            refusal.value
        )
        assert same_bits(before, dict(weights))  # refused before anything is loaded


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"turned": True},
            r"parameter order is \[\[3, 2, 1, 0\]\], but .* was written with \[\[0, 1, 2, 3\]\]",
        ),
        ({"virtual_processes": 2}, "virtual_processes is 2, but the checkpoint was written with 0"),
        (
            {"gradient_accumulation_steps": 3},
            "gradient_accumulation_steps is 3, but the checkpoint was written with 1",
        ),
        ({"batch_size": 8}, r"batch size is \[8\], but the checkpoint was written with \[7\]"),
    ],
    ids=str,
)
def test_what_would_go_on_as_another_training_is_refused(changed, sentence, tmp_path):
    """An optimizer of another order would give each parameter the state of another, for instance."""
    checkpoints_with(tmp_path).save()
    with pytest.raises(UserError, match=sentence):
        checkpoints_with(tmp_path, **changed).resume()


@pytest.mark.parametrize("number", [1, 3])
def test_a_checkpoint_with_other_parts_is_refused(number, tmp_path):
    checkpoints_with(tmp_path, custom=[nn.Linear(1, 1), nn.Linear(2, 2)]).save()
    others = checkpoints_with(
        tmp_path, custom=[nn.Linear(size, size) for size in range(1, 1 + number)]
    )
    with pytest.raises(
        UserError, match=r"the newest checkpoint in .* holds another training \(ValueError\)"
    ):
        others.resume()


class Values:
    """Plain values, as a part of a training."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


def test_plain_values_come_back(tmp_path):
    lines = [{"epoch": 1}, {"epoch": 2, "x": None}]
    first = Values(best=0.25, name="é", at=torch.arange(3), lines=lines)
    second = Values()
    checkpoints_with(tmp_path, custom=[first]).save()
    assert checkpoints_with(tmp_path, custom=[second]).resume()
    assert same_bits(first.values, second.values)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    checkpoints = checkpoints_with(tmp_path, custom=[Values(best=np.float64(0.25))])
    with pytest.raises(
        UserError,
        match=r"a checkpoint that holds numpy.* cannot be read back: save plain values only",
    ):
        checkpoints.save()
    assert not list(tmp_path.rglob("*.pt"))


def test_without_a_checkpoint_it_starts_from_scratch_and_says_so(tmp_path, capsys):
    assert not checkpoints_with(tmp_path).resume()
    assert (
        f"no checkpoint in {tmp_path / 'checkpoints'}: starting from scratch"
        in capsys.readouterr().out
    )


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, capsys):
    first = checkpoints_with(tmp_path)
    first.save()
    first.accelerator.updates = 1
    first.save()
    newest = tmp_path / "checkpoints" / "step-0000000001" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    second = checkpoints_with(tmp_path)
    assert second.resume() and second.accelerator.updates == 0
    assert (
        "is damaged: state.pt does not have the digest in manifest.json" in capsys.readouterr().err
    )
    (tmp_path / "checkpoints" / "step-0000000000" / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds a run but no intact checkpoint"):
        checkpoints_with(tmp_path).resume()


def test_a_signal_is_noted_and_answered_after_the_update(tmp_path):
    checkpoints = checkpoints_with(tmp_path)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(UserError, match="stopped on request at update 0") as stop:
        checkpoints.after_update()
    checkpoints = checkpoints_with(tmp_path)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(UserError, match="stopped on request at update 0"):
        checkpoints.save()  # though nobody asked after the updates
    assert (
        stop.value.status == 75
        and stop.value.run == tmp_path
        and list((tmp_path / "checkpoints").glob("step-*"))
    )


def test_asked_to_stop_in_an_evaluation_it_leaves_if_all_updates_are_saved(tmp_path):
    checkpoints = checkpoints_with(tmp_path)
    os.kill(os.getpid(), signal.SIGUSR1)
    checkpoints.stop_if_asked()  # nothing is saved yet
    checkpoints.save(last=True)
    with pytest.raises(UserError, match="stopped on request at update 0, saved in"):
        checkpoints.stop_if_asked()
    checkpoints.accelerator.updates = 1
    checkpoints.stop_if_asked()
    resumed = checkpoints_with(tmp_path)
    assert resumed.resume()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(UserError, match="stopped on request at update 0, saved in"):
        resumed.stop_if_asked()


def test_a_checkpoint_that_could_not_be_written_is_none_to_go_on_from(tmp_path, monkeypatch):
    checkpoints = checkpoints_with(tmp_path)
    checkpoints.save()
    place = checkpoints.accelerator.last_checkpoint

    def refused(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "write_folder", refused)
    checkpoints.accelerator.updates = 1
    checkpoints.save(last=True)
    assert checkpoints.accelerator.last_checkpoint == place
    os.kill(os.getpid(), signal.SIGUSR1)
    checkpoints.stop_if_asked()
