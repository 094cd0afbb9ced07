"""Launchers, wrappers between them and Python, and what they leave in the environment."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PYTHON, REPOSITORY, call, clean_environment, free_port, without

from mnist_dist.core import UserError
from mnist_dist.run import jobs, launch
from mnist_dist.run.environment import check_environment, check_libraries

# A training, as far as its folder goes: dies in its first attempt, and says which run it has.
ATTEMPT = """
import os, sys
from mnist_dist.run import folder, launch
accelerator = launch.start(cpu=True)
run = folder.open_run(None, "name", resume=False)
if accelerator.is_main_process:
    print(f"run {run.folder} resumed {run.resume}", flush=True)
accelerator.wait_for_everyone()
is_to_fail = sys.argv[1:] == ["fails"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
os._exit(3 if is_to_fail else 0)
"""
# What a launcher tells a process, and a launcher that knows nothing of it.
TOLD = {
    "TORCHELASTIC_RUN_ID": "none",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "RANK": "0",
}
NAMES = "from mnist_dist.run.jobs import *; import os; print(os.getpid(), launcher(), worker())"


def attempts(tmp_path: Path, wrapper: str) -> list[str]:
    """What two processes under torchrun, started anew once, say of their runs."""
    (tmp_path / "attempt.py").write_text(ATTEMPT)
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "--no-python"]
    done = call(
        PYTHON,
        "-m",
        "torch.distributed.run",
        *options,
        "bash",
        "-c",
        wrapper,
        cwd=tmp_path,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return re.findall("run (.*)", done.stdout)


@pytest.mark.slow
def test_a_run_that_a_wrapper_starts_goes_on_by_itself(tmp_path):
    first, second = attempts(tmp_path, f"{PYTHON} attempt.py fails; exit $?")
    assert first.endswith("resumed False")
    assert second == first.replace("False", "True")


@pytest.mark.slow
def test_a_run_in_a_namespace_of_processes_goes_on_by_itself(tmp_path):
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode
    ):
        without("no namespace of processes can be made here")
    first, second = attempts(
        tmp_path, f"unshare --pid --fork --mount-proc {PYTHON} attempt.py fails; exit $?"
    )
    assert second == first.replace("False", "True")


@pytest.mark.slow
def test_a_script_that_trains_twice_has_two_runs(tmp_path):
    first, second = attempts(tmp_path, f"{PYTHON} attempt.py && {PYTHON} attempt.py; exit $?")
    assert first != second and first.endswith("resumed False") and second.endswith("resumed False")


def names(*wrapper: str, **environment: str) -> list[str]:
    """The process id, and the names of launcher and worker, of a process below wrappers."""
    environment = clean_environment(PYTHONPATH=str(REPOSITORY)) | TOLD | environment
    done = subprocess.run(
        [*wrapper, PYTHON, "-c", NAMES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_the_launcher_is_looked_for_beyond_wrappers():
    own = jobs.name_of(psutil.Process())
    number, launcher, worker = names()
    assert launcher == own and worker.split(":")[1] == number
    number, launcher, worker = names(
        "bash", "-c", '"$@"; exit $?', "bash", "sh", "-c", '"$@"; exit $?', "sh"
    )
    assert launcher == own and worker.split(":")[1] != number
    # A launcher below another launcher is not taken for a wrapper.
    inner = 'MASTER_PORT=3 exec -a python bash -c \'"$@"; exit $?\' bash "$@"'
    _, launcher, _ = names(
        "bash", "-c", f"{inner.replace('MASTER_PORT=3 ', '')}", "bash", "env", "MASTER_PORT=3"
    )
    assert launcher != own


def test_out_of_sight_the_launcher_is_known_by_its_folder(monkeypatch):
    # As of the first process in a container.
    monkeypatch.setattr(psutil.Process, "parent", lambda _: None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv(
        "TORCHELASTIC_ERROR_FILE", "/tmp/torchelastic_x/none_y/attempt_1/0/error.json"
    )
    assert jobs.launcher() == "/tmp/torchelastic_x/none_y"
    assert jobs.worker() == jobs.name_of(psutil.Process())
    assert not launch.no_agent_can_join()
    monkeypatch.setenv("PET_NNODES", "1:2")
    assert launch.no_agent_can_join()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    assert jobs.launcher() is None


# mpirun and its kin.

MPI = {
    "Open MPI": {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    },
    "Open MPI with an address": {
        "OMPI_COMM_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    },
    "MPICH": {"PMI_SIZE": "2", "PMI_RANK": "1"},
    "Intel MPI": {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"},
    "MVAPICH": {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "0"},
    "no number that can be read": {"PMI_SIZE": "two"},
    "a rank": {"PMI_RANK": "1"},
    "a rank of PMIx": {"PMIX_RANK": "1"},
    "the first of PMIx": {"PMIX_RANK": "0"},
    "a rank that belies the size": {"PMI_SIZE": "1", "MPI_LOCALRANKID": "3"},
    "another WORLD_SIZE": {"PMI_SIZE": "2", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": "0"}
    | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}


@pytest.mark.parametrize("environment", MPI.values(), ids=MPI)
def test_processes_that_do_not_know_of_each_other_are_refused(environment):
    with pytest.raises(UserError, match=r"a launcher|another launcher") as refused:
        check_environment(environment)
    sentence = str(refused.value)
    assert "start through torchrun, or set RANK, LOCAL_RANK, WORLD_SIZE" in sentence
    assert any(f"({name} is {value})" in sentence for name, value in environment.items())


def test_a_task_of_srun_is_refused_whose_number_is_all_it_knows():
    with pytest.raises(
        UserError, match=r"srun started this as task 1, .*submit slurm/train\.sbatch"
    ):
        check_environment({"SLURM_PROCID": "1"})
    with pytest.raises(UserError, match="srun started 2 tasks"):
        check_environment({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "2"})


def test_one_process_of_mpirun_and_processes_that_were_told_are_welcome():
    assert (
        check_environment(
            {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}
        )
        == 1
    )
    assert check_environment({"SLURM_PROCID": "0"}) == 1  # of a batch script, without srun
    told = TOLD | {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert check_environment(told | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}) == 2
    # torchrun on each of two nodes, started by mpirun.
    assert (
        check_environment(told | {"WORLD_SIZE": "8", "PMI_SIZE": "2", "PMI_RANK": "1", "RANK": "5"})
        == 8
    )


@pytest.mark.slow
def test_under_mpirun_each_process_says_so(tmp_path):
    for rank in range(2):
        variables: dict[str, Any] = {
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(rank),
            "MASTER_ADDR": "localhost",
        }
        done = call(
            PYTHON,
            "train.py",
            "--dataset",
            "mnist-5k",
            "--cpu",
            "--output-dir",
            tmp_path / "run",
            **variables,
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(
            "train.py: error: mpirun or another launcher started several processes (OMPI_"
        )
    assert not (tmp_path / "run").exists()


BARE = (
    "from mnist_dist.core import ExactAccelerator; print(ExactAccelerator(cpu=CPU).num_processes)"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "cpu"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "True"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "False"),
        ({"PMIX_RANK": "1", "MASTER_ADDR": "localhost"}, "True"),
    ],
)
def test_an_accelerator_in_any_script_says_so_too(environment, cpu):
    done = call(PYTHON, "-c", BARE.replace("CPU", cpu), **environment)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(
        "mnist_dist.core.errors.UserError: mpirun or another launcher started "
    ), done.stderr
    assert "so each would train its own model: start through torchrun, or set RANK" in last


@pytest.mark.slow
def test_an_accelerator_in_any_script_may_be_alone_under_mpirun():
    alone: dict[str, Any] = {
        "OMPI_COMM_WORLD_SIZE": "1",
        "OMPI_COMM_WORLD_RANK": "0",
        "PMIX_RANK": "0",
    }
    done = call(PYTHON, "-c", BARE.replace("CPU", "True"), **alone)
    assert done.returncode == 0 and done.stdout == "1\n", done.stderr


# What stands in the way of the processes' meeting.


@pytest.mark.parametrize("threads", ["4,2", "", "many", "-1"])
def test_threads_that_accelerate_cannot_read_are_named(threads):
    with pytest.raises(UserError, match=rf"^OMP_NUM_THREADS='{threads}' is not one whole number"):
        check_libraries({"OMP_NUM_THREADS": threads}, [])


def test_a_network_interface_that_is_not_there_is_named():
    sentence = rf"^GLOO_SOCKET_IFNAME=nonsense names no network interface of {platform.node()}, which has eth0, lo: "
    with pytest.raises(UserError, match=sentence):
        check_libraries({"GLOO_SOCKET_IFNAME": "nonsense"}, ["lo", "eth0"])
    check_libraries({"GLOO_SOCKET_IFNAME": "lo,eth0", "OMP_NUM_THREADS": "4"}, ["lo", "eth0"])
    check_libraries({"GLOO_SOCKET_IFNAME": ""}, ["lo"])


def test_accelerates_variables_are_named_where_there_are_any(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    assert "ACCELERATE_" not in launch.why_not(ValueError("invalid literal"))
    assert "(ValueError)" in launch.why_not(ValueError())
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "bogus")
    assert "begin with ACCELERATE_ (ACCELERATE_TORCH_DEVICE), " in launch.why_not(
        RuntimeError("no device")
    )
    assert "ACCELERATE_" not in launch.why_not(RuntimeError("[gloo] no address"))


@pytest.mark.slow
def test_a_process_says_itself_what_its_nodes_first_has_not_met(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('LOCAL_RANK') == '1': os.environ['GLOO_SOCKET_IFNAME'] = 'nonsense'\n"
    )
    port = free_port()
    running = []
    for rank in ("0", "1"):
        told = TOLD | {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_PORT": str(port),
        }
        environment = clean_environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}") | told
        command = [
            PYTHON,
            "train.py",
            "--dataset",
            "mnist-5k",
            "--cpu",
            "--output-dir",
            tmp_path / "run",
        ]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
    try:
        _, said = running[1].communicate(timeout=240)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert running[1].returncode == 1
    assert said.startswith(
        f"[rank 1 on {platform.node()}]: train.py: error: GLOO_SOCKET_IFNAME=nonsense names no"
    )
