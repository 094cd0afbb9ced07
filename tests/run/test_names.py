"""Names that no programmer expects, in titles, messages and paths: they end nothing."""

import io
import subprocess
from pathlib import Path

import pytest
from conftest import PYTHON, REPOSITORY, clean_environment

from mnist_dist import plots
from mnist_dist.core import files
from mnist_dist.core.checkpointing import Checkpoints, shortened
from mnist_dist.core.errors import UserError
from mnist_dist.core.output import say
from mnist_dist.plots import figures

EPOCHS = [{"epoch": 1, "test_loss": 0.5, "test_accuracy": 0.9}]
NAMES = [r"a$\frac$b", "odd \udcff byte", "$", "één", r"\$ and $\x$"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_have_any_name_in_a_title(name, tmp_path, capsys):
    plots.learning_curves(tmp_path / "curves.png", EPOCHS, name)
    plots.compared(tmp_path / "compared.png", [(name, [EPOCHS])], name)
    assert (tmp_path / "curves.png").stat().st_size and (tmp_path / "compared.png").stat().st_size
    assert not capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_costs_one_warning(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no such font\nand more")

    monkeypatch.setattr(files, "WARNED", set())
    monkeypatch.setattr(figures, "save", broken)
    for name in ("one.png", "two.png"):
        plots.learning_curves(tmp_path / name, EPOCHS, "title")
    assert capsys.readouterr().err == (
        "warning: a picture could not be drawn (no such font): all else is as it would be\n"
    )


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", "\\xe9 \\udcff"), ("utf-8", "é \\udcff")]
)
def test_what_a_stream_cannot_encode_is_written_as_escapes(encoding, written):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    say("é \udcff", stream)
    assert stream.buffer.getvalue().decode(encoding) == f"{written}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"odd-\xff-$\\frac$", "één".encode()])
def test_a_training_in_a_folder_of_an_odd_name_ends_well(name, tmp_path):
    folder = Path(tmp_path, name.decode("utf-8", "surrogateescape"))
    flags = "--dataset mnist-5k --cpu --wandb disabled --epochs 1 --output-dir".split()
    done = subprocess.run(
        [PYTHON, "train.py", *flags, folder],
        cwd=REPOSITORY,
        env=clean_environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr and "Test Accuracy: " in done.stdout
    assert (folder / "summary.json").exists() and (
        folder / "plots" / "learning_curves.png"
    ).exists()


def test_of_other_data_the_name_is_told_and_not_the_digest(tmp_path):
    now = {"the data's digest": "a" * 124, "--seed": 3, "--dataset": "mnist"}
    then = {"the data's digest": "b" * 124, "--seed": 3, "--dataset": "kmnist"}
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.run, checkpoints.fixed = tmp_path, now
    with pytest.raises(
        UserError, match=r"^--dataset is mnist, but the run in .* was trained with kmnist: resume"
    ):
        checkpoints.refuse_other_values(then)
    # Of files that differ under one name there is no more to say.
    sentence = r"^the data's digest is aaaaaaaaaaaa\.\.\., but the run in .* was trained with bbbbbbbbbbbb\.\.\.: "
    with pytest.raises(UserError, match=sentence):
        checkpoints.refuse_other_values(then | {"--dataset": "mnist"})
    checkpoints.refuse_other_values(dict(now))
    assert shortened("--seed") == "--seed"
