"""File systems that lack what most have: flushing folders, renaming, the target of a link, locks."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, REPOSITORY, call, clean_environment, train_py

from mnist_dist.core import UserError
from mnist_dist.core import files as core_files
from mnist_dist.core.checkpointing import newest_checkpoint, write_checkpoint
from mnist_dist.run import folder as run_folder
from mnist_dist.run.files import append_json, write_file, write_json

QUICK = "--dataset mnist-5k --cpu --wandb disabled --epochs 1".split()

# To be imported before the program, as sitecustomize: a file system without some of its operations.
SPARE = """
import errno, os, pathlib, sys
MISSING = os.environ["MISSING"].split()
flush, rename = os.fsync, os.replace

def fsync(descriptor):
    if "fsync" in MISSING and os.path.isdir(f"/proc/self/fd/{descriptor}"):
        raise OSError(errno.EINVAL, "Invalid argument")
    flush(descriptor)

def replace(source, target, **more):
    if "rename" in MISSING:
        raise OSError(errno.ENOSYS, "Function not implemented", str(source))
    if "checkpoints" in MISSING and "checkpoints" in str(source):
        raise OSError(errno.EIO, "Input/output error", str(source))
    rename(source, target, **more)

os.fsync, os.replace = fsync, replace
pathlib.Path.replace = lambda path, target: (replace(path, target), pathlib.Path(target))[1]
pathlib.Path.rename = lambda path, target: (replace(path, target), pathlib.Path(target))[1]
if "checkpoints" in MISSING:
    import shutil
    shutil.copyfile = lambda source, target: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error", target))
"""


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """No warning has been printed yet, and a rename is tried again at once."""
    monkeypatch.setattr(core_files, "WARNED", set())
    monkeypatch.setattr(core_files, "PAUSES", (0, 0))


@pytest.fixture
def spare(tmp_path):
    """A function that trains on a file system without some of its operations."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(SPARE)

    def train(missing: str, *flags: str | Path) -> subprocess.CompletedProcess:
        paths = f"{place}{os.pathsep}{REPOSITORY}"
        environment = clean_environment(PYTHONPATH=paths, MISSING=missing)
        command = [PYTHON, "train.py", *QUICK, "--no-plots", "--output-dir", *flags]
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
        )

    return train


def refuse(number: int):
    """A function of the system that is not offered."""

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


# What is not offered.


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_flush_that_is_not_offered_is_passed_over_with_one_warning(
    number, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(os, "fsync", refuse(number))
    for updates in (1, 2):
        write_checkpoint(tmp_path, {"updates": updates}, updates)
        write_json(tmp_path / "file.json", updates)
        append_json(tmp_path / "file.json", updates)
    assert newest_checkpoint(tmp_path) == ({"updates": 2}, [])
    warnings = capsys.readouterr().err
    assert warnings.count("warning: ") == 1
    assert "does not support fsync" in warnings and os.strerror(number) in warnings


def test_a_flush_that_fails_is_still_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_checkpoint(tmp_path, {"updates": 1}, 1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EXDEV]
)
def test_a_rename_that_is_not_offered_is_done_by_copying(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "replace", refuse(number))
    monkeypatch.setattr(Path, "rename", refuse(number))
    for updates in (1, 2, 2):  # the last one takes the place of another
        write_checkpoint(tmp_path, {"updates": updates, "weights": torch.arange(updates)}, updates)
    write_file(tmp_path / "weights", b"old")
    write_file(tmp_path / "weights", b"new")
    payload, warnings = newest_checkpoint(tmp_path)
    assert payload is not None and payload["updates"] == 2 and warnings == []
    assert (tmp_path / "weights").read_bytes() == b"new"
    names = sorted(path.name for path in tmp_path.rglob("*"))
    files = 2 * ["manifest.json"] + ["state.pt"] * 2
    assert names == sorted(["checkpoints", "step-0000000001", "step-0000000002", "weights", *files])
    assert capsys.readouterr().err.count("warning: the file system does not rename") == 1


def test_a_rename_that_is_refused_for_a_moment_is_tried_again(tmp_path, monkeypatch, capsys):
    rename = Path.replace
    refused: list[Path] = []

    def busy(path, target):
        if not refused:
            refused.append(path)
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", busy)
    write_checkpoint(tmp_path, {"updates": 1}, 1)
    assert refused and newest_checkpoint(tmp_path) == ({"updates": 1}, [])
    assert not capsys.readouterr().err


def test_of_a_copy_that_fails_nothing_is_left_and_what_was_there_stays(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, {"updates": 1}, 1)
    rename = Path.replace

    def to_old_names_only(path, target):
        if not target.name.endswith(".old"):
            raise OSError(errno.ENOSYS, "Function not implemented")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", to_old_names_only)
    monkeypatch.setattr(shutil, "copyfile", refuse(errno.ENOSPC))
    for updates in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(tmp_path, {"updates": updates, "other": 1}, updates)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000000001"]
    assert newest_checkpoint(tmp_path) == ({"updates": 1}, [])


def test_a_copy_that_a_crash_has_cut_short_is_not_read(tmp_path):
    write_checkpoint(tmp_path, {"updates": 1}, 1)
    begun = tmp_path / "checkpoints" / "step-0000000002"
    begun.mkdir()
    shutil.copy(tmp_path / "checkpoints" / "step-0000000001" / "state.pt", begun)
    payload, warnings = newest_checkpoint(tmp_path)
    assert payload == {"updates": 1} and len(warnings) == 1


@pytest.mark.slow
def test_a_training_where_neither_is_offered_ends_well(spare, tmp_path):
    done = spare("fsync rename", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 2 and done.stderr.count("\n") == 2, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    again = spare("fsync rename", tmp_path / "run", "--resume", "--epochs", "2")
    assert again.returncode == 0 and "resuming from update " in again.stdout, again.stderr


@pytest.mark.slow
def test_the_weights_are_written_whatever_happens_to_the_last_checkpoint(spare, tmp_path):
    done = spare("checkpoints", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "warning: the run's last checkpoint is missing (the system refused" in done.stderr
    assert torch.load(tmp_path / "run" / "mnist_model.pth", weights_only=True)
    assert (tmp_path / "run" / "summary.json").exists()
    # In the middle of a run nothing else holds what was trained.
    done = spare("checkpoints", tmp_path / "other", "--checkpoint-every", "3")
    assert done.returncode == 1 and "error: the system refused" in done.stderr


# Links whose target is gone.


@pytest.fixture
def lost(tmp_path):
    """A function that makes a symbolic link to a folder that is not there."""

    def link(name: str) -> Path:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to("/nonexistent/scratch")
        return place

    return link


def test_a_link_to_nowhere_is_named_with_its_target(lost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, of_run = lost("runs"), lost("run/checkpoints")
    says = "is a symbolic link to /nonexistent/scratch, which does not exist"
    with pytest.raises(UserError, match=f"^runs {says}"):
        run_folder.make_new_folder("name")
    with pytest.raises(UserError, match=f"^{run} {says}"):
        run_folder.check_folder(run, resume=False, weights="weights")
    with pytest.raises(UserError, match=f"^{of_run} {says}"):
        run_folder.check_folder(of_run.parent, resume=True, weights="weights")
    with pytest.raises(UserError, match=f"^{of_run} {says}"):
        write_checkpoint(of_run.parent, {}, 1)
    with pytest.raises(UserError, match=f"^{run} {says}"):
        write_file(run / "file", b"")
    with pytest.raises(UserError, match=f"^{run} {says}"):
        core_files.make_folder(run / "deep" / "folder")


def test_a_link_that_leads_somewhere_is_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to("scratch")
    first, second = (run_folder.make_new_folder("name") for _ in range(2))
    assert first != second and len(list((tmp_path / "scratch").iterdir())) == 2


@pytest.mark.slow
def test_a_training_whose_folder_or_data_is_a_link_to_nowhere_ends_at_once(lost):
    run, data = lost("run"), lost("data")
    torchrun_words = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    done = call(PYTHON, *torchrun_words, "train.py", *QUICK, "--output-dir", run, timeout=120)
    assert done.returncode != 0
    assert f"train.py: error: {run} is a symbolic link to /nonexistent/scratch" in done.stderr
    done = train_py(
        *QUICK, "--dataset", "auto", "--data-dir", data, "--output-dir", run.with_name("other")
    )
    assert done.returncode != 0
    assert f"error: {data} is a symbolic link to /nonexistent/scratch" in done.stderr
