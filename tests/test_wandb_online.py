"""Weights & Biases online: what arrives at a server, and what becomes of it if that fails; see wandb_server.py."""

import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, REPOSITORY, call, clean_environment, read_lines, torchrun
from wandb_server import Run, Server

pytestmark = pytest.mark.slow

FLAGS = "--dataset mnist-5k --cpu --wandb-model --epochs".split()
PROMPT = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5"}  # seconds, not 15: rows arrive while the run goes on


class Training:
    """The watched script in a process of its own, and what it says when.

    Attributes:
        lines: what it has written so far, standard error included, each with the time.
    """

    def __init__(self, server: Server, *runs: dict[str, Any], **timeouts: float) -> None:
        self.process = subprocess.Popen(
            [PYTHON, "tests/driver.py", json.dumps({"runs": runs, "timeouts": timeouts})],
            cwd=REPOSITORY,
            env=clean_environment(PYTHONUNBUFFERED="1", **server.environment, **PROMPT),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        """Note every line."""
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))
        self.lines.append((time.monotonic(), "end"))

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that must come about while it runs."""
        while not condition():
            assert self.process.poll() is None, self.text
            time.sleep(0.02)

    def end(self, status: int = 0) -> "Training":
        """Wait until it has left with that status."""
        assert self.process.wait(timeout=200) == status, self.text
        self.reader.join()
        return self

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line for _, line in self.lines)

    @property
    def warnings(self) -> list[str]:
        """The lines that warn."""
        return [line for _, line in self.lines if line.startswith("warning: ")]

    def when(self, beginning: str) -> float:
        """The time of the last line that begins so."""
        return [moment for moment, line in self.lines if line.startswith(beginning)][-1]


def run_of(folder: Path, epochs: int, *more: str, fault: str | None = None) -> dict[str, Any]:
    """A run for the script."""
    return {"flags": [*FLAGS, str(epochs), "--output-dir", str(folder), *more], "fault": fault}


def arrived(server: Server, folder: Path) -> Run:
    """What the server has of the run in a folder."""
    return server.runs[json.loads((folder / "config.json").read_text())["wandb_id"]]


def assert_complete(server: Server, folder: Path, steps: list[int]) -> None:
    """The run has ended well on the server and has all that its folder has, in rows of these updates, none twice.

    A finished run that goes on cannot add to its last row (W&B's rows are only ever appended), so its tables may come
    in a row of their own, right after.
    """
    run, lines = arrived(server, folder), read_lines(folder / "metrics.jsonl")
    assert run.exit_code == 0
    rows = run.history
    assert [row["_step"] for row in rows] in (steps, [*steps, steps[-1] + 1])
    assert [row["_step"] for row in rows if "train/loss" in row] == steps
    by_epoch = [row for row in rows if "epoch" in row]
    assert [{key: row[key] for key in line} for row, line in zip(by_epoch, lines, strict=True)] == lines
    assert [row["_step"] for row in by_epoch] == [line["global_step"] for line in lines]
    config = json.loads((folder / "config.json").read_text())
    changing = {"command", "date", "resume", "job"} if rows[-1]["_step"] > steps[-1] else set()
    sent = {key: entry["value"] for key, entry in run.config.items()}
    assert {key: config[key] for key in config.keys() - changing} == {
        key: sent[key] for key in config.keys() - changing
    }
    summary = json.loads(run.files["wandb-summary.json"])
    assert {key: summary[key] for key in lines[-1]} == lines[-1]
    assert_end(server, run, folder)


def assert_end(server: Server, run: Run, folder: Path) -> None:
    """The tables, their pictures and the model have arrived."""
    last = [row for row in run.history if "mistakes" in row][-1]
    confusion = json.loads(run.files[last["confusion_matrix_table"]["path"]])
    assert confusion["columns"] == ["Actual", "Predicted", "nPredictions"]
    right = sum(count for actual, predicted, count in confusion["data"] if actual == predicted)
    lines = read_lines(folder / "metrics.jsonl")
    assert (right, sum(count for *_, count in confusion["data"])) == (lines[-1]["test_correct"], 1000)
    number = json.loads((folder / "config.json").read_text())["wandb_id"]
    mine = {of["artifactCollectionName"]: of for of in server.artifacts if of["runName"] == number}
    mistakes = mine[f"run-{number}-mistakes"]["files"]
    table = json.loads(mistakes["mistakes.table.json"])
    assert table["columns"] == ["sample", "image", "class", "predicted", "confidence"]
    assert len(table["data"]) == min(50, 1000 - right)
    for _, image, actual, predicted, _ in table["data"]:
        assert mistakes[image["path"]].startswith(b"\x89PNG") and actual != predicted
    model = mine["mnist-5k-mlp"]
    assert model["artifactTypeName"] == "model"
    assert model["files"]["mnist_model.pth"] == (folder / "mnist_model.pth").read_bytes()


def test_what_arrives_of_a_run_by_two_processes_equals_its_folder(tmp_path):
    folder = tmp_path / "my run"
    with Server() as server:
        spec = {"runs": [run_of(folder, 3, "--val-size", "100")]}
        done = torchrun(2, "tests/driver.py", json.dumps(spec), **server.environment)
        assert done.returncode == 0, done.stderr
        assert f"Weights & Biases: {server.address}/me/mnist-dist/runs/" in done.stdout and not done.stderr
        assert len(server.runs) == 1 and arrived(server, folder).name == "my run"
        assert_complete(server, folder, [50, 61, 111, 122, 172, 183])


def test_a_run_that_is_stopped_killed_and_goes_on_is_one_run_with_one_history(tmp_path):
    """Stopped between an epoch's last update and its evaluation, in the middle of what is one row."""
    folder, flags = tmp_path / "run", ("--batch-size", "134")  # 30 updates an epoch
    with Server() as server:
        Training(server, run_of(folder, 16, *flags, fault="stopped_at_update_30")).end(75)
        assert arrived(server, folder).preempted and arrived(server, folder).exit_code == 1
        killed = Training(server, run_of(folder, 16, *flags, "--resume", fault="slow_process"))
        killed.until(lambda: len(arrived(server, folder).lines["wandb-history.jsonl"]) >= 2)
        killed.process.send_signal(signal.SIGKILL)
        killed.end(-signal.SIGKILL)
        last = Training(server, run_of(folder, 16, *flags, "--resume")).end()
        assert not last.warnings, last.text
        assert len(server.runs) == 1
        assert_complete(server, folder, list(range(30, 481, 30)))


UNABLE = {"hang": "hang", "refused key": 401, "busy": 429, "closed": "close"}  # what a run meets at its start


@pytest.fixture(scope="module")
def unable(tmp_path_factory) -> Iterator[dict[str, tuple[Path, Training]]]:
    """Runs that were begun, all at once, while their servers did not answer as they should."""
    root, servers = tmp_path_factory.mktemp("unable"), [Server() for _ in UNABLE]
    runs = {}
    for server, (number, (name, fault)) in zip(servers, enumerate(UNABLE.items()), strict=True):
        server.start()
        server.fault = fault
        runs[name] = root / name, Training(server, run_of(root / name, 3, "--seed", str(number)), START_TIMEOUT=8)
    yield {name: (folder, training.end()) for name, (folder, training) in runs.items()}
    for server in servers:
        server.stop()


@pytest.mark.parametrize("name", UNABLE)
def test_a_server_that_cannot_begin_the_run_costs_a_warning_and_seconds(name, unable):
    _, training = unable[name]
    (warning,) = training.warnings
    assert warning.startswith("warning: Weights & Biases goes offline for this run (")
    assert training.when("epoch 1/3") - training.when("mlp with") < 5 + 3  # of which the epoch itself is one
    assert training.when("end") - training.when("epoch 3/3") < 8 + 5  # START_TIMEOUT, and W&B's own start and end


def test_the_command_printed_sends_all_of_a_run_that_could_not_begin(unable):
    """One command for all, as the processes take longest to start."""
    paths = []
    for folder, training in unable.values():
        lines = [line for _, line in training.lines]
        command = shlex.split(lines[lines.index("Weights & Biases has this run offline; send it with:") + 1])
        assert command[:2] == ["wandb", "sync"] and len(command) == 3
        assert [part.name for part in (folder / "wandb").glob("*run-*-*")] == [Path(command[2]).name], "the only part"
        paths.append(command[2])
    with Server() as server:
        done = call(PYTHON, "-m", "wandb", "sync", *paths, **server.environment)
        assert done.returncode == 0, done.stderr
        for folder, _ in unable.values():
            assert_complete(server, folder, [50, 63, 113, 126, 176, 189])
        assert len(server.runs) == len(unable)


def test_a_server_that_fails_in_the_middle_and_comes_back_gets_all(tmp_path):
    """One run meets every fault, each until a request has met it, and goes on streaming after it."""
    folder = tmp_path / "run"
    with Server() as server:
        training = Training(server, run_of(folder, 60, fault="slow_process"), ANSWER_TIMEOUT=2, RETRY_WAIT=2)

        def streams_again() -> None:
            before = len(arrived(server, folder).lines["wandb-history.jsonl"])
            training.until(lambda: len(arrived(server, folder).lines["wandb-history.jsonl"]) > before)

        training.until((folder / "metrics.jsonl").exists)
        for fault in (500, 429, "close", "hang"):
            streams_again()
            asked = len(server.seen)
            server.fault = fault
            training.until(lambda asked=asked: len(server.seen) > asked)
            time.sleep(0.5)
            server.fault = None
        streams_again()
        server.stop()
        time.sleep(2)
        server.start()
        streams_again()
        assert not training.end().warnings, training.text
        assert_complete(server, folder, [step for epoch in range(60) for step in (63 * epoch + 50, 63 * epoch + 63)])


LOST = {  # what a run meets in the middle and for good: the fault, and the requests that meet it
    "hang": ("hang", ""),
    "refused key": (401, ""),
    "refused artifacts": (403, "/storage/artifact"),
}


@pytest.fixture(scope="module")
def lost(tmp_path_factory) -> Iterator[tuple[Server, dict[str, tuple[Path, Training]]]]:
    """Finished runs whose servers failed in the middle, and a server that then has all that those got."""
    root, servers, runs, healthy = tmp_path_factory.mktemp("lost"), [], {}, Server()
    for number, (name, (_, only)) in enumerate(LOST.items()):
        servers.append(server := Server())
        server.start()
        server.only = only
        runs[name] = root / name, Training(server, run_of(root / name, 20, "--seed", str(number)), FINISH_TIMEOUT=4)
    for server, (folder, training), (fault, only) in zip(servers, runs.values(), LOST.values(), strict=True):
        if not only:
            training.until((folder / "metrics.jsonl").exists)
            training.until(lambda server=server, folder=folder: arrived(server, folder).lines["wandb-history.jsonl"])
        server.fault = fault
    for _, training in runs.values():
        training.end()
    for server in servers:
        server.stop()
        healthy.runs.update(server.runs)
    with healthy:
        yield healthy, runs


@pytest.mark.parametrize("name", LOST)
def test_what_could_not_be_sent_is_said_with_the_way_to_send_it(name, lost):
    _, runs = lost
    folder, training = runs[name]
    (warning,) = training.warnings
    assert warning.startswith("warning: Weights & Biases failed and is left out from here on (")
    assert warning.endswith(
        f": to send what it lacks run the same command with --output-dir '{folder}' --resume".replace(
            "'", "'" * (" " in name)
        )
    )
    assert "Weights & Biases: http" not in training.text
    assert len(read_lines(folder / "metrics.jsonl")) == 20 and (folder / "summary.json").exists()
    assert training.when("end") - training.when("epoch 20/20") < 4 + 4  # FINISH_TIMEOUT, and the process's own end


def test_that_way_sends_what_is_missing_and_nothing_twice(lost):
    """All in one process. The first run is tried once in vain: its new part, offline, is not the way then either."""
    server, runs = lost
    again = [run_of(folder, 20, "--seed", str(n), "--resume") for n, (folder, _) in enumerate(runs.values())]
    had = {name: len(arrived(server, folder).lines["wandb-history.jsonl"]) for name, (folder, _) in runs.items()}
    assert 0 < had["hang"] < 40 and 0 < had["refused key"] < 40, had
    server.fault = 401
    training = Training(server, again[0], *again)
    training.until(lambda: server.seen)
    server.fault = None
    training.end()
    assert "and a part of it online; to send what it lacks" in training.text and "wandb sync" not in training.text
    assert len(training.warnings) == 1, training.text
    for folder, _ in runs.values():
        steps = [step for epoch in range(20) for step in (63 * epoch + 50, 63 * epoch + 63)]
        assert_complete(server, folder, steps)
        assert not list((folder / "wandb").glob("offline-run-*"))
