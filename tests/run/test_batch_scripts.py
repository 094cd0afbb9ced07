"""What the batch scripts share, in bash alone: beside it only stand-ins for Slurm's commands."""

import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1",
    "SLURMD_NODENAME": "n1",
}
COMMANDS = {
    # It has a torch, and a number for a port.
    "python": "echo 1",
    "srun": "exit 75",  # the ranks were asked to stop
    "sleep": "",
    "scontrol": '[[ $1 != show ]] || echo " NodeAddr=here "; echo "$@" >>scontrol.log',
}


@pytest.fixture
def submit(tmp_path):
    """A function that does what the batch script of a job does that is asked to stop."""

    def run(squeue: str, **variables: str) -> subprocess.CompletedProcess[str]:
        for name, text in (COMMANDS | {"squeue": squeue}).items():
            program = tmp_path / name
            program.write_text(f"#!/usr/bin/env bash\n{text}\n")
            program.chmod(0o755)
        environment = clean_environment(**JOB) | variables
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
        script = f"set -euo pipefail; source {REPOSITORY}/slurm/common.sh; train --epochs 1"
        return subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def was_requeued(folder: Path) -> bool:
    """Tell whether Slurm was asked to requeue the job."""
    return "requeue 7\n" in (folder / "scontrol.log").read_text()


def test_a_job_whose_first_start_was_cut_short_is_requeued(submit, tmp_path):
    done = submit("echo RUNNING", SLURM_RESTART_COUNT="1")
    assert (done.returncode, done.stderr) == (75, "") and was_requeued(tmp_path)
    assert (tmp_path / "runs/slurm-7/slurm_progress").read_text() == "step-* 1\n"
    done = submit("echo RUNNING", SLURM_RESTART_COUNT="2")
    assert done.returncode == 75 and "stopped twice in a row without" in done.stderr


def test_a_slurm_that_does_not_answer_for_a_moment_is_asked_again(submit, tmp_path):
    done = submit("echo try >>tries; (($(wc -l <tries) == 3)) && echo RUNNING")
    assert (done.returncode, done.stderr) == (75, "") and was_requeued(tmp_path)


def test_where_slurm_does_not_answer_at_all_it_says_how_to_resume(submit, tmp_path):
    done = submit("exit 1")
    assert done.returncode == 75 and not was_requeued(tmp_path)
    assert done.stderr == (
        "job 7: stopped on request, but not requeued, because squeue failed: submit the same with "
        "--output-dir runs/slurm-7 to resume\n"
    )


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_job_that_was_cancelled_is_not_requeued(submit, tmp_path, state):
    done = submit(f"echo {state}")
    assert (done.returncode, done.stderr) == (75, "") and not was_requeued(tmp_path)
