"""Where locks do not hold, a file in the run's folder keeps a second job out of it."""

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import PYTHON, REPOSITORY, clean_environment

from mnist_dist.core import UserError, files
from mnist_dist.run import heartbeat_lock, locks

NAME = ".holder.json"


def no_locks(*_, **__):
    """As of NFS without them."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


KINDS = {"no locks": no_locks, "locks that always succeed": lambda *_, **__: True}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short times, and no lock is left behind."""
    monkeypatch.setattr(files, "WARNED", set())
    times = {"BEAT": 0.1, "FRESH": 1.0, "WATCH": 0.5, "MOMENT": 0.01, "REREAD": 0.01}
    for name, seconds in times.items():
        monkeypatch.setattr(heartbeat_lock, name, seconds)
    yield
    locks.let_go()


@pytest.fixture(params=KINDS)
def lockless(request, monkeypatch):
    """A file system whose locks do not hold."""
    monkeypatch.setattr(locks, "lock_descriptor", KINDS[request.param])


def written(folder: Path, **changes) -> dict:
    """The file of another holder."""
    about = {
        "host": "elsewhere",
        "pid": 1,
        "started": time.time(),
        "heartbeat": time.time(),
        "token": "other",
    }
    (folder / NAME).write_text(json.dumps(about | changes))
    return about | changes


@pytest.mark.usefixtures("lockless")
def test_where_locks_do_not_hold_a_run_still_has_one_writer(tmp_path, capsys):
    locks.lock(tmp_path)
    assert f"warning: the file system of {tmp_path} " in capsys.readouterr().err
    assert locks.is_running(tmp_path)
    about = json.loads((tmp_path / NAME).read_text())
    assert about["pid"] == os.getpid() and about["host"] == heartbeat_lock.host()
    with pytest.raises(
        UserError,
        match=rf"another process is writing the run in {tmp_path} \(process {os.getpid()} ",
    ):
        locks.lock(tmp_path)
    time.sleep(0.5)
    later = json.loads((tmp_path / NAME).read_text())
    assert later["heartbeat"] > about["heartbeat"] and later["token"] == about["token"]
    locks.let_go()
    assert not (tmp_path / NAME).exists() and not locks.is_running(tmp_path)
    locks.lock(tmp_path)


@pytest.mark.usefixtures("lockless")
def test_a_job_on_another_node_is_not_disturbed_while_its_heartbeat_is_fresh(tmp_path):
    before = written(tmp_path)
    assert locks.is_running(tmp_path)
    with pytest.raises(
        UserError, match=r"another process is writing the run in .* \(process 1 on elsewhere, says "
    ):
        locks.lock(tmp_path)
    assert json.loads((tmp_path / NAME).read_text()) == before


@pytest.mark.usefixtures("lockless")
@pytest.mark.parametrize(
    "half", [lambda _: b"", lambda whole: whole[:9], lambda whole: whole + b'0"}']
)
def test_a_holder_that_is_just_writing_its_file_is_not_taken_for_dead(half, tmp_path, monkeypatch):
    written(tmp_path)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(half(whole))  # as between its write and its truncation

    def go_on_writing(_):
        if (tmp_path / NAME).read_bytes() == half(whole):
            (tmp_path / NAME).write_bytes(whole)

    monkeypatch.setattr(heartbeat_lock.time, "sleep", go_on_writing)
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        locks.lock(tmp_path)
    assert (tmp_path / NAME).read_bytes() == whole


@pytest.mark.usefixtures("lockless")
def test_a_job_that_left_without_a_word_is_succeeded(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for changes in (
        {"heartbeat": time.time() - 100},
        {"heartbeat": time.time() + 1e6},  # of a clock that was wrong
        {"heartbeat": None},
        {"host": heartbeat_lock.host(), "pid": dead.pid},  # this node knows at once
        {
            "host": heartbeat_lock.host(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time() - 100,
        },
    ):
        written(tmp_path, **changes)
        locks.lock(tmp_path)
        assert json.loads((tmp_path / NAME).read_text())["token"] != "other"
        locks.let_go()
    (tmp_path / NAME).write_text("{")
    locks.lock(tmp_path)


@pytest.mark.usefixtures("lockless")
def test_a_heartbeat_that_goes_on_by_another_clock_is_one(tmp_path, monkeypatch):
    hours = 3600
    written(tmp_path, heartbeat=time.time() - hours)
    monkeypatch.setattr(heartbeat_lock, "WATCH", 5.0)
    sleep = time.sleep

    def while_it_beats(seconds):
        sleep(min(seconds, 0.05))
        written(tmp_path, heartbeat=time.time() - hours)

    monkeypatch.setattr(heartbeat_lock.time, "sleep", while_it_beats)
    with pytest.raises(UserError, match="another process is writing"):
        locks.lock(tmp_path)


@pytest.mark.usefixtures("lockless")
def test_who_was_taken_for_dead_ends(tmp_path, monkeypatch, capsys):
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    locks.lock(tmp_path)
    written(tmp_path)
    time.sleep(0.5)
    assert left and set(left) == {1}
    assert f"process 1 on elsewhere has taken over the run in {tmp_path}" in capsys.readouterr().err
    locks.let_go()
    assert (tmp_path / NAME).exists()  # the other's


def test_where_locks_hold_there_is_no_file_but_on_the_disk_of_several_nodes(
    tmp_path, monkeypatch, capsys
):
    locks.lock(tmp_path)
    assert not list(tmp_path.iterdir())
    locks.let_go()
    mounted = type("Mounted", (), {"mountpoint": str(tmp_path.resolve()), "fstype": "nfs4"})
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [mounted])
    locks.lock(tmp_path)
    assert (tmp_path / NAME).exists() and not capsys.readouterr().err
    locks.let_go()
    written(tmp_path)
    for _ in range(2):  # which leaves no lock behind
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            locks.lock(tmp_path)


@pytest.mark.slow
def test_a_second_training_is_refused_and_the_first_one_ends_well(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, filelock\n"
        "def lock_descriptor(*_, **__):\n"
        "    raise OSError(errno.ENOLCK, 'No locks available')\n"
        "filelock.lock_descriptor = lock_descriptor\n"
    )
    flags = "--dataset mnist-5k --cpu --wandb disabled --no-plots --output-dir".split()
    environment = clean_environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")

    def begin(epochs: str, *more: str) -> subprocess.Popen:
        command = [PYTHON, "train.py", *flags, tmp_path / "run", "--epochs", epochs, *more]
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
        )

    first = begin("100000")
    try:
        while not list(tmp_path.glob("run/checkpoints/step-*")):
            assert first.poll() is None
            time.sleep(0.05)
        second = begin("100000", "--resume")
        _, said = second.communicate(timeout=240)
        assert second.returncode == 1 and "another process is writing the run in " in said
        assert first.poll() is None
        first.terminate()
        _, said = first.communicate(timeout=240)
    finally:
        first.kill()
    assert first.returncode == 75, said
    assert (
        said.count("warning: the file system of ") == 1 and not (tmp_path / "run" / NAME).exists()
    )
