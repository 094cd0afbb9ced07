"""A user's script under `Accelerator` and under `ExactAccelerator`: the one word that has to change."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PYTHON, call, torchrun
from exact_faults import OF_BITS
from test_exact_accelerator import difference, same_bits
from user_script import SAMPLES

SCRIPT = Path(__file__).with_name("user_script.py")
DRIVER = Path(__file__).with_name("user_driver.py")
BATCH = 11  # which neither 2, 3 nor 7 divides; the last batch of an epoch has one sample
BATCHES = 11  # an epoch
CLOSE = 1e-12
LAYERS = "--exact --normed --virtual-processes 7 --dtype float32"  # batch normalisation and dropout
UPDATES = "--gradient-accumulation-steps 3 --max-grad-norm 0.1"
STOPPED = "--checkpoint-every 3 --stop-after 14"  # killed two updates after a checkpoint, in the second epoch

RUNS = {
    "stock": "",
    "plain": "--exact",
    "plain, ddp": "--exact --ddp",
    "workers": "--exact --num-workers 2",
    "accumulated": f"--exact {UPDATES}",
    "accumulated, ddp": f"--exact --ddp {UPDATES}",
    "texts": "--exact --task texts",
    "texts, ddp": f"--exact --task texts --ddp {UPDATES}",
    "texts, virtual": "--exact --task texts --virtual-processes 7 --dtype float32",
    "in order": "--exact --in-order",
    "skipped": "--exact --skip 2",
    "layers": LAYERS,
    "layers, workers": f"{LAYERS} --num-workers 2",
    "layers, accumulated": f"{LAYERS} {UPDATES}",
    "layers, evaluated": f"{LAYERS} --evaluate-every 4",
    "layers, bf16": f"{LAYERS} --mixed-precision bf16",
}
CLOSE_RUNS = [
    name for name, flags in RUNS.items() if "--exact" in flags and "--virtual" not in flags
]
SAME_RUNS = [name for name, flags in RUNS.items() if "--virtual" in flags]
FAULTY = {
    fault: "--exact" if "scheduler" in fault or "samples" in fault else LAYERS for fault in OF_BITS
}
RESUMED = {"resumed": "--exact", "resumed layers": LAYERS}
# Seven processes on two cores are slow: these runs, with the most uneven shares, stand for the others.
ON_SEVEN = {
    "stock",
    "plain",
    "accumulated, ddp",
    "skipped",
    "texts, virtual",
    "layers, accumulated",
}

Runs = Callable[[int], dict[str, str]]  # by the number of processes

slow = pytest.mark.slow
several = pytest.mark.parametrize(
    "processes", [pytest.param(processes, marks=slow) for processes in (2, 3, 7)]
)


def runs_on(processes: int) -> dict[str, str]:
    """The flags of every run on so many processes."""
    if processes < 7:
        return RUNS
    return {name: flags for name, flags in RUNS.items() if name in ON_SEVEN}


def faulty_on(processes: int) -> dict[str, str]:
    """The flags of every run with a planted fault on so many processes."""
    return FAULTY if processes < 7 else {}


def each_on_several(argument: str, names: Iterable[str], runs: Runs) -> pytest.MarkDecorator:
    """Each of these runs on each number of processes on which it is made."""
    pairs = [(name, processes) for processes in (2, 3, 7) for name in names]
    made = [(name, processes) for name, processes in pairs if name in runs(processes)]
    return pytest.mark.parametrize(
        (argument, "processes"), [pytest.param(*pair, marks=slow) for pair in made]
    )


class Results:
    """What the script leaves on so many processes, each launched once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launched: set[int] = set()

    def get(self, name: str, processes: int) -> dict[str, Any]:
        """What a run left."""
        if processes not in self.launched:
            self.launched.add(processes)
            stages = self.stages(processes)
            done = call(PYTHON, DRIVER, json.dumps(stages), timeout=550)
            assert done.returncode == 0, done.stderr[-5000:]
        return torch.load(self.file(name, processes), weights_only=False)

    def file(self, name: str, processes: int) -> Path:
        return self.folder / f"{name} on {processes}.pt"

    def project(self, name: str, processes: int) -> Path:
        return self.folder / f"{name} stopped on {processes}"

    def run(
        self, name: str, processes: int, flags: str, fault: str | None = None, **project: Path
    ) -> list[Any]:
        """One run of the script, as user_driver.py takes it."""
        words = [str(self.file(name, processes)), *flags.split()]
        for folder in project.values():
            words += ["--project-dir", str(folder)]
        return [words, fault]

    def stages(self, processes: int) -> list[Any]:
        """All runs on so many processes, and what is stopped there and resumed on one, and the other way round."""
        first = [self.run(name, processes, flags) for name, flags in runs_on(processes).items()]
        first += [
            self.run(fault, processes, flags, fault)
            for fault, flags in faulty_on(processes).items()
        ]
        on_one: list[Any] = []
        back: list[Any] = []
        if processes > 1:
            for name, flags in RESUMED.items():
                here, there = (
                    self.project(name, processes),
                    self.project(f"{name} for {processes}", 1),
                )
                resume = f"{flags} --checkpoint-every 3 --resume"
                first.append(self.run("", processes, f"{flags} {STOPPED}", project=here))
                on_one.append(self.run(f"{name} from {processes}", 1, resume, project=here))
                on_one.append(self.run("", 1, f"{flags} {STOPPED}", project=there))
                back.append(self.run(f"{name} from 1", processes, resume, project=there))
        return [stage for stage in ([processes, first], [1, on_one], [processes, back]) if stage[1]]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("user"))


@each_on_several("name", CLOSE_RUNS, runs_on)
def test_in_float64_the_weights_are_those_of_one_process(name, processes, results):
    """Batches that no number of processes divides, accumulation, clipping, a schedule, transforms, padded dicts."""
    alone, found = results.get(name, 1), results.get(name, processes)
    assert difference(alone["weights"], found["weights"]) <= CLOSE
    assert alone["learning_rate"] == found["learning_rate"]
    assert alone["updates"] == found["updates"]
    assert alone["seen"] == found["seen"]  # the same batches, and their rows in the same order
    assert alone["predictions"] == found["predictions"]
    assert list(found["predictions"]) == list(range(SAMPLES))  # in the order of the data set


@each_on_several("name", SAME_RUNS, runs_on)
def test_with_virtual_processes_the_float32_bits_are_those_of_one_process(name, processes, results):
    """Batch normalisation and dropout in an unmodified model, workers, bf16."""
    alone, found = results.get(name, 1), results.get(name, processes)
    assert same_bits(alone["weights"], found["weights"])
    assert alone["learning_rate"] == found["learning_rate"]
    assert alone["predictions"] == found["predictions"]
    assert len(found["predictions"]) == SAMPLES


@several
def test_stock_accelerates_weights_part(processes, results):
    """So the comparisons above show something: its batches are others, and its schedule is faster."""
    alone, found = results.get("stock", 1), results.get("stock", processes)
    assert difference(alone["weights"], found["weights"]) > 1e-3
    assert alone["learning_rate"] != found["learning_rate"]


@each_on_several("fault", FAULTY, faulty_on)
def test_a_planted_fault_shows(fault, processes, results):
    alone, found = results.get(fault, 1), results.get(fault, processes)
    assert not same_bits(alone["weights"], found["weights"])
    if FAULTY[fault] == "--exact":
        assert difference(alone["weights"], found["weights"]) > 1e-6


@pytest.mark.slow
def test_what_is_to_change_nothing_changes_nothing_and_the_rest_does(results):
    def weights(name: str) -> dict[str, torch.Tensor]:
        return results.get(name, 1)["weights"]

    assert same_bits(weights("plain"), weights("workers"))
    assert same_bits(weights("layers"), weights("layers, workers"))
    assert same_bits(weights("layers"), weights("layers, evaluated"))
    for other in ("accumulated", "in order", "skipped"):
        assert difference(weights("plain"), weights(other)) > 1e-3
    for other in ("layers, accumulated", "layers, bf16"):
        assert not same_bits(weights("layers"), weights(other))


def test_an_epoch_has_every_sample_once_and_an_order_of_its_own(results):
    seen = results.get("plain", 1)["seen"]
    first: list[int] = sum(seen[:BATCHES], [])
    second: list[int] = sum(seen[BATCHES:], [])
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second != list(range(SAMPLES)) != first
    assert sum(results.get("in order", 1)["seen"][:BATCHES], []) == list(range(SAMPLES))


@several
def test_skip_first_batches_leaves_out_those_that_would_have_come(processes, results):
    assert results.get("skipped", processes)["seen"] == results.get("plain", 1)["seen"][2:]


@several
@pytest.mark.parametrize("way", ["from", "to"])
def test_killed_in_mid_epoch_it_goes_on_with_another_number_of_processes(way, processes, results):
    results.get("plain", processes)
    for name in RESUMED:
        if way == "from":
            found = results.get(f"{name} from {processes}", 1)
        else:
            found = results.get(f"{name} from 1", processes)
        whole = results.get("layers" if name == "resumed layers" else "plain", 1)
        if name == "resumed layers":
            assert same_bits(found["weights"], whole["weights"])
        else:
            assert difference(found["weights"], whole["weights"]) <= CLOSE
            assert found["seen"] == whole["seen"]  # the same batches from there on
        assert found["learning_rate"] == whole["learning_rate"]
        assert found["updates"] == whole["updates"] == 2 * BATCHES
        assert found["predictions"] == whole["predictions"]


@several
def test_checkpoints_are_numbered_on_and_the_newest_two_are_kept(processes, results):
    """4 were written before the stop, and 3 after it."""
    results.get("plain", processes)
    folders = [
        results.project("resumed", processes),
        results.project(f"resumed layers for {processes}", 1),
    ]
    for folder in folders:
        assert {place.name for place in (folder / "checkpoints").iterdir()} == {
            "checkpoint_5",
            "checkpoint_6",
        }


@slow
@pytest.mark.parametrize("processes", [2, 7])
def test_under_torchrun_it_is_the_same(processes, results, tmp_path):
    done = torchrun(processes, SCRIPT, tmp_path / "result.pt", *LAYERS.split())
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "result.pt", weights_only=False)
    assert same_bits(found["weights"], results.get("layers", 1)["weights"])
