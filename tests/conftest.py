"""Shared by the tests: real launchers, real processes, and what they leave behind."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from mnist_dist.core.checkpointing import newest_checkpoint

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
PYTHON, DRIVER = sys.executable, TESTS / "driver.py"
# The programs that tests start find the package, and what they share with each other.
PYTHONPATH = f"{REPOSITORY}{os.pathsep}{TESTS}"
ACCELERATE = (
    PYTHON,
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--config_file",
    "accelerate_config.yaml",
)
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_STEP_NUM_TASKS",
)

# Files, those that take longest first: dealt out in this order, the last ones leave no worker alone with a long file.
LONGEST = """verify promise3_stop_anywhere slurm promise1_same_training compile same_bits tune promise6_no_silent_wrong
promise2_every_sample_once examples user_script exact_accelerator wandb_online elastic tracking promise4_one_loop
distillation""".split()


# Flags, and the name of a fault to be planted or None.
Planned = tuple[Sequence[str | Path], str | None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests into the order in which they are dealt out."""
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what a launcher, Accelerate or W&B user configured, plus the changes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER_VARIABLES
        and not name.startswith(("ACCELERATE_", "WANDB_", "PYTEST_", "COV_"))
    }
    # One thread a process: two tests run side by side, and OpenMP is slow where threads outnumber cores.
    return kept | {"HF_HOME": "/nonexistent", "COLUMNS": "80", "OMP_NUM_THREADS": "1"} | changes


def call(*command: str | Path, cwd: Path = REPOSITORY, timeout: float = 300, **environment: str):
    """Run a command to its end and return it with its output as text."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean_environment(PYTHONPATH=PYTHONPATH, **environment),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def torchrun(processes: int, *command: str | Path, **options):
    """Run a script under torchrun on this machine."""
    return call(
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *command,
        **options,
    )


def forked(processes: int, runs: Sequence[Planned], **spec: Any):
    """The same as `driver` without a launcher, in a third of the time that it takes to start."""
    spec["runs"] = [
        {"flags": [str(word) for word in flags], "fault": fault} for flags, fault in runs
    ]
    return call(PYTHON, DRIVER, json.dumps(spec | ({"forked": processes} if processes > 1 else {})))


def driver(processes: int, runs: Sequence[Planned], **spec: Any):
    """Train several times, each with a fault or None, in one set of real processes; see driver.py."""
    spec["runs"] = [
        {"flags": [str(word) for word in flags], "fault": fault} for flags, fault in runs
    ]
    return torchrun(processes, DRIVER, json.dumps(spec))


def results_of(driver: Path, folder: Path, processes: int) -> dict[str, Any]:
    """What a `..._driver.py` writes to FOLDER/results.pt on so many processes."""
    done = call(PYTHON, driver, folder, str(processes), timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    return torch.load(folder / "results.pt", weights_only=True)


def train_py(*flags: str | Path, **environment: Any):
    """Run train.py in a process, but for its pictures, which take longer than small trainings."""
    spec = {"runs": [{"flags": [str(word) for word in flags]}]}
    return call(PYTHON, DRIVER, json.dumps(spec), **environment)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The documents of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def checkpoint_of(run: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds."""
    payload, _ = newest_checkpoint(run)
    assert payload is not None
    return payload


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The state_dict that a run left."""
    return torch.load(run / "mnist_model.pth", weights_only=True)


def weight_difference(run: Path, other: Path) -> float:
    """The largest absolute difference between the weights of two runs."""
    one, two = weights_of(run), weights_of(other)
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


def rewind(run: Path) -> None:
    """Put a finished run back to its last checkpoint but one, in the middle of its last epoch."""
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    for name in ("summary.json", "mnist_model.pth"):
        (run / name).unlink()


def without(what: str) -> NoReturn:
    """Skip a test for want of something; in .ci/run, where all of it must be there, fail."""
    if os.environ.get("MNIST_DIST_NO_SKIPS"):
        pytest.fail(f"MNIST_DIST_NO_SKIPS is set, but {what}")
    pytest.skip(what)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function to mount it again with other options, such as `size=100k`."""
    if not sys.platform.startswith("linux") or os.geteuid():
        without("mounting a small disk needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        without(f"root cannot mount a disk here ({mounted.stderr.strip()})")
    yield (
        folder,
        lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True),
    )
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The folder with the full MNIST."""
    folder = os.environ.get("MNIST_DIST_DATA")
    if not folder:
        without("the full MNIST is needed: set MNIST_DIST_DATA to its --data-dir")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the embedded digits."""
    run = tmp_path_factory.mktemp("trained") / "run"
    done = call(
        PYTHON,
        "train.py",
        "--dataset",
        "mnist-5k",
        "--cpu",
        "--wandb",
        "disabled",
        "--output-dir",
        run,
    )
    assert done.returncode == 0, done.stderr
    return run
