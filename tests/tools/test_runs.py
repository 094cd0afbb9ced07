"""`python -m mnist_dist runs` says what is there, passes over what is damaged, and can be read by others."""

import contextlib
import csv
import io
import json
import math
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest
from conftest import without
from filelock import lock_descriptor

from mnist_dist.core import Stopped, UserError
from mnist_dist.digits.config import TrainConfig
from mnist_dist.records import files as runs_files
from mnist_dist.records import tables as runs_tables
from mnist_dist.run import folder as run_folder
from mnist_dist.run import launch, locks, provenance
from mnist_dist.run.command_line import as_json, parse
from mnist_dist.run.folder import Run
from mnist_dist.run.locks import is_running
from mnist_dist.run.tracking import Tracker
from mnist_dist.tools import runs


def write_run(folder, accuracies, done=True, seconds=12.5, config=None, **settings):
    """The files that a run with these test accuracies, one an epoch, leaves."""
    chosen = {"dataset": "mnist", "epochs": 3, "output_dir": folder} | settings
    values = as_json(TrainConfig(**chosen)) | {
        "wandb_id": folder.name,
        "num_processes": 1,
        "data_digest": "d",
    }
    values |= {"versions": {"torch": "2.15.0"}} | (config or {})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    lines = [
        {
            "epoch": number,
            "test_accuracy": accuracy,
            "test_total": 10_000,
            "test_loss": 1 - accuracy,
        }
        for number, accuracy in enumerate(accuracies, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (folder / "summary.json").write_text(json.dumps(lines[-1] | {"train_seconds": seconds}))
    return folder


@pytest.fixture
def several(tmp_path, monkeypatch):
    """Three seeds of one setting, one of another on two processes, and one that is not finished, in runs/."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write_run(tmp_path / f"runs/mlp-{seed}", [0.9, 0.95, 0.97 + seed / 100], seed=seed)
    write_run(
        tmp_path / "runs/cnn",
        [0.97, 0.98, 0.985],
        model="cnn",
        lr=0.01,
        config={"num_processes": 2},
    )
    write_run(tmp_path / "runs/begun", [0.8], done=False, val_size=1000)
    return tmp_path / "runs"


def call_runs(capsys, words: str):
    """What the command prints."""
    runs.main(parse(runs.Config, words.split(), prog="runs"))
    return capsys.readouterr()


@pytest.mark.usefixtures("several")
def test_a_line_for_each_run_that_says_what_differs(capsys):
    lines = call_runs(capsys, "").out.splitlines()
    assert lines[0] == "5 runs in runs: mnist, torch 2.15.0 (± standard error)"
    rows = {line.split()[0]: line for line in lines[3:]}
    assert rows.keys() == {"mlp-0", "mlp-1", "mlp-2", "cnn", "begun"}
    error = 100 * math.sqrt(0.98 * 0.02 / 10_000)
    assert rows["mlp-1"].split(maxsplit=5)[1:] == [
        *("done", "3/3", f"98.00±{error:.2f}", "12", "mlp, val_size 0, lr 0.001, seed 1, 1 process")
    ]
    assert rows["cnn"].endswith("12  cnn, val_size 0, lr 0.01, seed 0, 2 processes")
    assert rows["begun"].split()[1:4] == ["failed", "1/3", "80.00±0.40"]
    # What is the same is not repeated.
    assert "epochs" not in rows["cnn"] and "batch_size" not in rows["cnn"]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--sort test_accuracy", "begun mlp-0 mlp-1 cnn mlp-2"),
        ("--sort test_accuracy --reverse", "mlp-2 cnn mlp-1 mlp-0 begun"),
        ("--where model=mlp --sort seed --reverse", "mlp-2 mlp-1 begun mlp-0"),
        ("--where model=mlp state=done test-accuracy>=0.98", "mlp-1 mlp-2"),
        ("--where lr!=0.001", "cnn"),
        ("--where train_seconds<13 seed<1", "cnn mlp-0"),  # not the one that has no seconds
        ("--where hidden=128", ""),
        ("--where warmup=none seed=2", "mlp-2"),
        # Runs without a value come last.
        ("--sort train_seconds --reverse --where seed=0", "cnn mlp-0 begun"),
    ],
)
def test_sorted_and_filtered_by_any_column(capsys, words, expected):
    found = json.loads(call_runs(capsys, f"--json {words}").out)
    names = [row["run"].removeprefix("runs/") for row in found]
    if "--sort" in words:
        assert names == expected.split()
    else:
        assert sorted(names) == expected.split()


@pytest.mark.usefixtures("several")
def test_groups_of_seeds_have_mean_and_spread(capsys):
    mlp, cnn = sorted(
        json.loads(call_runs(capsys, "--json --group").out), key=lambda group: -group["runs"]
    )
    # The unfinished one is in none.
    assert (mlp["seeds"], mlp["runs"], cnn["runs"]) == (
        "0 1 2",
        3,
        1,
    )
    assert mlp["test_accuracy"] == pytest.approx(0.98) and mlp["test_deviation"] == pytest.approx(
        0.01
    )
    assert cnn["test_deviation"] is None
    text = call_runs(capsys, "--group").out
    assert "98.00±1.00" in text and "2 groups of seeds" in text


@pytest.mark.usefixtures("several")
def test_pandas_reads_it_in_one_line(capsys):
    table = pd.read_json(io.StringIO(call_runs(capsys, "--json").out))
    assert table.groupby("model").test_accuracy.max().to_dict() == {"cnn": 0.985, "mlp": 0.99}
    call_runs(capsys, "--csv --output runs.csv")
    assert pd.read_csv("runs.csv").equals(pd.read_csv(io.StringIO(call_runs(capsys, "--csv").out)))
    with Path("runs.csv").open() as file:
        assert next(csv.DictReader(file))["run"] == "runs/begun"


def test_a_table_fits_80_columns(several):
    rows = [
        runs_files.read(folder)[0] | {"run": f"runs/2026112{n}-101500-mnist-5k-mlp"}
        for n, folder in enumerate(sorted(several.iterdir()))
    ]
    for row in rows:
        row |= {
            "val_accuracy": 0.97,
            "val_error": 0.01,
            "label_smoothing": row["lr"],
            "weight_decay": row["lr"] * 10,
        }
    text = runs_tables.table(rows, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "label_smoothing 0.01" in text and len(
        runs_tables.table(rows, None).splitlines()
    ) == 3 + len(rows)


def test_the_state_of_a_run(tmp_path):
    folder = write_run(tmp_path / "run", [0.8], done=False)
    settings = json.loads((folder / "config.json").read_text()) | {"wandb": "disabled"}
    assert runs_files.read(folder)[0]["state"] == "failed"  # killed: nothing says why
    for error, state, reason in (
        (Stopped("stopped on request"), "stopped", "stopped on request"),
        (UserError("the loss of update 5 is nan"), "failed", "the loss of update 5 is nan"),
    ):
        with (
            pytest.raises(UserError),
            Tracker(launch.start(cpu=True), Run(folder, False, "", {}), settings),
        ):
            assert not (folder / "ended.json").exists()  # it goes on
            raise error
        row, _ = runs_files.read(folder)
        assert (row["state"], row["reason"]) == (state, reason)
    holder = os.open(folder, os.O_RDONLY)
    assert lock_descriptor(holder, blocking=False)
    assert is_running(folder) and runs_files.read(folder)[0]["state"] == "running"
    os.close(holder)
    assert not is_running(folder)
    with Tracker(launch.start(cpu=True), Run(folder, False, "", {}), settings):
        pass
    (folder / "summary.json").write_text('{"epoch": 1}')
    assert runs_files.read(folder)[0]["state"] == "done" and not (folder / "ended.json").exists()


DEEP = "[" * 100_000
DAMAGED: dict[str, dict[str, str | bytes]] = {
    "empty config": {"config.json": ""},
    "half a config": {"config.json": '{"epochs": 3, "se'},
    "a deep config": {"config.json": f'{{"epochs": {DEEP}'},
    "a list": {"config.json": "[1]"},
    "another program's": {"config.json": '{"architectures": ["Bert"]}'},
    "bytes": {"config.json": b"\xff\xfe\x00"},
    "nameless versions": {
        "config.json": '{"epochs": 1, "seed": 0, "wandb_id": "a", "versions": 3}'
    },
    "damaged metrics": {"metrics.jsonl": '{"epoch": 1\n{"epoch": 2}\n'},
    "deep metrics": {"metrics.jsonl": f'{{"epoch": {DEEP}\n'},
    "no accuracy": {"metrics.jsonl": '{"epoch": 1, "test_accuracy": "high", "test_total": 9}\n'},
    "accuracy of 97": {"metrics.jsonl": '{"epoch": 1, "test_accuracy": 97.0, "test_total": 9}\n'},
    "infinite": {"metrics.jsonl": '{"epoch": Infinity}\n'},
    "a number of 4000 digits": {"metrics.jsonl": '{"epoch": ' + "9" * 4000 + "}\n"},
    "a list in metrics": {"metrics.jsonl": "[]\n"},
    "a deep summary": {"summary.json": f'{{"train_seconds": {DEEP}'},
    "seconds in words": {"summary.json": '{"train_seconds": "long"}'},
}


def test_what_is_damaged_is_named_and_passed_over(tmp_path, capsys):
    write_run(tmp_path / "good", [0.9, 0.95, 0.97])
    for name, files in DAMAGED.items():
        folder = write_run(tmp_path / name, [0.9], done=False)
        for file, content in files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "no run").mkdir()
    (tmp_path / "a search").mkdir()
    (tmp_path / "a search" / run_folder.JOURNAL).touch()
    os.mkfifo(write_run(tmp_path / "a pipe", [0.9], done=False) / "summary.json")
    (tmp_path / "\x1b[31mred\udc80").mkdir()
    found = call_runs(capsys, f"{tmp_path} --json")
    assert [row["run"] for row in json.loads(found.out)] == [str(tmp_path / "good")]
    assert "\x1b" not in found.err
    for name in (*DAMAGED, "no run", "a pipe", "?[31mred?"):
        (line,) = [
            line for line in found.err.splitlines() if f"{tmp_path / name} is passed over: " in line
        ]
        assert len(line) < 300 + len(str(tmp_path))
    assert len(found.err.splitlines()) == len(DAMAGED) + 3


def test_odd_values_do_no_harm(tmp_path, capsys):
    odd = {
        "recipe": "\x1b[2J" + "x" * 10_000,
        "extra": {"a": [1, {"b": None}]},
        "lr": 10**400,
        "seed": None,
    }
    write_run(tmp_path / "odd", [0.9], done=True, config=odd)
    write_run(tmp_path / "plain", [0.9], done=True, config={"extra": "1", "seed": "0"})
    half = write_run(tmp_path / "half", [0.9], done=False)
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "test_accu')  # being written
    for words in (
        "",
        "--group",
        "--csv",
        "--json",
        "--group --csv",
        "--where lr>1",
        "--sort seed",
        "--sort lr",
    ):
        found = call_runs(capsys, f"{tmp_path} {words}")
        assert not found.err
        if words in ("", "--group"):
            assert "\x1b" not in found.out and max(map(len, found.out.splitlines())) < 1000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("nowhere", "there is not a folder nowhere"),
        ("empty", "there is no run in empty: train one with `python train.py`"),
        (
            "runs --where modle=cnn",
            "--where modle=cnn is not possible: give a condition on one of run, state, ",
        ),
        ("runs --where lr>=O.1", "--where lr>=O.1 is not possible: lr is a number, so give one"),
        ("runs --where model", "--where model is not possible: give a condition such as model=cnn"),
        ("runs --sort accuracy", "--sort accuracy is not possible: give one of run, state, "),
        ("runs --json --csv", "--json with --csv is not possible"),
        (
            "runs --plot curves.jpg",
            "--plot curves.jpg is not possible: give a .png, .pdf or .svg file",
        ),
    ],
)
def test_what_is_refused(several, words, complaint):
    (several.parent / "empty").mkdir()
    with pytest.raises(UserError) as error:
        runs.main(parse(runs.Config, words.split(), prog="runs"))
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_curves_are_drawn_as_the_name_says(several, capsys, suffix, magic):
    call_runs(capsys, f"--plot curves.{suffix}")
    content = (several.parent / f"curves.{suffix}").read_bytes()
    assert content.startswith(magic)
    if suffix == "svg":  # text is in comments
        assert (
            b"lr 0.001, val_size 0 (3 seeds)" in content
            or b"val_size 0, lr 0.001 (3 seeds)" in content
        )


def test_the_code_s_digest_covers_all_code(tmp_path, monkeypatch):
    (tmp_path / "mnist_dist" / "tools").mkdir(parents=True)
    files = [
        tmp_path / name
        for name in ("train.py", "evaluate.py", "mnist_dist/a.py", "mnist_dist/tools/b.py")
    ]
    for file in files:
        file.write_text("1")
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "mnist_dist")
    digests = {provenance.code_digest()}
    for file in files:
        file.write_text("2")
        digests.add(provenance.code_digest())
    files[-1].rename(files[-1].with_name("c.py"))
    assert len(digests | {provenance.code_digest()}) == 6
    assert provenance.commit() is None  # no checkout


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()  # not a repository either
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert provenance.commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None


def test_the_commit_is_that_of_this_checkout_and_of_no_other(tmp_path, monkeypatch):
    if not shutil.which("git"):
        without("there is no git")

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert provenance.commit() == git("rev-parse", "HEAD").strip()
    (tmp_path / "file").write_text("2")
    assert provenance.commit() == git("rev-parse", "HEAD").strip() + "-dirty"
    # As if the package were installed into an environment inside this folder.
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path / "site-packages")
    assert provenance.commit() is None


def test_who_looks_whether_a_run_is_running_keeps_nobody_from_it(tmp_path):
    looking = os.open(tmp_path, os.O_RDONLY)
    assert lock_descriptor(looking, blocking=False)
    threading.Timer(0.02, os.close, [looking]).start()
    locks.lock(tmp_path)
    with pytest.raises(UserError, match="another process is writing the run"):
        locks.lock(tmp_path)


def test_who_launched_a_run_is_no_setting(tmp_path, capsys):
    for seed in range(2):
        job = {
            "launchers": [f"node:{seed}"],
            "slurm_job": None,
            "slurm_step": None,
            "slurm_restarts": 0,
        }
        write_run(tmp_path / f"runs/{seed}", [0.9], epochs=1, seed=seed, config={"job": job})
    (group,) = json.loads(call_runs(capsys, f"{tmp_path}/runs --group --json").out)
    assert (group["seeds"], group["runs"]) == ("0 1", 2)
    assert "launchers" not in call_runs(capsys, f"{tmp_path}/runs").out


def test_a_seed_trained_twice_with_the_same_bits_counts_once(tmp_path, capsys):
    accuracies = {"first": 0.97, "second": 0.98, "repeated": 0.97}
    for name, accuracy in accuracies.items():
        write_run(tmp_path / f"runs/{name}", [accuracy], epochs=1, seed=int(name == "second"))
    (group,) = json.loads(call_runs(capsys, f"{tmp_path}/runs --group --json").out)
    assert (group["seeds"], group["runs"]) == ("0 1", 2)
    assert group["test_accuracy"] == pytest.approx(0.975)
    # Other bits, as another number of processes gives them, are another run.
    write_run(tmp_path / "runs/unlike", [0.96], epochs=1, seed=0)
    (group,) = json.loads(call_runs(capsys, f"{tmp_path}/runs --group --json").out)
    assert (group["seeds"], group["runs"]) == ("0 1", 3)


def test_a_link_to_what_is_gone_is_named_with_its_target(several, capsys):
    for name in ("broken", "runs/lost"):
        (several.parent / name).symlink_to(several.parent / "gone")
    with pytest.raises(UserError) as error:
        call_runs(capsys, "broken")
    sentence = f"is a symbolic link to {several.parent / 'gone'}, which is not there"
    assert f"broken {sentence}" in str(error.value)
    found = call_runs(capsys, "runs")
    assert found.out.startswith("5 runs in runs")
    assert found.err == f"warning: runs/lost is passed over: runs/lost {sentence}\n"


def test_relative_and_absolute_folders_are_shown_together(several, capsys):
    write_run(several.parent / "elsewhere" / "far", [0.9])
    found = call_runs(capsys, f"runs {several.parent / 'elsewhere'}").out
    title, _, _, *lines = found.splitlines()
    assert title.startswith(f"6 runs in {several.parent}: ")
    assert {line.split()[0] for line in lines} >= {"runs/cnn", "runs/mlp-0", "elsewhere/far"}


def test_runs_without_a_folder_in_common_keep_their_names():
    rows = [{"run": "/one/run"}, {"run": "/two/run"}]
    assert runs_tables.common_parent(rows) == Path()


@contextlib.contextmanager
def another_user():
    """Without the rights of root, who may look everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("place", ["lost+found", "group/private"])
def test_what_may_not_be_looked_into_is_named_and_passed_over(place, tmp_path, monkeypatch, capsys):
    # Relative paths from here: the folders above belong to the user who runs the tests, and may be closed to others.
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    runs_folder = Path("runs")
    write_run(runs_folder / "mine", [0.9])
    write_run(runs_folder / "group" / "ours", [0.9])
    closed = runs_folder / place
    closed.mkdir()
    closed.chmod(0o000)
    try:
        with another_user():
            found = call_runs(capsys, f"{runs_folder} --json")
            with pytest.raises(OSError, match="Permission denied"):  # named, it is an error
                call_runs(capsys, f"{closed}")
    finally:
        closed.chmod(0o755)  # for pytest, which removes it
    names = [row["run"] for row in json.loads(found.out)]
    assert names == [str(runs_folder / "group" / "ours"), str(runs_folder / "mine")]
    assert found.err == f"warning: {closed} is passed over: Permission denied\n"


def test_dollars_in_a_folder_s_name_are_no_formula(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a$\\frac$b", [0.9], epochs=1)
    call_runs(capsys, f"{tmp_path}/runs --plot {tmp_path}/curves.svg")
    assert b"a$\\frac$b" in (tmp_path / "curves.svg").read_bytes()
