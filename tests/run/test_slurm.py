"""The batch scripts as shipped, but for the block at their top, on a real Slurm of two nodes on this machine."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PYTHON, REPOSITORY, call, torchrun, weight_difference, weights_of, without

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from fault_injection import result

pytestmark = pytest.mark.slow
BLOCK = f"""#SBATCH --partition=test
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00
export PATH={Path(PYTHON).parent}:$PATH
"""
SCRIPTS = sorted(REPOSITORY.glob("slurm/*"))
FLAGS = "--dataset mnist-5k --wandb disabled".split()
FAULT_FLAGS = [
    *FLAGS,
    *"--epochs 2 --batch-size 6 --checkpoint-every 20 --val-size 100 --affine 1".split(),
]
ENDLESS = [*FLAGS, *"--epochs 100000 --checkpoint-every 50".split()]


def until(condition: Callable[[], object], seconds: float, what: Callable[[], object]) -> None:
    """Wait for a condition; `what` says what there was instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


class Cluster:
    """A running cluster, and a folder with the program and the edited batch scripts to submit from."""

    def __init__(self, state: Path, folder: Path) -> None:
        self.state, self.folder = state, folder

    def command(self, *words: str | Path, check: bool = True) -> str:
        """What a command of Slurm's says."""
        done = call(*words, cwd=self.folder, timeout=60, SLURM_CONF=str(self.state / "slurm.conf"))
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, *flags: str | Path, options: Sequence[str] = ()) -> str:
        """Submit a script of slurm/ and return the job's number."""
        return self.command("sbatch", "--parsable", *options, f"slurm/{script}", *flags).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        lines = self.command("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\w+)=(\S*)", lines))

    def log(self, number: str) -> str:
        """What a job has printed."""
        file = self.folder / f"slurm-{number}.out"
        return file.read_text() if file.exists() else ""

    def run(self, number: str) -> Path:
        """The folder of a job's run."""
        return self.folder / "runs" / f"slurm-{number}"

    def processes(self, number: str) -> list[tuple[psutil.Process, dict[str, str]]]:
        """What runs for a job on any node, each with its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                variables = process.environ()
                if variables.get("SLURM_JOB_ID") == number:
                    found.append((process, variables))
        return found

    def begun(self, number: str) -> None:
        """Wait until a job has its first checkpoint."""
        until(
            lambda: list(self.run(number).glob("checkpoints/step-*")), 90, lambda: self.log(number)
        )

    def end(self, number: str, seconds: float = 120) -> dict[str, str]:
        """Wait for a job's end, and return what Slurm then knows of it."""

        def ended() -> bool:
            return self.job(number)["JobState"] not in (
                "PENDING",
                "RUNNING",
                "COMPLETING",
                "CONFIGURING",
            )

        until(ended, seconds, lambda: (self.job(number), self.log(number)))
        return self.job(number)

    def succeeded(self, number: str) -> dict[str, str]:
        """Wait for a job's end, which must be a good one."""
        job = self.end(number)
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), (job, self.log(number))
        return job


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        without("root and the Debian packages slurm-wlm and munge are needed")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("train.py", "evaluate.py"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "mnist_dist", folder / "mnist_dist")
    (folder / "slurm").mkdir()
    for script in SCRIPTS:
        text = script.read_text()
        edited, blocks = re.subn(
            r"(?s)(# ---- Edit this block -+\n).*(# ---- End of the block -+\n)",
            rf"\1{BLOCK}\2",
            text,
        )
        assert blocks == (script.suffix == ".sbatch")
        (folder / "slurm" / script.name).write_text(edited)
    state = folder / "cluster"
    program = Path(__file__).with_name("slurm_cluster.sh")
    subprocess.run([program, "start", state], check=True)
    yield Cluster(state, folder)
    subprocess.run([program, "stop", state], check=True)


@pytest.fixture
def cluster(nodes):
    yield nodes
    # What a test that failed left behind would slow the others.
    nodes.command("scancel", "--user=root")
    until(lambda: not nodes.command("squeue", "--noheader"), 60, lambda: nodes.command("squeue"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run on two processes that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = torchrun(2, "train.py", *FAULT_FLAGS, "--output-dir", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize(
    "script", [*SCRIPTS, Path(__file__).with_name("slurm_cluster.sh")], ids=lambda path: path.name
)
def test_the_shell_is_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    if not shutil.which("shellcheck"):
        without("the Debian package shellcheck is needed")
    done = subprocess.run(
        ["shellcheck", "-x", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name
)
def test_from_another_folder_or_without_the_environment_nothing_runs(script, tmp_path):
    """As shipped, the block included, by bash alone."""
    elsewhere = call("bash", script, cwd=tmp_path)
    assert (elsewhere.returncode, elsewhere.stdout) == (2, "")
    assert elsewhere.stderr == f"submit from the repository's folder, not from {tmp_path}\n"
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "common.sh").write_text("echo it ran; ranks() { :; }; train() { :; }")
    without_it = call("bash", script, cwd=tmp_path)
    assert (without_it.returncode, without_it.stdout) == (
        1,
        "",
    ) and ".venv/bin/activate: No such" in without_it.stderr
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    assert (
        call("bash", script, cwd=tmp_path, SLURM_ARRAY_TASK_ID="0", SLURM_NTASKS="1").stdout
        == "it ran\n"
    )


def test_a_python_without_torch_is_named_once(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {PYTHON} -I -S "$@"\n')
    python.chmod(0o755)
    variables: dict[str, Any] = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS_PER_NODE": "1",
    }
    done = call("bash", "-c", "source slurm/common.sh; echo it ran", **variables)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(
        f"{python} has no torch: activate"
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run of one process, in float64."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = call(
        PYTHON, "train.py", *FLAGS, "--epochs", "1", "--dtype", "float64", "--output-dir", run
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_two_nodes_train_and_evaluate_the_model_of_one_process(cluster, alone, ranks_per_node):
    options = [f"--ntasks-per-node={ranks_per_node}"]
    flags = "--dataset mnist-5k --epochs 1 --dtype float64".split()
    training = cluster.submit("train.sbatch", *flags, options=options)
    options.append(f"--dependency=afterok:{training}")
    evaluation = cluster.submit("evaluate.sbatch", f"runs/slurm-{training}", options=options)
    cluster.succeeded(training)
    cluster.succeeded(evaluation)
    run = cluster.run(training)
    assert weight_difference(run, alone) < 1e-9
    summary = json.loads((run / "summary.json").read_text())
    evaluated = json.loads((run / "evaluation.json").read_text())
    assert summary["num_processes"] == evaluated["num_processes"] == 2 * ranks_per_node
    assert evaluated["total"] == 1000 and evaluated["correct"] == summary["test_correct"]
    # One readable log: one rank speaks, and the last lines say how to send what W&B has offline.
    log = cluster.log(training).splitlines()
    assert len(log) == 12, log
    assert log[-1].startswith("Test Accuracy: ")
    assert log[-7] == "Weights & Biases has this run offline; send it with:"
    place = re.fullmatch(r"wandb sync (\S+)", log[-6])
    assert place and list((cluster.folder / place[1]).glob("run-*.wandb"))


def test_verify_compares_the_nodes(cluster):
    number = cluster.submit("verify.sbatch", "--dataset", "mnist-5k", "--json", "answer.json")
    cluster.end(number)
    answer = json.loads((cluster.folder / "answer.json").read_text())
    assert [process["rank"] for process in answer["processes"]] == [0, 1]
    failed = {check["name"] for check in answer["checks"] if not check["passed"]}
    # The nodes share two cores with other tests.
    assert failed <= {"speed of each process"}, cluster.log(number)


def test_requeued_by_the_administrator_in_mid_epoch_it_goes_on_to_the_same_bits(cluster, whole):
    number = cluster.submit("train.sbatch", *FAULT_FLAGS)
    cluster.begun(number)
    cluster.command("scontrol", "requeue", number)
    job = cluster.succeeded(number)
    assert job["Restarts"] == "1"
    (update,) = re.findall(r"resuming from update (\d+) ", cluster.log(number))
    assert int(update) % 650, "stopped between two epochs of 650 updates"
    assert result(cluster.run(number)) == result(whole)


def test_where_a_node_is_lost_the_job_is_requeued_and_goes_on_to_the_same_bits(cluster, whole):
    number = cluster.submit("train.sbatch", *FAULT_FLAGS)
    cluster.begun(number)
    lost = [int((cluster.state / "slurmd-n2.pid").read_text())]
    for process, variables in cluster.processes(number):
        if variables.get("SLURMD_NODENAME") == "n2":
            lost += [process.ppid(), process.pid]
    assert len(lost) > 1
    for pid in lost:
        os.kill(pid, signal.SIGKILL)
    try:
        until(
            lambda: cluster.job(number)["JobState"] == "PENDING", 150, lambda: cluster.log(number)
        )
        assert "process 0 lost the connection to another" in cluster.log(number)
    finally:
        subprocess.run(
            [Path(__file__).with_name("slurm_cluster.sh"), "node", cluster.state, "n2"], check=True
        )
    assert cluster.succeeded(number)["Restarts"] == "1"
    assert "resuming from update " in cluster.log(number)
    assert result(cluster.run(number)) == result(whole)


def test_requeued_with_fewer_nodes_a_script_of_two_trainings_goes_on_by_itself(cluster, tmp_path):
    """They name no folder: each of the two finds its own run, and the first is finished."""
    flags = [
        *FLAGS,
        *"--epochs 1 --batch-size 8 --checkpoint-every 20 --affine 1 --dtype float64".split(),
    ]
    second = [*flags, "--seed", "1"]
    done = call(PYTHON, "train.py", *second, "--output-dir", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    trainings = "".join(f"ranks train.py {' '.join(each)}\n" for each in (flags, second))
    script = f"#!/usr/bin/env bash\n{BLOCK}set -e\nsource slurm/common.sh\n{trainings}"
    (cluster.folder / "slurm" / "own.sbatch").write_text(script)
    before = set(cluster.folder.glob("runs/*"))

    def runs() -> list[Path]:
        return sorted(set(cluster.folder.glob("runs/2*")) - before)

    def second_has_begun() -> bool:
        return len(runs()) == 2 and any(runs()[1].glob("checkpoints/step-*"))

    number = cluster.submit("own.sbatch", options=["--requeue", "--open-mode=append"])
    until(second_has_begun, 120, lambda: cluster.log(number))
    cluster.command("scontrol", "requeuehold", number)
    until(lambda: cluster.job(number)["JobState"] == "PENDING", 60, lambda: cluster.log(number))
    first_run, second_run = runs()
    of_first = (first_run / "mnist_model.pth").read_bytes()
    assert not (second_run / "summary.json").exists()
    cluster.command("scontrol", "update", f"JobId={number}", "NumNodes=1-1", "NumTasks=1")
    cluster.command("scontrol", "release", number)
    assert cluster.succeeded(number)["Restarts"] == "1"
    assert "resuming from update " in cluster.log(number)
    assert runs() == [first_run, second_run]
    assert (first_run / "mnist_model.pth").read_bytes() == of_first
    assert json.loads((second_run / "config.json").read_text())["seed"] == 1
    assert json.loads((second_run / "summary.json").read_text())["num_processes"] == 1
    assert weight_difference(second_run, tmp_path / "alone") < 1e-9


def test_before_the_time_limit_it_stops_and_requeues_itself_and_scancel_ends_it_for_good(cluster):
    """Slurm looks at time limits every half a minute, and sends the signal up to a minute early."""
    number = cluster.submit("train.sbatch", *ENDLESS, options=["--time=1", "--signal=USR1@10"])
    until(lambda: "resuming from update " in cluster.log(number), 150, lambda: cluster.log(number))
    log = cluster.log(number)
    assert (
        log.count("stopped on request at update ") == 1
        and f"job {number}: stopped on request and requeued" in log
    )
    assert "TIME LIMIT" not in log  # it left by itself
    before = max(place.name for place in cluster.run(number).glob("checkpoints/step-*"))
    cluster.command("scancel", number)
    assert cluster.end(number)["JobState"] == "CANCELLED"
    time.sleep(8)  # a requeued job would be back by now
    job, log = cluster.job(number), cluster.log(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "1")
    assert log.count("stopped on request and requeued") == 1
    assert max(place.name for place in cluster.run(number).glob("checkpoints/step-*")) >= before
    assert not (cluster.run(number) / "summary.json").exists()


def test_stopped_twice_in_a_row_without_progress_it_is_not_requeued_and_its_status_says_stopped(
    cluster,
):
    number = cluster.submit("train.sbatch", *ENDLESS)

    def ranks() -> int:
        return sum("SLURM_STEP_ID" in variables for _, variables in cluster.processes(number))

    for _ in range(2):
        # They have seconds to go before their first update. Before they are there, Slurm would lose the signal.
        until(lambda: ranks() >= 2, 60, lambda: cluster.log(number))
        cluster.command("scancel", "--signal=USR1", number)
        until(lambda: ranks() == 0, 60, lambda: cluster.log(number))
    job = cluster.end(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "75:0"), cluster.log(number)
    assert "stopped twice in a row without a new checkpoint, so it is not requeued" in cluster.log(
        number
    )


def test_a_failed_job_says_so_in_its_state_and_is_not_requeued(cluster):
    number = cluster.submit("train.sbatch", *FLAGS, "--lr", "nan")
    job = cluster.end(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), (
        cluster.log(number)
    )
    assert cluster.log(number).count("train.py: error: --lr nan is not possible") == 2  # one a node
    assert not list(cluster.run(number).glob("*.json"))


def test_an_array_trains_a_model_per_seed_and_a_task_that_stops_takes_no_other_with_it(cluster):
    flags = [*FLAGS, "--epochs", "40"]
    number = cluster.submit("array.sbatch", *flags, options=["--nodes=1", "--array=0-3"])
    running = ("squeue", "--noheader", "--states=RUNNING", "--job", number)
    until(
        lambda: len(cluster.command(*running).splitlines()) == 4,
        30,
        lambda: cluster.command(*running),
    )
    # One task bears the number of the whole array.
    (own,) = [task for task in range(4) if cluster.job(f"{number}_{task}")["JobId"] == number]
    cluster.begun(f"{number}_{own}")
    cluster.command("scancel", "--signal=USR1", f"{number}_{own}")
    weights = {}
    for task in range(4):
        name = f"{number}_{task}"
        assert cluster.succeeded(name)["Restarts"] == str(int(task == own))
        assert json.loads((cluster.run(name) / "config.json").read_text())["seed"] == task
        weights[task] = weights_of(cluster.run(name))["fc3.bias"].tolist()
    assert len(set(map(tuple, weights.values()))) == 4


def test_a_folder_that_all_tasks_of_an_array_would_share_is_refused(cluster):
    number = cluster.submit(
        "array.sbatch", *FLAGS, "--output-dir", "mine", options=["--nodes=1", "--array=0-0"]
    )
    job = cluster.end(f"{number}_0")
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert "--output-dir mine would be shared by all tasks of the array" in cluster.log(
        f"{number}_0"
    )


def test_the_tasks_of_an_array_make_the_trials_of_one_study_and_where_one_is_killed_the_others_make_up_for_it(
    cluster,
):
    flags = "--dataset mnist-5k --val-size 1000 --epochs 5 --search lr --trials 12".split()
    number = cluster.submit("tune.sbatch", *flags, options=["--nodes=1", "--array=0-1"])
    journal = cluster.folder / "runs" / "tune" / "journal.jsonl"
    epochs = '"op_code":7'  # an accuracy reported
    until(
        lambda: journal.exists() and journal.read_text().count(epochs) > 10,
        90,
        lambda: cluster.log(f"{number}_0"),
    )
    cluster.command("scancel", "--signal=KILL", f"{number}_1")
    cluster.end(f"{number}_1")
    cluster.succeeded(f"{number}_0")
    assert "mnist-5k: 12 trials" in cluster.log(f"{number}_0")
    again = cluster.submit("tune.sbatch", *flags, options=["--nodes=1", "--array=0-0"])
    cluster.succeeded(f"{again}_0")
    assert cluster.log(f"{again}_0").startswith("mnist-5k: 12 trials")
