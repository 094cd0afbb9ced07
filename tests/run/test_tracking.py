"""Weights & Biases: the offline run read back, and everything that can go wrong with it."""

import json
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PYTHON, REPOSITORY, call, clean_environment, read_lines, torchrun, train_py

from mnist_dist.run import launch, wandb_run
from mnist_dist.run.folder import Run
from mnist_dist.run.tracking import Tracker

FLAGS = "--dataset mnist-5k --cpu --epochs 3 --output-dir".split()
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def records(folder: Path) -> Iterator[Any]:
    """What W&B wrote for the one offline run in a run's folder.

    The format: a 7-byte header, then LevelDB's log framing (32 KiB blocks; crc, length, type), each record a
    serialized `wandb_internal_pb2.Record`.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = path.read_bytes()
    parts, position = b"", 7
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        crc, size, kind = struct.unpack_from("<IHB", content, position)
        chunk = content[position + 7 : position + 7 + size]
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == crc
        position += 7 + size
        parts = chunk if kind in (1, 2) else parts + chunk  # full and first; middle and last
        if kind in (2, 3):
            continue
        yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]


def read_offline_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Settings, history rows and artifact types of the one offline run in a run's folder."""
    config, history, artifacts = {}, [], []
    for record in records(folder):
        for item in (*record.run.config.update, *record.config.update):
            config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            history.append(
                {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
        if record.HasField("artifact"):
            artifacts.append(record.artifact.type)
    return config, history, artifacts


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A finished run with W&B offline, by two processes."""
    run = tmp_path_factory.mktemp("offline") / "my run"
    done = torchrun(
        2, "train.py", *FLAGS, run, "--wandb-model", "--val-size", "100", "--wandb", "offline"
    )
    assert done.returncode == 0, done.stderr
    return run, done


def test_the_offline_run_holds_the_settings_and_equals_the_metrics_file(offline):
    run, _ = offline
    config, history, _ = read_offline_run(run)
    written = json.loads((run / "config.json").read_text())
    assert written.items() <= config.items()
    lines = read_lines(run / "metrics.jsonl")
    rows = {row["epoch"]: row for row in history if "epoch" in row}
    assert sorted(rows) == [1, 2, 3]
    for line in lines:
        row = rows[line["epoch"]]
        assert {key: row[key] for key in line} == line
        assert row["_step"] == line["global_step"]
    assert sum("epoch" in row for row in history) == 3  # by one process, each epoch once


def test_the_offline_run_holds_the_curves_and_what_belongs_to_the_end(offline):
    run, _ = offline
    _, history, artifacts = read_offline_run(run)
    curve = [row for row in history if "train/loss" in row]
    # Every 50 updates, and at epoch ends.
    assert [row["_step"] for row in curve] == [
        50,
        61,
        111,
        122,
        172,
        183,
    ]
    first_epoch = (
        50 * 64 * curve[0]["train/loss"] + (3900 - 50 * 64) * curve[1]["train/loss"]
    ) / 3900
    assert first_epoch == pytest.approx(read_lines(run / "metrics.jsonl")[0]["train_loss"])
    assert all(row["train/learning_rate"] == 0.001 for row in curve)
    end = history[-1]
    assert end["mistakes._type"] == "table-file" and end["mistakes.nrows"] == 50
    assert end["confusion_matrix_table.nrows"] == 10 * 10
    assert sorted(set(artifacts) & {"model", "report"}) == ["model", "report"]


def test_the_end_says_how_to_send_it(offline):
    run, done = offline
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert f"wandb sync '{folder}'\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Test Accuracy: ")


@pytest.mark.slow
def test_a_run_that_was_killed_and_stopped_is_one_run_with_one_history(tmp_path):
    """Killed, resumed and asked to stop, resumed: one offline part, equal to that of a run that was never stopped."""
    flags = [
        *FLAGS[:-1],
        "--epochs",
        "20",
        "--checkpoint-every",
        "11",
        "--wandb",
        "offline",
        "--output-dir",
    ]
    done = train_py(*flags, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    for harm, more in ((signal.SIGKILL, []), (signal.SIGTERM, ["--resume"])):
        command = [PYTHON, "train.py", *map(str, [*flags, run, *more])]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=clean_environment(), stderr=subprocess.DEVNULL
        )
        before = (run / "metrics.jsonl").stat().st_size if more else 0
        while not (
            (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > before
        ):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(harm)
        assert process.wait(timeout=60) == (75 if harm == signal.SIGTERM else -harm)
    ends = [record.WhichOneof("record_type") for record in records(run)]
    assert "preempting" in ends and "exit" in ends, "asked to stop it has not failed"
    done = train_py(*flags, run, "--resume")
    assert done.returncode == 0, done.stderr

    def timeless(folder: Path) -> list[dict[str, Any]]:
        changing = ("_timestamp", "_runtime", "samples_per_second")
        rows = read_offline_run(folder)[1]
        return [
            {key: row[key] for key in row if not key.endswith(changing) and "." not in key}
            for row in rows
        ]

    assert timeless(run) == timeless(tmp_path / "whole")
    steps = [row["_step"] for row in timeless(run)]
    assert steps == sorted(set(steps))
    (part,) = (run / "wandb").glob("offline-run-*")
    assert part.name.endswith(json.loads((run / "config.json").read_text())["wandb_id"])


def driver_alone(
    flags: list, *, timeouts: Mapping[str, float], **environment: str
) -> subprocess.Popen:
    """The watched script in one process, with shorter patience for W&B."""
    spec = {"runs": [{"flags": [str(flag) for flag in flags]}], "timeouts": timeouts}
    return subprocess.Popen(
        [PYTHON, "tests/driver.py", json.dumps(spec)],
        cwd=REPOSITORY,
        env=clean_environment(PYTHONPATH=str(REPOSITORY), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_only_a_warning(process: subprocess.Popen, run: Path, warning: str) -> None:
    """The run succeeded, and standard error holds that one line."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (run / "summary.json").exists()
    assert errors.count("\n") == 1, errors
    assert errors.startswith("warning: Weights & Biases") and warning in errors, errors


@pytest.mark.parametrize(
    ("harm", "warning"),
    [
        pytest.param(psutil.Process.kill, "left out from here on", marks=pytest.mark.slow),
        pytest.param(psutil.Process.suspend, "no answer within 3 s", marks=pytest.mark.slow),
    ],
)
def test_its_service_killed_or_stopped_in_mid_run_costs_a_warning(harm, warning, tmp_path):
    run, timeouts = tmp_path / "run", {"FINISH_TIMEOUT": 3}
    process = driver_alone([*FLAGS, run, "--epochs", "40", "--wandb", "offline"], timeouts=timeouts)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    (service,) = (
        child
        for child in psutil.Process(process.pid).children()
        if child.name().startswith("wandb-core")
    )
    harm(service)
    assert_only_a_warning(process, run, warning)
    assert len(read_lines(run / "metrics.jsonl")) == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "warning"),
    [
        # No network.
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": NOWHERE}, "goes offline for this run"),
        ({"WANDB_API_KEY": "short"}, "goes offline for this run (WANDB_API_KEY invalid"),
        (
            {"WANDB_MODE": "no", "WANDB_BASE_URL": "no"},
            "offline for this run (it cannot read WANDB_MODE='no', WANDB_B",
        ),
    ],
)
def test_no_network_a_bad_key_or_a_bad_mode_cost_a_warning(environment, warning, tmp_path):
    timeouts = {"START_TIMEOUT": 3}
    process = driver_alone([*FLAGS, tmp_path / "run"], timeouts=timeouts, **environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "summary.json").exists()
    lines = errors.splitlines()
    assert 1 <= len(lines) <= 2 and all(
        line.startswith("warning: Weights & Biases") for line in lines
    ), errors
    assert warning in errors
    assert len(read_offline_run(tmp_path / "run")[1]) > 0


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (None, None),
        ("no JSON at all", None),
        ('{"text": "of another version"}', None),
        ('{"level": "INFO", "msg": "sent"}\n{"level": "ERROR", "msg": "api: 500"}', None),
        (
            '{"level": "INFO", "msg": "sent"}\n{"level": "ERROR", "msg": "artifact refused\\nmore"}',
            "artifact refused",
        ),
    ],
)
def test_what_its_own_log_says_of_what_it_could_not_send(lines, found, tmp_path):
    (tmp_path / "logs").mkdir()
    if lines is not None:
        (tmp_path / "logs" / "debug-internal.log").write_text(lines)
    assert wandb_run.upload_error(tmp_path) == found


@pytest.mark.parametrize(
    ("flag", "variable", "expected"),
    [
        ("auto", None, "auto"),
        ("auto", "disabled", "disabled"),
        ("auto", "offline", "offline"),
        ("offline", "disabled", "offline"),
        ("disabled", "online", "disabled"),
        (None, "online", "disabled"),
    ],
)
def test_the_variable_decides_where_the_flag_does_not(flag, variable, expected, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_run.mode_of({"wandb": flag} if flag else {}) == expected


def test_disabled_by_the_environment_it_leaves_the_offline_history(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    part = tmp_path / "wandb" / "offline-run-20261130_120000-abc"
    part.mkdir(parents=True)
    run = Run(tmp_path, True, "abc", {})
    with Tracker(launch.start(cpu=True), run, {"wandb": "auto", "wandb_project": "p"}) as tracker:
        assert tracker.wandb is None
    assert part.exists()


@pytest.mark.slow
def test_disabled_means_that_it_is_not_even_imported(tmp_path):
    code = "import sys, train; sys.argv = ['train.py', *sys.argv[1:]]; train.main(); print('wandb' in sys.modules)"
    done = call(PYTHON, "-c", code, *FLAGS, tmp_path / "run", "--wandb", "disabled")
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert not (tmp_path / "run" / "wandb").exists()
