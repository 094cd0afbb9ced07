"""`python -m mnist_dist verify`: a right set-up passes, and every planted fault is caught and named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ACCELERATE, PYTHON, REPOSITORY, call, torchrun

from mnist_dist.tools.verify import Config, Process, check_equal, check_processes

FAULTS = {
    None: set(),
    "loader_sharded_twice": {"samples"},
    "order_depends_on_processes": {"samples"},
    "processes_with_different_seeds": {"samples"},
    "processes_weighed_equally": {"gradient", "weights, 264 updates"},
    "schedule_stepped_by_every_process": {"schedule", "weights, 264 updates"},
    "padding_counted": {"test count"},
    "slow_process": {"speed of each process"},
    "checkpoint_reads_other_weights": {"checkpoint"},
    "mixed_precision_breaks": {"mixed precision"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What three processes answer without and with each fault."""
    folder = tmp_path_factory.mktemp("verify")
    flags = ["--dataset", "mnist-5k", "--cpu", "--output-dir", str(folder / "runs")]
    runs = [{"flags": flags, "fault": fault, "verify": str(folder / f"{fault}.json")} for fault in FAULTS]
    done = torchrun(3, REPOSITORY / "tests" / "driver.py", json.dumps({"runs": runs}))
    assert done.returncode == 0, done.stderr
    assert list((folder / "runs").iterdir()) == []  # nothing is left behind
    return {fault: json.loads((folder / f"{fault}.json").read_text()) for fault in FAULTS}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_line_that_names_it_and_no_other(answers, fault):
    answer = answers[fault]
    failed = {check["name"]: check for check in answer["checks"] if not check["passed"]}
    assert answer["passed"] is (not failed)
    assert all(check["advice"] for check in failed.values())
    on_a_busy_machine = {"speed of each process"}  # one process may really be slower
    assert FAULTS[fault] <= failed.keys() <= FAULTS[fault] | on_a_busy_machine
    if fault == "slow_process":
        assert "process 2 on " in failed["speed of each process"]["detail"]


@pytest.mark.slow
def test_the_answer_for_machines_has_processes_and_measurements(answers):
    answer = answers[None]
    assert [process["rank"] for process in answer["processes"]] == [0, 1, 2]
    assert {(process["device"], process["backend"]) for process in answer["processes"]} == {("cpu", "gloo")}
    measured = answer["measurements"]
    assert measured["efficiency"] == pytest.approx(
        measured["samples_per_second"] / measured["samples_per_second_alone"] / 3
    )
    assert 1e-6 < measured["all_reduce_seconds"] < 1 and 1e6 < measured["all_reduce_bytes_per_second"] < 1e12
    assert len(answer["checks"]) == 13


def test_a_person_reads_a_table_and_the_status_says_the_same(tmp_path):
    done = call(PYTHON, "-m", "mnist_dist", "verify", "--cpu", "--dataset", "mnist-5k", "--output-dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("PASS  ") for line in lines) == 13 and "FAIL" not in done.stdout
    assert lines[-1].startswith("this set-up trains right (") and done.stderr == ""
    done = call(PYTHON, "-m", "mnist_dist", "verify", *"--cpu --dataset mnist-5k --processes 4".split())
    assert done.returncode == 1
    assert "FAIL  processes" in done.stdout and "4 processes were meant and 1 are connected" in done.stdout
    assert done.stderr == "mnist_dist: error: this set-up is not right: processes failed\n"


@pytest.mark.slow
def test_independent_processes_are_caught(tmp_path):
    launched = call(*ACCELERATE[:4], *"--cpu --num_processes 2 -m mnist_dist verify --dataset mnist-5k".split())
    started_by_srun = call(
        PYTHON, "-m", "mnist_dist", "verify", "--json", tmp_path / "a.json", SLURM_STEP_NUM_TASKS="2"
    )
    for done in (launched, started_by_srun):
        assert done.returncode == 1 and "FAIL  start" in done.stdout, done.stdout + done.stderr
        assert "mnist_dist: error: this set-up is not right: start failed" in done.stderr
    answer = json.loads((tmp_path / "a.json").read_text())
    assert not answer["passed"] and "do not know of each other" in answer["checks"][0]["advice"]


@pytest.fixture
def places(tmp_path):
    """A folder for each of two processes, with its own copy of the package: as nodes without a common file system."""
    for rank in range(2):
        shutil.copytree(REPOSITORY / "mnist_dist", tmp_path / str(rank) / "mnist_dist")
    return tmp_path


def verify_in(places, *flags):
    """`verify` on two processes, each in its own folder."""
    program = f"cd {places}/$RANK && PYTHONPATH=. exec {PYTHON} -m mnist_dist verify --cpu {' '.join(flags)}"
    return torchrun(2, "--no-python", "bash", "-c", program)


@pytest.mark.slow
def test_a_process_with_other_code_or_another_file_system_is_caught(places):
    done = verify_in(places, "--dataset", "mnist-5k")
    assert done.returncode != 0 and "FAIL  shared folder" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("FAIL") == 1
    with (places / "1" / "mnist_dist" / "task" / "networks.py").open("a") as file:
        file.write("# an older version\n")
    done = verify_in(places, "--dataset", "mnist-5k", "--output-dir", str(places))
    assert done.returncode != 0 and "process 1 on" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("FAIL") == 1 and "FAIL  code" in done.stdout


@pytest.mark.slow
def test_a_process_with_other_data_is_caught(places):
    images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28), np.uint8)
    for rank in range(2):
        raw = places / str(rank) / "data" / "KMNIST" / "raw"
        raw.mkdir(parents=True)
        for name, size in (("train", 60_000), ("t10k", 10_000)):
            labels = (np.arange(size) + rank) % 10
            header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (size, 28, 28))
            (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images[:size].tobytes())
            header = bytes([0, 0, 8, 1]) + size.to_bytes(4, "big")
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
    done = verify_in(places, "--dataset", "kmnist", "--output-dir", str(places))
    assert done.returncode != 0, done.stdout + done.stderr
    assert done.stdout.count("FAIL") == 1 and "FAIL  data" in done.stdout and "process 1 on" in done.stdout


HERE = Process(0, "n1", "cuda", "GPU-0", 2, "nccl", 1, "torch 2", "c0de", "da7a")


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ([replace(HERE, rank=1, gpu="GPU-1")], ""),
        ([replace(HERE, rank=1)], "processes [0, 1] share one GPU (GPU-0)"),
        (
            [replace(HERE, rank=1, gpu="GPU-1"), replace(HERE, rank=2, gpu="", device="cpu")],
            "process 2 on n1 runs on cpu",
        ),
    ],
)
def test_two_processes_on_one_gpu_and_one_on_the_cpu_are_named(others, complaint):
    check = check_processes([HERE, *others], Config(), "so many processes")
    assert check.passed is not bool(complaint) and complaint in check.advice


def test_a_process_with_other_versions_is_named():
    versions, code, data = check_equal([HERE, replace(HERE, rank=1, versions="torch 3")])
    assert not versions.passed and "process 1 on n1 differs" in versions.detail
    assert code.passed and data.passed
