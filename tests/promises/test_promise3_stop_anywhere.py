"""Promise 3: stop anywhere, lose nothing."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from conftest import (
    ACCELERATE,
    DRIVER,
    PYTHON,
    PYTHONPATH,
    REPOSITORY,
    call,
    checkpoint_of,
    clean_environment,
    driver,
    forked,
    rewind,
    train_py,
    weight_difference,
)

from mnist_dist.core import UserError, checkpointing, files
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.command_line import as_json
from mnist_dist.run.files import write_file
from mnist_dist.run.folder import Run
from mnist_dist.run.locks import lock
from mnist_dist.run.tracking import Tracker

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from fault_injection import result

FLAGS = "--dataset mnist-5k --cpu --wandb disabled --batch-size 50 --checkpoint-every 7".split()


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of ten epochs, and the same stopped by SIGTERM in mid-epoch, with how it left."""
    root = tmp_path_factory.mktemp("stopped")
    done = train_py(*FLAGS, "--epochs", "10", "--output-dir", root / "whole")
    assert done.returncode == 0, done.stderr
    command = [PYTHON, "train.py", *FLAGS, "--epochs", "10", "--output-dir", root / "stopped"]
    running = subprocess.Popen(
        command, cwd=REPOSITORY, env=clean_environment(), stderr=subprocess.PIPE, text=True
    )
    while not list((root / "stopped" / "checkpoints").glob("step-*")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    return root / "whole", root / "stopped", running.returncode, errors


def test_asked_to_stop_it_leaves_with_a_checkpoint_and_status_75(stopped):
    _, run, status, errors = stopped
    assert status == 75, errors
    assert errors.startswith("train.py: stopped on request at update ") and errors.count("\n") == 1
    assert not (run / "summary.json").exists() and not (run / "mnist_model.pth").exists()
    assert json.loads((run / "ended.json").read_text())["state"] == "stopped"
    places = list((run / "checkpoints").iterdir())
    assert 1 <= len(places) <= 2 and all(place.name.startswith("step-") for place in places)


def test_resumed_it_ends_with_the_bits_of_the_run_that_was_never_stopped(stopped, tmp_path):
    whole, run, _, _ = stopped
    shutil.copytree(run, tmp_path / "run")
    done = train_py(*FLAGS, "--epochs", "10", "--output-dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming from update " in done.stdout and not (tmp_path / "run" / "ended.json").exists()
    assert result(tmp_path / "run") == result(whole)


@pytest.mark.slow
def test_killed_after_the_last_epoch_only_the_end_is_done_again(stopped, tmp_path):
    whole, _, _, _ = stopped
    shutil.copytree(whole, tmp_path / "run")
    for name in ("summary.json", "mnist_model.pth"):
        (tmp_path / "run" / name).unlink()
    done = train_py(*FLAGS, "--epochs", "10", "--output-dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run") == result(whole)


@pytest.mark.slow
def test_a_trained_model_without_checkpoints_is_not_overwritten(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = train_py(*FLAGS, "--output-dir", tmp_path / "run", "--resume")
    assert done.returncode == 1 and "holds a run but no intact checkpoint" in done.stderr
    assert (tmp_path / "run" / "mnist_model.pth").read_bytes() == (
        trained / "mnist_model.pth"
    ).read_bytes()


@pytest.mark.slow
def test_where_no_checkpoint_is_intact_the_run_is_left_as_it_is(stopped, tmp_path):
    _, run, _, _ = stopped
    shutil.copytree(run, tmp_path / "run")
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.pt"):
        state.write_bytes(state.read_bytes()[:-100])
    before = sorted(
        (path, path.read_bytes()) for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    done = train_py(*FLAGS, "--epochs", "10", "--output-dir", tmp_path / "run", "--resume")
    assert done.returncode == 1 and "holds a run but no intact checkpoint" in done.stderr
    assert (
        sorted(
            (path, path.read_bytes()) for path in (tmp_path / "run").rglob("*") if path.is_file()
        )
        == before
    )


@pytest.mark.slow
def test_a_finished_run_that_goes_on_is_not_finished_and_has_one_writer(stopped, tmp_path):
    whole, _, _, _ = stopped
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    flags = [*FLAGS, "--output-dir", str(run), "--resume"]
    command = [PYTHON, "train.py", *flags, "--epochs", "100000"]
    running = subprocess.Popen(
        command, cwd=REPOSITORY, env=clean_environment(), stderr=subprocess.PIPE, text=True
    )
    while (run / "metrics.jsonl").read_text().count("\n") < 12:
        assert running.poll() is None
        time.sleep(0.01)
    second = train_py(*flags, "--epochs", "20")
    assert (
        second.returncode == 1 and f"another process is writing the run in {run}" in second.stderr
    )
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75 and f"with --output-dir {run} --resume" in errors
    assert not (run / "summary.json").exists()
    epoch = checkpoint_of(run)["state"]["loaders"][0]["epoch"]
    less = train_py(*flags, "--epochs", str(epoch - 1))
    assert (
        less.returncode == 1
        and f"--epochs {epoch - 1} is too few: the run in {run} is already in epoch" in less.stderr
    )


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_name_and_the_end_is_the_same(stopped, tmp_path):
    whole, run, _, _ = stopped
    shutil.copytree(run, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    done = train_py(*FLAGS, "--epochs", "10", "--output-dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.startswith(f"warning: the checkpoint {newest} is damaged")
        and done.stderr.count("\n") == 1
    )
    assert result(tmp_path / "run") == result(whole)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--lr", "0.01"], "--lr is 0.01, but the run in "),
        pytest.param(["--seed", "1"], "--seed is 1, but the run in ", marks=pytest.mark.slow),
        pytest.param(["--schedule", "cosine"], "--schedule is cosine, but", marks=pytest.mark.slow),
        pytest.param(["--dropout", "0.1"], "--dropout is 0.1, but", marks=pytest.mark.slow),
    ],
)
def test_other_mathematics_are_refused_by_name(stopped, flags, complaint):
    _, run, _, _ = stopped
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    done = train_py(*FLAGS, "--epochs", "10", *flags, "--output-dir", run, "--resume")
    assert done.returncode == 1 and complaint in done.stderr and done.stderr.count("\n") == 1
    assert sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file()) == before


def test_only_settings_that_are_used_must_stay():
    one, other = (TrainConfig(channels=channels) for channels in ((16, 32), (8,)))
    assert one.fixed(as_json(one)) == other.fixed(as_json(other))
    one, other = replace(one, model="cnn"), replace(other, model="cnn")
    assert one.fixed(as_json(one)) != other.fixed(as_json(other))


@pytest.mark.slow
def test_other_data_under_the_same_name_are_refused(stopped):
    _, run, _, _ = stopped
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    done = forked(1, [([*FLAGS, "--epochs", "10", "--output-dir", run, "--resume"], "other_data")])
    assert (
        done.returncode != 0
        and "train.py: error: the data's digest is other, but the run in " in done.stderr
    )
    assert sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file()) == before


@pytest.fixture
def written(tmp_path) -> Path:
    """A run's folder with two checkpoints."""
    for step in (3, 4, 5):
        checkpointing.write_checkpoint(
            tmp_path, {"weights": torch.arange(100.0) + step, "step": step}, step
        )
    return tmp_path


def test_the_newest_two_are_kept_and_the_newest_is_read(written):
    assert sorted(place.name for place in (written / "checkpoints").iterdir()) == [
        "step-0000000004",
        "step-0000000005",
    ]
    payload, warnings = checkpointing.newest_checkpoint(written)
    assert payload is not None
    assert (
        payload["step"] == 5
        and torch.equal(payload["weights"], torch.arange(100.0) + 5)
        and warnings == []
    )


def test_a_damaged_checkpoint_that_was_passed_over_is_not_counted_among_those_kept(written):
    damaged = (written / "checkpoints" / "step-0000000005").rename(
        written / "checkpoints" / "step-0000000099"
    )
    (damaged / "state.pt").write_bytes(b"")
    for step in (6, 7):
        checkpointing.write_checkpoint(written, {"step": step}, step)
    assert sorted(place.name for place in (written / "checkpoints").iterdir()) == [
        "step-0000000006",
        "step-0000000007",
    ]


def test_a_write_that_fails_leaves_the_others_as_they_were(written, monkeypatch):
    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        checkpointing.write_checkpoint(written, {"step": 6}, 6)
    monkeypatch.undo()
    assert sorted(place.name for place in (written / "checkpoints").iterdir()) == [
        "step-0000000004",
        "step-0000000005",
    ]
    assert checkpoint_of(written)["step"] == 5


def test_a_link_and_a_pipe_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_file(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_what_a_crash_left_unfinished_is_not_read_and_is_cleared_away(written):
    (written / "checkpoints" / ".step-0000000006").mkdir()
    (written / "checkpoints" / ".step-0000000006" / "state.pt").write_bytes(b"half")
    assert checkpoint_of(written)["step"] == 5
    checkpointing.write_checkpoint(written, {"step": 6}, 6)
    assert sorted(place.name for place in (written / "checkpoints").iterdir()) == [
        "step-0000000005",
        "step-0000000006",
    ]


def test_what_cannot_be_tidied_away_ends_no_training(written, monkeypatch, capsys):
    """A foreign file with another name is left alone, one with a checkpoint's is named, and so is what is in use."""
    folder, remove = written / "checkpoints", shutil.rmtree
    foreign, file, kept = (
        folder / "step-by-step.txt",
        folder / "step-0000000001",
        folder / "step-0000000004",
    )
    foreign.touch()
    file.touch()

    def busy(path, ignore_errors=False):
        if path == kept and not ignore_errors:
            raise OSError(16, "Device or resource busy", str(path))
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", busy)
    for step in (6, 7):
        checkpointing.write_checkpoint(written, {"step": step}, step)
    assert checkpointing.newest_checkpoint(written) == ({"step": 7}, [])
    assert {path.name for path in folder.iterdir()} == {
        *(foreign.name, file.name, kept.name, "step-0000000006", "step-0000000007")
    }
    warnings = capsys.readouterr().err.splitlines()
    assert f"warning: {kept} could not be removed (Device or resource busy)" in warnings
    assert (
        f"warning: {file} could not be removed (Not a directory)" in warnings and len(warnings) == 4
    )


def test_a_finished_run_keeps_its_summary_until_it_goes_on(tmp_path, accelerator):
    """Resumed with nothing left to do, or when nothing can be written, it stays a finished run."""
    summary, config = tmp_path / "summary.json", tmp_path / "config.json"
    summary.touch()
    tracker = Tracker(accelerator, Run(tmp_path, False, "", {}), {"epochs": 2})
    tracker.load_state_dict(
        {
            "history": [{"epoch": 1, "global_step": 5}, {"epoch": 2, "global_step": 10}],
            "pending": {},
        }
    )
    with tracker:
        assert summary.exists()
    config.unlink()
    config.mkdir()
    tracker.settings = {"epochs": 3}
    with pytest.raises(UserError, match=r"config\.json"):
        tracker.__enter__()
    assert summary.exists()
    config.rmdir()
    with tracker:
        assert not summary.exists()


@pytest.mark.parametrize("folders_can_be_opened", [True, False])
def test_a_run_has_one_writer(folders_can_be_opened, tmp_path, monkeypatch):
    if not folders_can_be_opened:
        monkeypatch.delattr(os, "O_DIRECTORY")
    lock(tmp_path)
    with pytest.raises(UserError, match=f"another process is writing the run in {tmp_path}"):
        lock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == (
        [] if folders_can_be_opened else [".lock"]
    )


def test_a_folder_that_is_deleted_in_mid_run_is_noticed_at_the_next_epoch(tmp_path, accelerator):
    """Also if a checkpoint within the epoch has made it anew: the run would have gone on without its record."""
    run = tmp_path / "run"
    run.mkdir()
    with Tracker(accelerator, Run(run, False, "", {}), {}) as tracker:
        tracker.log_epoch({"epoch": 1, "global_step": 5})
        shutil.rmtree(run)
        checkpointing.write_checkpoint(run, {"step": 7}, 7)
        with pytest.raises(
            UserError, match=r"the system refused '.*run.metrics\.jsonl': No such file or directory"
        ):
            tracker.log_epoch({"epoch": 2, "global_step": 10})
    assert checkpointing.newest_checkpoint(run)[0] == {"step": 7}


def test_a_checkpoint_of_another_format_or_with_code_in_it_is_refused(written, monkeypatch):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {written / 'pwned'}",)

    with pytest.raises(UserError, match=r"a checkpoint that holds .* cannot be read back"):
        checkpointing.write_checkpoint(written, {"x": Malicious()}, 7)
    with monkeypatch.context() as unwary:
        unwary.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", lambda _: [])
        checkpointing.write_checkpoint(written, {"x": Malicious()}, 7)
    with pytest.raises(UserError, match="is damaged: UnpicklingError"):
        files.read_folder(written / "checkpoints" / "step-0000000007")
    assert not (written / "pwned").exists()
    monkeypatch.setattr(files, "FORMAT", 99)
    with pytest.raises(UserError, match=r"has format \d, this version reads 99"):
        files.read_folder(written / "checkpoints" / "step-0000000005")


@pytest.mark.slow
def test_epochs_may_grow_where_that_changes_nothing_before(tmp_path):
    for epochs, folder, more in (
        ("4", "whole", []),
        ("2", "grown", []),
        ("4", "grown", ["--resume"]),
    ):
        done = train_py(*FLAGS, "--epochs", epochs, "--output-dir", tmp_path / folder, *more)
        assert done.returncode == 0, done.stderr
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


def begin_on_two(flags: list, run: Path) -> subprocess.Popen:
    """A run on two processes that has just written its first checkpoint."""
    launch = [
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "train.py",
    ]
    running = subprocess.Popen(
        [*launch, *flags, run],
        cwd=REPOSITORY,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((run / "checkpoints").glob("step-*")):
        assert running.poll() is None
        time.sleep(0.01)
    return running


@pytest.mark.slow
def test_asked_to_stop_in_a_long_evaluation_it_leaves_at_once_and_goes_on_there(tmp_path):
    def command(seconds: float, folder: str, *more: str) -> list:
        flags = "--dataset mnist-5k --cpu --wandb disabled --batch-size 50 --no-plots".split()
        run = ["--epochs", "2", "--output-dir", tmp_path / folder]
        script = Path(__file__).with_name("long_evaluation.py")
        start = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return [*start, script, str(seconds), *flags, *run, *more]

    whole = call(*command(0, "whole"))
    assert whole.returncode == 0, whole.stderr
    running = subprocess.Popen(
        [str(word) for word in command(3, "run")],
        cwd=REPOSITORY,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    updates = 80  # of 4,000 samples
    while not (tmp_path / "run" / "checkpoints" / f"step-{updates:010d}").exists():
        assert running.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    running.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - asked < 40, "the 20 batches of the evaluation take 60 seconds"
    assert f"stopped on request at update {updates}, saved in" in errors
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    done = call(*command(0, "run", "--resume"))
    assert done.returncode == 0, done.stderr
    assert f"resuming from update {updates} " in done.stdout
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path):
    """Stopped on two processes, resumed on three: float64 weights are those of one process to 1e-9."""
    flags = [*FLAGS, "--dtype", "float64", "--epochs", "10", "--output-dir"]
    done = train_py(*flags, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    running = begin_on_two(flags, tmp_path / "run")
    psutil.Process(running.pid).children()[1].send_signal(signal.SIGUSR1)
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert not (tmp_path / "run" / "summary.json").exists()
    done = driver(3, [([*flags, tmp_path / "run", "--resume"], None)])
    assert done.returncode == 0, done.stderr
    assert "resuming from update " in done.stdout
    assert weight_difference(tmp_path / "run", tmp_path / "whole") < 1e-9
    one, two = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole")
    )
    assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-9)


@pytest.mark.slow
def test_where_a_rank_dies_the_others_leave_and_the_run_goes_on_from_the_last_checkpoint(tmp_path):
    flags = [*FLAGS, "--epochs", "12", "--output-dir"]
    done = forked(2, [([*flags, tmp_path / "whole"], None)])
    assert done.returncode == 0, done.stderr
    running = begin_on_two(flags, tmp_path / "run")
    psutil.Process(running.pid).children()[1].kill()
    _, errors = running.communicate(timeout=120)
    # torchrun kills those that have not left after 30 seconds.
    assert running.returncode != 0 and errors.count("exitcode  : -9") == 1
    assert "train.py: error: process 0 lost the connection to another" in errors
    assert "]: Traceback" not in errors, errors
    assert not (tmp_path / "run" / "summary.json").exists()
    done = driver(2, [([*flags, tmp_path / "run", "--resume"], None)])
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run") == result(tmp_path / "whole")


EVERYTHING = "--gradient-accumulation-steps 3 --schedule one-cycle --clip-norm 1 --label-smoothing 0.1".split()
EVERYTHING += "--weight-decay 0.01 --affine 1 --elastic 1 --dropout 0.1 --ema 0.99".split()
EVERYTHING += "--val-size 100 --epochs 2 --batch-size 130".split()


@pytest.mark.parametrize(
    ("processes", "fault"),
    [
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(2, None, marks=pytest.mark.slow),
        pytest.param(1, "fp16_scaler", marks=pytest.mark.slow),
        pytest.param(2, "fp16_scaler", marks=pytest.mark.slow),
    ],
)
def test_resumed_in_mid_epoch_with_everything_that_has_a_state_the_bits_are_the_same(
    processes, fault, tmp_path
):
    """`EVERYTHING`, and fp16's scaler (here on the CPU, where scales change often)."""
    flags = [*FLAGS, *EVERYTHING, "--output-dir"]
    done = forked(processes, [([*flags, tmp_path / "whole"], fault)])
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    rewind(tmp_path / "run")
    done = forked(processes, [([*flags, tmp_path / "run", "--resume"], fault)])
    assert done.returncode == 0, done.stderr
    assert "resuming from update 56 (epoch 2)" in done.stdout
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    if fault:
        state, other = (checkpoint_of(tmp_path / name)["state"] for name in ("run", "whole"))
        assert state["scaler"] == other["scaler"]
        # Some updates were skipped, as they should be.
        assert state["optimizers"][0]["state"][0]["step"] < 60


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_the_run_and_names_update_and_checkpoint(tmp_path):
    flags = "--dataset mnist-5k --cpu --wandb disabled --batch-size 134 --checkpoint-every 20 --output-dir".split()
    done = driver(2, [([*flags, tmp_path / "run"], "gradient_breaks_at_update_30")])
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("train.py: error"))
    assert "the gradient of update 30 is not finite" in line
    assert (
        f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-0000000020'}"
        in line
    )
    assert checkpoint_of(tmp_path / "run")["state"]["updates"] == 20


@pytest.mark.slow
def test_a_process_that_waits_in_c_for_a_dead_one_ends_at_once(tmp_path):
    """As in CUDA for NCCL, where torchrun's SIGTERM is not heard; and nobody is missed at a regular end."""
    flags = "--dataset mnist-5k --cpu --wandb disabled --epochs 1 --output-dir".split()
    fault = "last_process_is_killed_while_the_others_wait_in_c"
    done = driver(3, [([*flags, tmp_path / "run"], fault)])
    # torchrun kills those that have not left after 30 seconds.
    assert done.returncode != 0 and done.stderr.count("exitcode  : -9") == 1
    assert "error: process 1 exits because process 2 has exited" in done.stderr
    done = driver(3, [([*flags, tmp_path / "sound"], "a_process_is_watched")])
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.slow
def test_where_one_process_cannot_read_a_file_all_leave_and_it_says_why(tmp_path):
    flags = "--dataset mnist-5k --cpu --wandb disabled --output-dir".split()
    done = driver(2, [([*flags, tmp_path / "run"], "last_process_cannot_read_at_update_30")])
    assert done.returncode != 0 and "process 0 lost the connection" in done.stderr
    sentence = f"[rank 1 on {platform.node()}]: train.py: error: the system refused '/dev/planted': Input/output error"
    assert done.stderr.count(sentence) == 1, done.stderr


@pytest.mark.slow
def test_where_one_process_raises_all_leave_and_its_own_message_says_why(tmp_path):
    flags = "--dataset mnist-5k --cpu --wandb disabled --checkpoint-every 20 --output-dir".split()
    begin = time.monotonic()
    done = driver(3, [([*flags, tmp_path / "run"], "last_process_raises_at_update_30")])
    # Seconds to leave, and to start on a busy machine.
    assert done.returncode != 0 and time.monotonic() - begin < 30 + 45
    name = f"[rank 2 on {platform.node()}]: "  # on every line: many ranks share one log
    lines = [line.removeprefix(name) for line in done.stderr.splitlines() if line.startswith(name)]
    assert (
        lines[0] == "Traceback (most recent call last):" and lines[-1] == "MemoryError: planted"
    ), done.stderr
    assert (
        done.stderr.count("MemoryError: planted") == 1
        and "process 0 lost the connection" in done.stderr
    )
    assert checkpoint_of(tmp_path / "run")["state"]["updates"] == 20
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    """Also from an update that does not end, and without waiting for W&B."""
    flags = [
        "--dataset",
        "mnist-5k",
        "--cpu",
        "--wandb",
        "offline",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    spec = {"runs": [{"flags": flags, "fault": "stuck_in_an_update"}]}
    running = subprocess.Popen(
        [PYTHON, DRIVER, json.dumps(spec)],
        env=clean_environment(PYTHONPATH=PYTHONPATH),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout and running.stderr
    while running.stdout.readline() != "stuck\n":
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=1)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=5) == 130
    assert running.stderr.read() == "interrupted\n"


def used(folder: Path) -> int:
    """KiB in use on a file system."""
    disk = shutil.disk_usage(folder)
    return disk.used // 1024


def assert_no_space(done: subprocess.CompletedProcess, place: Path) -> None:
    """It left with status 1 and one sentence that names what could not be written."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith(
        f"train.py: error: the system refused '{place}': No space left on device"
    )
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_a_full_disk_loses_no_checkpoint_and_with_more_room_the_run_goes_on(stopped, small_disk):
    whole, _, _, _ = stopped
    disk, remount = small_disk
    remount("size=3500k")  # two checkpoints of 1.3 MB, and not the third
    flags = [*FLAGS, "--epochs", "10", "--output-dir", disk / "run"]
    assert_no_space(train_py(*flags), disk / "run" / "checkpoints" / "step-0000000021")
    assert sorted(place.name for place in (disk / "run" / "checkpoints").iterdir()) == [
        "step-0000000007",
        "step-0000000014",
    ]
    payload, warnings = checkpointing.newest_checkpoint(disk / "run")
    assert payload is not None
    assert payload["state"]["updates"] == 14 and warnings == []
    assert not (disk / "run" / "summary.json").exists()
    remount("size=64m")
    done = train_py(*flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert result(disk / "run") == result(whole)


@pytest.mark.slow
def test_a_full_disk_at_the_model_leaves_no_half_of_it(stopped, small_disk):
    whole, _, _, _ = stopped
    disk, remount = small_disk
    shutil.copytree(whole, disk / "run")
    for name in ("summary.json", "mnist_model.pth"):
        (disk / "run" / name).unlink()
    remount(f"size={used(disk) + 100}k")
    flags = [*FLAGS, "--epochs", "10", "--output-dir", disk / "run", "--resume"]
    assert_no_space(train_py(*flags), disk / "run" / "mnist_model.pth")
    assert not (disk / "run" / "summary.json").exists() and not list(
        (disk / "run").glob("*mnist_model*")
    )
    remount("size=64m")
    done = train_py(*flags)
    assert done.returncode == 0, done.stderr
    assert result(disk / "run") == result(whole)


@pytest.mark.slow
def test_a_full_disk_at_the_metrics_leaves_only_whole_lines(small_disk):
    disk, _ = small_disk
    flags = [*FLAGS, "--output-dir", disk / "run"]
    done = forked(1, [(flags, "disk_full_at_metrics")])
    errors = [line for line in done.stderr.splitlines() if line.startswith("train.py: error")]
    assert done.returncode == 1 and len(errors) == 1 and "No space left on device" in errors[0], (
        done.stderr
    )
    assert (disk / "run" / "metrics.jsonl").read_bytes() == b""
    assert (
        checkpointing.newest_checkpoint(disk / "run")[1] == []
        and not (disk / "run" / "summary.json").exists()
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launcher_that_restarts_makes_the_run_go_on_by_itself(launcher, tmp_path):
    """Rank 1 is killed, and the result is that of the undisturbed run. The folder is the default one."""
    launch = {
        "torchrun": [
            PYTHON,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "--max-restarts=2",
        ],
        "accelerate": [*ACCELERATE, "--num_processes", "2", "--max_restarts", "2"],
    }[launcher]
    launch = [
        str(REPOSITORY / word) if word == "accelerate_config.yaml" else word for word in launch
    ]
    flags = [*FLAGS, "--epochs", "12"]
    done = forked(2, [([*flags, "--output-dir", tmp_path / "whole"], None)])
    assert done.returncode == 0, done.stderr
    command: list[str | Path] = [*launch, REPOSITORY / "train.py", *flags]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("runs/*/checkpoints/step-*")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    psutil.Process(running.pid).children()[1].kill()
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert "resuming from update " in output
    (run,) = tmp_path.glob("runs/*")
    assert result(run) == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "names", "faults"), [(1, "KILL INT USR1", 3), (2, "KILL TERM", 2)]
)
def test_faults_at_random_instants(processes, names, faults):
    program = REPOSITORY / "benchmarks" / "fault_injection.py"
    done = call(
        *(
            PYTHON,
            program,
            f"--faults={faults}",
            f"--processes={processes}",
            "--cpu",
            "--signal",
            *names.split(),
        ),
        timeout=600,
    )
    print(done.stdout)  # with the seed
    assert done.returncode == 0, done.stdout + done.stderr
