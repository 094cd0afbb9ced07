"""A run has a name of its own in W&B, whatever an earlier one has left in the environment."""

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PYTHON, call

from mnist_dist.run import folder
from mnist_dist.run.wandb_run import WandB


def test_a_new_run_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "left")
    names = {folder.wandb_id_of(tmp_path) for _ in range(2)}
    assert len(names) == 2 and "left" not in names
    # An agent that searches for settings knows its runs by the names that it gives them.
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert folder.wandb_id_of(tmp_path) == "left"
    # A run that goes on keeps its own.
    (tmp_path / "config.json").write_text('{"wandb_id": "own"}')
    assert folder.wandb_id_of(tmp_path) == "own"
    (tmp_path / "config.json").write_text('{"wandb_id": "/../"}')
    assert len(folder.wandb_id_of(tmp_path)) == 8


@pytest.mark.parametrize(("left", "warnings"), [("left", 1), ("own", 0), (None, 0)])
def test_another_name_in_the_environment_costs_one_warning(left, warnings, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    if left:
        monkeypatch.setenv("WANDB_RUN_ID", left)
    run: Any = SimpleNamespace(settings={"wandb_id": "own"})
    WandB.drop_other_id(run)
    said = capsys.readouterr().err
    assert (
        said.count("warning: WANDB_RUN_ID=left belongs to another run; this one's id is own")
        == warnings
    )
    assert "WANDB_RUN_ID" not in os.environ


@pytest.mark.slow
def test_a_training_goes_by_its_own_name(tmp_path):
    flags = "--dataset mnist-5k --cpu --epochs 1 --no-plots --wandb offline --output-dir".split()
    done = call(PYTHON, "train.py", *flags, tmp_path / "run", WANDB_RUN_ID="left")
    assert (
        done.returncode == 0 and done.stderr.count("WANDB_RUN_ID=left belongs to another run") == 1
    ), done.stderr
    name = json.loads((tmp_path / "run" / "config.json").read_text())["wandb_id"]
    (part,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert name != "left" and part.name.endswith(f"-{name}")
