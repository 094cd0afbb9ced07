"""Promise 4: python, accelerate launch and torchrun run the same code path; and nobody trains alone by mistake."""

import json
import subprocess

import pytest
import torch
from conftest import (
    ACCELERATE,
    PYTHON,
    REPOSITORY,
    call,
    checkpoint_of,
    clean_environment,
    driver,
    free_port,
    weight_difference,
)

from mnist_dist.core import UserError
from mnist_dist.run import devices, launch
from mnist_dist.run.launch import check_environment

FLAGS = "--dataset mnist-5k --val-size 3000 --epochs 1 --dtype float64 --wandb disabled --output-dir".split()


def test_every_launcher_trains_the_same_model(tmp_path):
    started = {
        "python": call(PYTHON, "train.py", *FLAGS, tmp_path / "python"),
        "accelerate": call(*ACCELERATE[:4], "train.py", *FLAGS, tmp_path / "accelerate"),
        "two": call(*ACCELERATE, "--num_processes", "2", "train.py", *FLAGS, tmp_path / "two"),
        "torchrun": driver(
            2, [(["--cpu", *FLAGS, tmp_path / "torchrun"], None)], record=str(tmp_path)
        ),
    }
    for name, done in started.items():
        assert done.returncode == 0, (name, done.stderr)
        assert done.stdout.splitlines()[-1].startswith("Test Accuracy: "), name
        assert done.stdout.count("Test Accuracy: ") == 1, name  # the main process alone speaks
        assert weight_difference(tmp_path / name, tmp_path / "python") < 1e-9, name
    for name, processes in (("python", 1), ("accelerate", 1), ("two", 2), ("torchrun", 2)):
        assert (
            json.loads((tmp_path / name / "summary.json").read_text())["num_processes"] == processes
        )
    # Field note 9: a process group left behind can abort a process whose work is done.
    for rank in range(2):
        assert json.loads((tmp_path / f"left-{rank}.json").read_text()) == {
            "process_group_destroyed": True,
            "status": 0,
        }


@pytest.mark.slow
def test_two_nodes_train_one_model_and_one_of_them_speaks(trained, tmp_path):
    """Two torchrun agents that meet, as on two machines; accelerator.print alone would print on both."""
    port = str(free_port())
    command = [
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-id=mnist",
    ]
    command += [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}",
        "evaluate.py",
        str(trained),
        "--cpu",
    ]
    command += ["--output-dir", str(tmp_path)]
    agents = [
        subprocess.Popen(
            command, env=clean_environment(), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0]
    assert "".join(outputs).count("Test Accuracy: ") == 1
    assert json.loads((tmp_path / "evaluation.json").read_text())["num_processes"] == 2


def test_the_launcher_that_starts_one_process_where_two_were_asked_for_is_refused(tmp_path):
    """Field note 2, for real."""
    done = call(
        *ACCELERATE[:4], *"--cpu --num_processes 2 train.py".split(), *FLAGS, tmp_path / "run"
    )
    assert done.returncode != 0
    assert "torchrun --nproc-per-node N train.py --cpu" in done.stderr
    assert not (tmp_path / "run").exists()


LAUNCHED = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"MASTER_PORT": "29500"}, "only this one was started"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 tasks that do not know of each other"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "srun started many tasks"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not"),
        (LAUNCHED | {"RANK": "two"}, "RANK='two' is not a whole number"),
        (LAUNCHED | {"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1' is not a whole number"),
        (LAUNCHED | {"WORLD_SIZE": "٣"}, "WORLD_SIZE='٣' is not a whole number"),
        (LAUNCHED | {"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE='x' is not a whole number"),
        (LAUNCHED | {"RANK": 5000 * "9"}, "is not a whole number"),
        (LAUNCHED | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is not a port"),
        (LAUNCHED | {"MASTER_PORT": "0"}, "MASTER_PORT=0 is not a port"),
        (LAUNCHED | {"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        (LAUNCHED | {"ACCELERATE_USE_FSDP": "true"}, "accelerate is configured for FSDP"),
    ],
)
def test_an_environment_in_which_processes_would_train_alone_is_refused(environment, complaint):
    with pytest.raises(UserError, match=complaint):
        check_environment(environment)


def test_a_sound_environment_tells_the_number_of_processes():
    assert check_environment({}) == 1
    assert check_environment({"SLURM_STEP_NUM_TASKS": "1"}) == 1
    assert check_environment(LAUNCHED) == 2
    assert check_environment({"ACCELERATE_USE_FSDP": "false"}) == 1


def test_a_gpu_that_cannot_be_used_is_no_reason_to_train_on_the_cpu(tmp_path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()  # as the driver lists a GPU
    monkeypatch.setattr(devices, "NVIDIA", tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(
        UserError, match=r"there is an NVIDIA GPU that cannot be used \(.+\): .* or give --cpu"
    ):
        launch.start()
    assert launch.start(cpu=True).device.type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert launch.start().device.type == "cpu"


def test_float32_is_float32_and_tf32_is_asked_for():
    launch.start(cpu=True)
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    with pytest.raises(UserError, match="--tf32 is for NVIDIA GPUs"):
        launch.start(cpu=True, tf32=True)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Connection closed by peer [127.0.0.1]:3\nmore\nof it", "Connection closed by peer [127.0.0.1]:3"),
        ("NCCL error in: x.cpp:94, unhandled.\nncclSystemError: System call failed.\nLast error:\nno route\n",
         "NCCL error in: x.cpp:94, unhandled; no route"),
    ],
)  # fmt: skip
def test_the_cause_that_a_library_names_is_told(message, told):
    assert launch.cause(RuntimeError(message)) == told


def test_one_process_in_an_allocation_of_several_tasks_is_told(capsys):
    """As `python train.py` without srun; under srun the step's one task is what Slurm counts."""
    for tasks, told in (("4", 1), ("1", 0)):
        assert check_environment({"SLURM_NTASKS": tasks}) == 1
        assert (
            capsys.readouterr().err.count(
                "warning: this allocation has 4 tasks, but without srun only one"
            )
            == told
        )


@pytest.mark.parametrize(("variable", "threads"), [(None, 3), ("2", 2)])
def test_a_process_takes_half_the_cores_unless_told_otherwise(variable, threads, monkeypatch):
    monkeypatch.setattr(launch, "THREADS", 3)
    before = torch.get_num_threads()
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(2)
        launch.start(cpu=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


WINDOWS = """
import os, runpy, shutil, signal, sys
import accelerate, torch  # what they need of Linux they may have
for name in [name for name in sys.modules if name.split(".")[0] in ("fcntl", "filelock")]:
    del sys.modules[name]
sys.modules["fcntl"] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
for name in ("O_DIRECTORY", "geteuid", "killpg", "mkfifo", "set_blocking"):
    delattr(os, name)
del torch.distributed.HashStore
opened, flushed = os.open, os.fsync

def open_file(path, flags, *words, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, flags, *words, **options)

def flush(descriptor):
    os.write(descriptor, b"")  # fails if it may only be read
    flushed(descriptor)

def refuse_if_open(call):
    def refuse(*paths, **options):
        descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        if {os.path.realpath(path) for path in paths} & {os.path.realpath(descriptor) for descriptor in descriptors}:
            raise PermissionError(13, "Permission denied", str(paths[0]))
        return call(*paths, **options)
    return refuse

os.open, os.fsync = open_file, flush
os.unlink, os.rename, os.replace = map(refuse_if_open, (os.unlink, os.rename, os.replace))
os.remove, shutil._use_fd_functions = os.unlink, False
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_it_trains_where_fcntl_some_signals_and_descriptors_of_folders_are_missing(tmp_path):
    """As on Windows, whose file names cannot have some characters either."""
    flags = [*FLAGS, tmp_path / "run", "--checkpoint-every", "20"]
    done = call(PYTHON, "-c", WINDOWS, "train.py", *flags)
    assert done.returncode == 0, done.stderr
    assert checkpoint_of(tmp_path / "run")["state"]["loaders"][0]["epoch"] == 1
    names = [path.name for path in (tmp_path / "run").rglob("*")]
    assert "summary.json" in names and not [name for name in names if set(name) & set('<>:"\\|?*')]
    assert not [name for name in names if name.endswith((" ", "."))]


@pytest.mark.slow
def test_searches_and_verify_run_there_too(tmp_path):
    """With the library's own locks, which on Windows are of another kind and do not need `fcntl`."""
    windows = WINDOWS.replace('("fcntl", "filelock")', '("fcntl",)').replace(
        "accelerate, torch", "accelerate, filelock, torch"
    )
    tune = "tune --dataset mnist-5k --val-size 2000 --epochs 1 --search lr --cpu --trials 2 --output-dir".split()
    verify = "verify --dataset mnist-5k --cpu --output-dir".split()
    for words, said in ((tune, "mnist-5k: 2 trials"), (verify, "this set-up trains right (")):
        done = call(PYTHON, "-c", windows, "mnist_dist/__main__.py", *words, tmp_path / words[0])
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "verify").exists()


@pytest.mark.slow
def test_the_shipped_configuration_starts_without_a_gpu(tmp_path):
    """Field note 11. Slow, for it gives a process per CPU core: how many is not ours to say."""
    done = call(*ACCELERATE, "train.py", *FLAGS, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_processes"] >= 1
