"""Weights & Biases online: what arrives at a server, and what becomes of it if that fails; see wandb_server.py."""

import contextlib
import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, REPOSITORY, call, clean_environment, read_lines, torchrun
from wandb_server import HISTORY, Run, Server

from mnist_dist.run import wandb_run

pytestmark = pytest.mark.slow

FLAGS = "--dataset mnist-5k --cpu --wandb-model --epochs".split()
PROMPT = {  # in whole seconds, not 15 and 2: rows arrive while a short run goes on, also after a fault
    "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",
}


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
        assert self.process.stdout
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
    assert [
        {key: row[key] for key in line} for row, line in zip(by_epoch, lines, strict=True)
    ] == lines
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
    assert (right, sum(count for *_, count in confusion["data"])) == (
        lines[-1]["test_correct"],
        1000,
    )
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
        assert (
            f"Weights & Biases: {server.address}/me/mnist-dist/runs/" in done.stdout
            and not done.stderr
        )
        assert len(server.runs) == 1 and arrived(server, folder).name == "my run"
        assert_complete(server, folder, [50, 61, 111, 122, 172, 183])


def test_a_run_that_fails_is_killed_and_goes_on_is_one_run_with_one_history(tmp_path):
    """It fails between an epoch's last update and its evaluation, in the middle of what is one row."""
    folder, flags = tmp_path / "run", ("--batch-size", "134")  # 30 updates an epoch
    with Server() as server:
        Training(server, run_of(folder, 10, *flags, fault="evaluation_fails")).end(1)
        assert arrived(server, folder).exit_code == 1
        killed = Training(server, run_of(folder, 10, *flags, "--resume", fault="slow_process"))
        killed.until(lambda: len(arrived(server, folder).lines[HISTORY]) >= 2)
        killed.process.send_signal(signal.SIGKILL)
        killed.end(-signal.SIGKILL)
        last = Training(server, run_of(folder, 10, *flags, "--resume")).end()
        assert not last.warnings, last.text
        assert len(server.runs) == 1
        assert_complete(server, folder, list(range(30, 301, 30)))


# The fault that is there when a run begins.
UNABLE: dict[str, int | str] = {"hang at first": "hang", "key refused at first": 401}
# The fault that begins in the middle of a run and stays, and the requests that meet it.
LOST: dict[str, tuple[int | str, str]] = {
    "hang": ("hang", ""),
    "artifacts refused": (403, "/storage/artifact"),
}

EPOCHS = dict.fromkeys(UNABLE, 2) | dict.fromkeys(LOST, 8) | {"comes back": 20}
TIMEOUTS = {
    "START_WAIT": 1,
    "START_TIMEOUT": 15,
    "FINISH_TIMEOUT": 8,
    "ANSWER_TIMEOUT": 1,
    "RETRY_WAIT": 1,
}


ROWS = ("--log-every", "21")  # three rows an epoch of 63 updates


def steps(epochs: int) -> list[int]:
    """The updates whose rows there are."""
    return list(range(21, 63 * epochs + 1, 21))


def count(server: Server) -> int:
    """How many rows have arrived."""
    return sum(len(run.lines[HISTORY]) for run in server.runs.values())


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> Iterator[dict[str, tuple[Server, Path, Training]]]:
    """Runs that have ended, all at once, for they mostly wait: each with a server of its own that fails in its way."""
    root = tmp_path_factory.mktemp("failing")
    runs: dict[str, tuple[Server, Path, Training]] = {}
    with contextlib.ExitStack() as stack:
        for number, (name, epochs) in enumerate(EPOCHS.items()):
            server = stack.enter_context(Server())
            server.fault = UNABLE.get(name)
            timeouts = {
                key: TIMEOUTS[key] for key in TIMEOUTS if key != "FINISH_TIMEOUT" or name in LOST
            }
            slow = None if name in UNABLE else "slow_process"
            run = run_of(root / name, epochs, *ROWS, "--seed", str(number), fault=slow)
            runs[name] = server, root / name, Training(server, run, **timeouts)
        waiting = dict(LOST)
        while waiting:
            for name, (fault, only) in list(waiting.items()):
                server, _, training = runs[name]
                assert training.process.poll() is None, training.text
                if count(server):
                    server.fault, server.only = fault, only
                    del waiting[name]
            time.sleep(0.02)
        fail_and_come_back(*runs["comes back"])
        for _, _, training in runs.values():
            training.end()
        yield runs


def has_seen_more(server: Server, than: int) -> bool:
    """Whether another request has come."""
    return len(server.seen) > than


def fail_and_come_back(server: Server, _: Path, training: Training) -> None:
    """Every fault in turn, each until a request has met it and more; the run streams on after it."""

    def streams() -> None:
        before = count(server)
        training.until(lambda: count(server) > before)

    for fault in (500, 429, "close", "hang"):
        streams()
        asked = len(server.seen)
        server.fault = fault
        training.until(partial(has_seen_more, server, asked))
        time.sleep(0.2)
        server.fault = None
    streams()
    server.stop()
    time.sleep(1)
    server.start()


@pytest.mark.parametrize("name", UNABLE)
def test_a_server_that_cannot_begin_a_run_costs_a_warning_and_little_time(name, failing):
    _, _, training = failing[name]
    (warning,) = training.warnings
    assert warning.startswith("warning: Weights & Biases goes offline for this run (")
    # START_TIMEOUT and more if it were waited for; the rest is the epoch, on a machine that is busy.
    assert training.when("epoch 1/") - training.when("mlp with") < TIMEOUTS["START_WAIT"] + 10
    assert wandb_run.START_WAIT <= 5 and wandb_run.START_TIMEOUT <= 10


def test_the_command_printed_sends_all_of_a_run_that_could_not_begin(failing):
    """One command for all: most of its time goes into its start."""
    paths, folders = [], [failing[name][1] for name in UNABLE]
    for name, folder in zip(UNABLE, folders, strict=True):
        lines = [line for _, line in failing[name][2].lines]
        command = shlex.split(
            lines[lines.index("Weights & Biases has this run offline; send it with:") + 1]
        )
        (part,) = (folder / "wandb").glob("*run-*-*")
        assert command == ["wandb", "sync", str(part)]
        paths.append(command[-1])
    with Server() as server:
        environment: dict[str, Any] = server.environment
        done = call(PYTHON, "-m", "wandb", "sync", *paths, **environment)
        assert done.returncode == 0, done.stderr
        assert len(server.runs) == len(folders)
        for folder in folders:
            assert_complete(server, folder, steps(2))


def test_a_server_that_fails_in_the_middle_and_comes_back_gets_all(failing):
    server, folder, training = failing["comes back"]
    assert not training.warnings, training.text
    assert_complete(server, folder, steps(20))


@pytest.mark.parametrize("name", LOST)
def test_what_could_not_be_sent_is_said_with_the_way_to_send_it(name, failing):
    _, folder, training = failing[name]
    (warning,) = training.warnings
    assert warning.startswith("warning: Weights & Biases failed and is left out from here on (")
    way = f"to upload the rest, run the same command with --output-dir {shlex.quote(str(folder))} --resume"
    assert warning.endswith(f"): {way}")
    assert "Weights & Biases: http" not in training.text
    assert len(read_lines(folder / "metrics.jsonl")) == 8 and (folder / "summary.json").exists()
    assert training.when("end") - training.when("epoch 8/") < TIMEOUTS["FINISH_TIMEOUT"] + 40


def test_that_way_sends_what_is_missing_and_no_row_twice(failing):
    """The first is tried once in vain before: its new part, which is offline, must not be sent by itself either."""
    numbers = {name: list(failing).index(name) for name in LOST}
    again = [
        run_of(failing[name][1], 8, *ROWS, "--seed", str(numbers[name]), "--resume")
        for name in LOST
    ]
    with Server() as server:
        for name in LOST:
            server.runs.update(failing[name][0].runs)
        assert count(failing["hang"][0]) > 0, "else there is nothing to double"
        server.fault = 401
        in_vain = Training(server, again[0]).end()
        assert (
            "and a part of it online; to upload the rest" in in_vain.text
            and "wandb sync" not in in_vain.text
        )
        server.fault = None
        training = Training(server, *again).end()
        assert not training.warnings, training.text
        for name in LOST:
            assert_complete(server, failing[name][1], steps(8))
            assert not list((failing[name][1] / "wandb").glob("offline-run-*"))
