"""Promise 3 where nodes come and go: a run belongs to its job, and whoever of it is left makes it go on."""

import fcntl
import json
import os
import re
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import psutil
import pytest
from conftest import PYTHON, REPOSITORY, call, free_port

from mnist_dist.core import UserError
from mnist_dist.run import folder, jobs, launch, locks, rendezvous

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from elastic_agents import ElasticRun

FLAGS = "--dataset mnist-5k --cpu --wandb disabled --epochs 100000 --batch-size 50 --checkpoint-every 20".split()
SLURM = {"slurm_job": "here:7", "slurm_step": "0", "slurm_restarts": 0}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A function that notes a job in the config.json of a run in runs/, and this process under a launcher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    def note(job: object, name: str = "begun", command: object = None) -> None:
        (tmp_path / "runs" / name).mkdir(parents=True)
        if isinstance(job, dict):
            job = job | {"command": command or sys.argv}
        (tmp_path / "runs" / name / "config.json").write_text(
            json.dumps({"job": job, "wandb_id": "abc"})
        )

    return note


def requeued(monkeypatch, times: int, step: str = "0") -> None:
    """Put this process into a Slurm job."""
    for name, value in {
        "JOB_ID": "7",
        "CLUSTER_NAME": "here",
        "STEP_ID": step,
        "RESTART_COUNT": times,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.parametrize("asked_for", [folder.ROOT / "begun", None])
def test_a_run_goes_on_by_itself_where_one_launcher_of_its_last_attempt_is_left(begun, asked_for):
    begun({"launchers": ["elsewhere:1:2.00", jobs.launcher()]})
    run = folder.open_run(asked_for, "name", resume=False)
    assert (run.folder, run.resume, run.wandb_id) == (folder.ROOT / "begun", True, "abc")
    # Noted at once, so that an attempt that ends before its first update hands the run on, too.
    noted = folder.settings_of(run.folder)
    assert (
        noted["job"] == run.job
        and run.job["launchers"] == [jobs.launcher()]
        and noted["wandb_id"] == "abc"
    )


@pytest.mark.parametrize("asked_for", [folder.ROOT / "begun", None])
def test_a_run_goes_on_by_itself_where_slurm_has_requeued_its_job(begun, asked_for, monkeypatch):
    begun({"launchers": ["elsewhere:1:2.00"]} | SLURM)
    requeued(monkeypatch, 1, step="1")
    run = folder.open_run(asked_for, "name", resume=False)
    assert (run.folder, run.resume) == (folder.ROOT / "begun", True)


def test_of_the_runs_that_a_requeued_script_has_begun_each_step_finds_its_own(begun, monkeypatch):
    for step in ("0", "1", "2"):
        begun({"launchers": []} | SLURM | {"slurm_step": step}, name=f"step-{step}")
    requeued(monkeypatch, 1, step="1")
    assert folder.open_run(None, "name", resume=False).folder == folder.ROOT / "step-1"


@pytest.fixture
def looped(begun, monkeypatch):
    """A requeued script that trains with several seeds, stopped in the last; and a function that is one of its turns.

    The function takes a command line, and returns the run that this training is.
    """
    for seed in range(3):
        name = f"20261130-12000{seed}-name"
        begun({"launchers": []} | SLURM, name=name, command=["train.py", "--seed", str(seed)])
        (folder.ROOT / name / "checkpoints" / "step-0000000020").mkdir(parents=True)
        if seed < 2:
            (folder.ROOT / name / "summary.json").touch()
    requeued(monkeypatch, 1)

    def turn(*command: str) -> folder.Run:
        monkeypatch.setattr(sys, "argv", list(command))
        run = folder.open_run(None, "name", resume=False)
        locks.let_go()  # as this training ends
        return run

    return turn


def test_of_the_runs_of_a_requeued_script_each_command_line_finds_its_own(looped):
    for seed in range(3):
        run = looped("train.py", "--seed", str(seed))
        assert (run.folder, run.resume) == (folder.ROOT / f"20261130-12000{seed}-name", True)
    # They belong to this attempt now, in which the next training is a run of its own.
    assert not looped("train.py", "--seed", "2").resume


def test_with_another_command_line_only_a_run_that_is_not_finished_may_be_the_one(looped):
    stopped = folder.ROOT / "20261130-120002-name"
    before = (stopped / "config.json").read_bytes()
    run = looped("train.py", "--seed", "2", "--batch-size", "128")
    assert (run.folder, run.resume) == (stopped, True)
    # It is another training's still, as long as its checkpoint has not been compared.
    assert (stopped / "config.json").read_bytes() == before

    class Unlike:
        def resume(self):
            raise UserError("--seed is 3, but the run was trained with 2")

    checkpoints: Any = Unlike()
    loader: Any = None
    with pytest.raises(UserError, match=r"with 2; this job has .* of its own with --output-dir"):
        folder.restore_run(run, checkpoints, loader, epochs=1)
    (stopped / "summary.json").touch()
    assert not looped("train.py", "--seed", "3").resume


@pytest.mark.parametrize("unlike", ["another model", "a name that was chosen", "no checkpoint"])
def test_what_cannot_be_the_run_is_not_resumed(looped, unlike):
    stopped = folder.ROOT / "20261130-120002-name"
    if unlike == "no checkpoint":
        (stopped / "checkpoints" / "step-0000000020").rmdir()
    else:
        name = "20261130-120002-other-name" if unlike == "another model" else "name"
        stopped.rename(folder.ROOT / name)
    assert not looped("train.py", "--seed", "3").resume


def test_where_several_runs_may_be_the_one_a_folder_for_each_is_asked_for(looped):
    (folder.ROOT / "20261130-120001-name" / "summary.json").unlink()
    complaint = r"\(runs/20261130-120001-name, runs/20261130-120002-name\), none of them with this"
    with pytest.raises(UserError, match=complaint):
        looped("train.py", "--seed", "3")
    assert looped("train.py", "--seed", "1").folder == folder.ROOT / "20261130-120001-name"


def test_of_the_same_training_done_again_and_again_none_is_done_twice(begun, monkeypatch):
    for number in range(3):
        begun({"launchers": []} | SLURM, name=f"20261130-12000{number}-name")
        if number != 1:
            (folder.ROOT / f"20261130-12000{number}-name" / "summary.json").touch()
    requeued(monkeypatch, 1)
    found = []
    for _ in range(3):
        found.append(folder.open_run(None, "name", resume=False).folder.name)
        locks.let_go()
    assert found == ["20261130-120001-name", "20261130-120002-name", "20261130-120000-name"]


def launcher_here() -> str:
    """The launcher of this process."""
    launcher = jobs.launcher()
    assert launcher is not None
    return launcher


def of_another_start() -> str:
    """A launcher with this one's process id, before that was used again."""
    time_of = psutil.Process.create_time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil.Process, "create_time", lambda process: time_of(process) - 5)
        return launcher_here()


@pytest.mark.parametrize(
    "job",
    [
        lambda: {"launchers": [of_another_start()]},
        lambda: {"launchers": ["elsewhere:" + launcher_here().split(":", 1)[1]]},
        lambda: {"launchers": [None]},
        # A second training in the same attempt.
        lambda: {"launchers": 3} | SLURM | {"slurm_restarts": 1},
        lambda: {"launchers": []} | SLURM | {"slurm_job": "here:8"},
        lambda: {"launchers": []} | SLURM | {"slurm_restarts": "0"},
        lambda: 3,
        lambda: None,
    ],
)
def test_the_run_of_another_job_is_refused(begun, job, monkeypatch):
    begun(job())
    requeued(monkeypatch, 1)
    before = (folder.ROOT / "begun" / "config.json").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        folder.open_run(folder.ROOT / "begun", "name", resume=False)
    run = folder.open_run(None, "name", resume=False)
    assert run.folder.name.endswith("-name") and not run.resume
    # It is another's still, if somebody asks to resume it and that fails.
    assert folder.open_run(folder.ROOT / "begun", "name", resume=True).resume
    assert (folder.ROOT / "begun" / "config.json").read_bytes() == before


def test_the_attempt_before_is_waited_for(begun):
    begun({"launchers": [jobs.launcher()]})
    held = os.open(folder.ROOT / "begun", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [held]).start()
    assert folder.open_run(None, "name", resume=False).resume
    with pytest.raises(UserError, match="another process is writing the run"):
        locks.lock(folder.ROOT / "begun")


def test_that_no_agent_can_join_is_known_where_their_number_may_change(monkeypatch):
    for store, nodes, answer in [
        ("True", "1:2", True),
        ("False", "1:2", False),
        ("True", "2:2", False),
        ("True", "2", False),
    ]:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", store)
        monkeypatch.setenv("PET_NNODES", nodes)
        assert launch.no_agent_can_join() == answer


@pytest.fixture
def agents(tmp_path):
    """A function that makes an elastic run, whose agents end with the test."""
    runs = []

    def make(*options, **more):
        runs.append(ElasticRun(tmp_path, *options, **more))
        return runs[-1]

    yield make
    for run in runs:
        for address in list(run.agents):
            run.kill(address)


@pytest.mark.slow
def test_nodes_join_and_the_first_is_lost_and_the_run_in_the_default_folder_goes_on(
    agents, tmp_path
):
    run = agents(FLAGS, nodes="1:3", restarts=1)
    run.start("127.0.0.2")
    # It notices later than others that a node has joined.
    run.start("127.0.0.3", "--monitor-interval=1.5")
    assert run.train_together(), run.logs()
    run.start("127.0.0.1")  # it is the first from here on, and knows nothing of the run
    assert run.train_together(), run.logs()
    # No update was lost, and no agent has counted as a failure what it, or another, ended for the new one.
    (stopped,) = re.findall(r"stopped on request at update (\d+),", run.logs())
    assert f"resuming from update {stopped} " in run.logs()
    counts = [
        process.environ()["TORCHELASTIC_RESTART_COUNT"]
        for a in run.agents
        for process in run.processes(a)
    ]
    assert counts == ["0", "0", "0"]
    run.kill("127.0.0.1")
    assert run.train_together(), run.logs()
    assert (
        len(list(tmp_path.glob("runs/*"))) == 1 and run.logs().count("resuming from update ") == 2
    )
    assert "DistStoreError" not in run.logs() and "warning" not in run.logs()


@pytest.mark.slow
def test_where_the_node_of_the_rendezvous_is_lost_the_same_commands_with_resume_go_on(
    agents, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")
    flags = [*FLAGS, "--output-dir", "run"]
    port = free_port()
    run = agents(flags, nodes="2:3", restarts=3, endpoint=f"127.0.0.1:{port}")
    run.start("127.0.0.1")
    # On one machine the agent that is first there is host.
    rendezvous.reach("127.0.0.1", port, timedelta(seconds=60))
    run.start("127.0.0.2")
    assert run.train_together(), run.logs()
    assert run.logs().count("torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1") == 1
    run.kill("127.0.0.1")
    until_ended = time.monotonic() + 90
    while not run.ended():
        assert time.monotonic() < until_ended, run.logs()
        time.sleep(0.1)
    refused = call(PYTHON, REPOSITORY / "train.py", *flags, cwd=tmp_path)
    assert refused.returncode == 1 and "already holds a run" in refused.stderr
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
    again = agents([*flags, "--resume"], restarts=3, endpoint=f"127.0.0.1:{free_port()}")
    again.start("127.0.0.1")
    again.start("127.0.0.2")
    assert again.train_together(), again.logs()
    assert again.logs().count("resuming from update ") == 1
