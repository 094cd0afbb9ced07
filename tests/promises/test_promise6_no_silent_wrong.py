"""Promise 6: what cannot be done as asked is refused in one sentence, by every process, and nothing is lost."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy
import pytest
import torch
from conftest import PYTHON, REPOSITORY, call, clean_environment, free_port, torchrun
from PIL import Image
from torch.distributed import DistStoreError

from mnist_dist.core import Stopped, UserError
from mnist_dist.core.errors import STOPPED
from mnist_dist.digits.config import TrainConfig
from mnist_dist.digits.trained import TrainedModel, locate
from mnist_dist.run import launch, rendezvous, weights
from mnist_dist.run.command_line import parse
from mnist_dist.run.folder import settings_of
from mnist_dist.task import datasets, networks
from mnist_dist.task.recipes import RECIPES
from mnist_dist.tools import predict
from mnist_dist.usage import UsageError

sys.path.insert(0, str(REPOSITORY))
from evaluate import EvaluateConfig

QUICK = "--dataset mnist-5k --epochs 1 --cpu --wandb disabled".split()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--epochs 0", "--epochs 0 is not possible"),
        ("--epochs -3", "--epochs"),
        ("--epochs 1.5", "--epochs: .*'1.5'"),
        ("--epochs five", "--epochs: .*'five'"),
        ("--epochs 99999999999999999999", "--epochs 99999999999999999999 is not possible"),
        ("--epochs", "--epochs"),
        ("--epoch 3", "--epoch, 3: did you mean --epochs[?]"),
        ("--wandb_projekt a", "did you mean --wandb-project[?]"),
        ("--bogus", "--bogus"),
        ("stray", "stray"),
        ("--cpu maybe", "maybe"),
        ("--batch-size 0", "--batch-size 0 is not possible"),
        ("--lr 0", "--lr 0.0 is not possible"),
        ("--lr -1", "--lr -1.0 is not possible"),
        ("--lr nan", "--lr nan is not possible"),
        ("--lr inf", "--lr inf is not possible"),
        ("--hidden 0", "--hidden 0 is not possible"),
        ("--hidden 128 -1", "--hidden 128 -1 is not possible"),
        ("--hidden 99999999999", "at most 100,000,000 parameters"),
        ("--hidden wide", "--hidden: .*'wide'"),
        (
            "--hidden 64,32",
            "--hidden 64,32 is not possible: put spaces between the values, as in --hidden 64 32",
        ),
        ("--channels [8, 16]", r"--channels \[8, 16\] is not possible: .* as in --channels 8 16"),
        ("--model vgg", "'vgg' for argument '--model'"),
        ("--dataset cifar", "'cifar' for argument '--dataset'"),
        ("--dtype float16", "'float16' for argument '--dtype'"),
        ("--schedule linear", "'linear' for argument '--schedule'"),
        ("--channels", "--channels nothing is not possible: give 1 to 8 numbers from 1 to 1024"),
        ("--channels 8 8 8 8 8 8 8 8 8", "is not possible: give 1 to 8 numbers"),
        ("--channels 8 4096", "--channels 8 4096 is not possible"),
        (
            "--hidden --dropout 0.1",
            "--dropout 0.1 is not possible: give 0 to a network without hidden layers",
        ),
        (
            "--model cnn --channels 1024 --hidden 1000",
            "--hidden 1000 is not possible: give sizes that make at most",
        ),
        ("--recipe best-ever", "'best-ever' for argument '--recipe'"),
        ("--mixed-precision fp8", "'fp8' for argument '--mixed-precision'"),
        ("--warmup soon", "--warmup soon is not possible: give FLOAT"),
        ("--warmup 1", "--warmup 1.0 is not possible"),
        ("--warmup nan", "--warmup nan is not possible"),
        ("--weight-decay -0.1", "--weight-decay -0.1 is not possible"),
        ("--label-smoothing 1", "--label-smoothing 1.0 is not possible"),
        ("--dropout 1", "--dropout 1.0 is not possible: give a share from 0 to below 1"),
        ("--clip-norm nan", "--clip-norm nan is not possible"),
        ("--gradient-accumulation-steps 0", "--gradient-accumulation-steps 0 is not possible"),
        ("--gradient-accumulation-steps 65", "--gradient-accumulation-steps 65 is not possible"),
        ("--seed -1", "--seed -1 is not possible"),
        ("--seed 4294967296", "--seed 4294967296 is not possible"),
        ("--val-size -1", "--val-size -1 is not possible"),
        ("--log-every 0", "--log-every 0 is not possible"),
        ("--wandb-project a/b", "--wandb-project 'a/b' is not possible"),
        ("--data-dir README.md", "--data-dir README.md is not possible: give a folder"),
    ],
)
def test_wrong_flags_are_refused_by_name(words, complaint, capsys):
    with pytest.raises(UsageError, match=complaint) as refusal:
        parse(TrainConfig, words.split())
    assert refusal.value.status == 2
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("config", "words", "named"),
    [
        (TrainConfig, ["--output-dir", "", "--epochs", "1"], "--output-dir"),
        (TrainConfig, ["--data-dir="], "--data-dir"),
        (TrainConfig, ["--epochs", "1", "--output-dir", " "], "--output-dir"),
        (EvaluateConfig, ["runs/one", ""], "one of the arguments"),
    ],
)
def test_an_empty_value_is_refused(config, words, named, monkeypatch):
    """As from a shell variable that is not set: as a path it would mean the current folder."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    for args in (None, words):
        with pytest.raises(
            UsageError, match=f"^{named} has an empty value: give one, or leave it out"
        ):
            parse(config, args)


def test_help_is_in_groups_and_says_what_defaults_do(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--help"], prog="train.py")
    page = capsys.readouterr().out
    assert re.findall(r"^(\w+):$", page, re.MULTILINE) == ["data", "network", "training", "run"]
    found = re.findall(r"^  (?:-h, )?--([\w-]+)", page, re.MULTILINE)
    names = [field.name.replace("_", "-") for field in fields(TrainConfig)]
    on_by_default = ("plots", "report")
    off = [f"no-{name}" if name in on_by_default else name for name in names]
    assert sorted(found) == sorted(["help", *off])
    assert "None" not in page and "(default: runs/<timestamp>-<dataset>-<model>)" in re.sub(
        r"\s+", " ", page
    )
    assert max(map(len, page.splitlines())) <= 80 and "\x1b" not in page
    assert (
        page.index("--model")
        < page.index("--dropout")
        < page.index("--epochs")
        < page.index("--output-dir")
    )


def test_a_recipe_sets_what_flags_do_not():
    offered, _none = get_args(get_type_hints(TrainConfig)["recipe"])
    assert set(get_args(offered)) == RECIPES.keys()
    assert parse(TrainConfig, ["--recipe", "original"]) == TrainConfig(recipe="original")
    changed = parse(TrainConfig, "--lr 0.01 --recipe original --epochs 5".split())
    assert changed == TrainConfig(recipe="original", lr=0.01)
    for name in get_args(offered):
        assert parse(TrainConfig, ["--recipe", name, "--seed", "3"]) == TrainConfig(
            recipe=name, seed=3, **RECIPES[name]
        )


def assert_refused(done: subprocess.CompletedProcess, sentence: str, status: int = 1) -> None:
    """One line on standard error, which says so, and the status."""
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def assert_all_refused(
    done: subprocess.CompletedProcess, sentence: str, script: str = "train.py"
) -> None:
    """Under torchrun, which adds a report of its own: our line once, no traceback of ours, not success."""
    assert done.returncode != 0
    assert done.stderr.count(f"{script}: error: ") == 1, done.stderr
    assert sentence in done.stderr
    assert "]: Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "sentence", "status"),
    [
        ("--lr nan", "train.py: error: --lr nan is not possible", 2),
        ("--batch-size 4001", "--batch-size 4001 exceeds the 4000 training samples", 1),
        pytest.param(
            "--val-size 4000",
            "--val-size 4000 leaves nothing to train on",
            1,
            marks=pytest.mark.slow,
        ),
        ("--mixed-precision fp16", "--mixed-precision fp16 needs a GPU", 1),
        pytest.param(
            "--mixed-precision bf16 --dtype float64",
            "contradicts --mixed-precision bf16",
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--output-dir /dev/null/run",
            "'/dev/null/run': Not a directory",
            1,
            marks=pytest.mark.slow,
        ),
        ("--dataset mnist --data-dir /dev/null/data", "/dev/null/data", 1),
    ],
)
def test_the_script_ends_with_one_sentence(words, sentence, status, tmp_path):
    done = call(PYTHON, "train.py", *QUICK, "--output-dir", tmp_path / "run", *words.split())
    assert_refused(done, sentence, status)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"LOCAL_RANK": "abc"}, "--epochs 0 is not possible"),
        (
            {"ACCELERATE_TORCH_DEVICE": "bogus"},
            "look at the environment variables that begin with ACCELERATE_",
        ),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(environment, sentence, tmp_path):
    epochs = ["--epochs", "0"] if "epochs" in sentence else []
    done = call(
        PYTHON, "train.py", *QUICK, *epochs, "--output-dir", tmp_path / "run", **environment
    )
    assert_refused(done, sentence, 2 if epochs else 1)


@pytest.mark.parametrize("words", ["train.py", "evaluate.py", "-m mnist_dist"])
def test_a_variable_that_keeps_torch_from_being_imported_is_named(words):
    """It fails before anything is loaded, so all three take a second."""
    done = call(PYTHON, *words.split(), "--help", TQDM_MININTERVAL="abc")
    assert_refused(
        done,
        "error: tqdm cannot read the environment variable TQDM_MININTERVAL='abc' (could not convert",
    )


@pytest.mark.slow
def test_the_first_process_speaks_though_it_is_the_last_to_fail(tmp_path):
    """A launcher ends all processes as soon as one has failed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('LOCAL_RANK') == '0': time.sleep(1.5)\n"
    )
    command = [
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "train.py",
        *QUICK,
    ]
    environment = clean_environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        [*command, "--lr", "0"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert_all_refused(done, "--lr 0.0 is not possible")


@pytest.mark.slow
def test_a_closed_output_stream_is_no_failure(tmp_path):
    words = " ".join([PYTHON, "train.py", *QUICK, "--output-dir", str(tmp_path / "run")])
    for number, closed in enumerate((">&-", "2>&-", ">&- 2>&-")):
        assert call("bash", "-c", f"{words}{number} {closed}").returncode == 0, closed
        assert (tmp_path / f"run{number}" / "summary.json").exists()


def test_every_process_leaves_where_only_the_first_failed():
    done = torchrun(2, "train.py", *QUICK, "--output-dir", "/dev/null/run", timeout=120)
    assert_all_refused(done, "'/dev/null/run': Not a directory")


@pytest.mark.slow
def test_more_processes_than_samples_are_refused(tmp_path):
    flags = [*QUICK, "--val-size", "2", "--output-dir", tmp_path / "run"]
    done = torchrun(3, "train.py", *flags, timeout=120)
    assert_all_refused(done, "3 processes cannot share 2 samples")


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(tmp_path):
    """Each rank is started by hand, as two nodes would be, with its own flags."""
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [PYTHON, "train.py", *QUICK, "--output-dir", tmp_path / "run", "--lr"]
    running = [
        subprocess.Popen(
            [*command, f"0.{rank + 1}"],
            env=clean_environment(RANK=str(rank), LOCAL_RANK=str(rank), **common),
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [1, 1]
    differ = "the settings differ between processes 0 and 1 (--lr 0.1 against --lr 0.2)"
    assert differ in errors[0]
    assert "Traceback" not in errors[0] + errors[1] and "error" not in errors[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_waits_for_others_says_so_and_goes_on_when_they_come(tmp_path):
    """Each rank is started by hand, on a node of its own, the first one late."""
    port = str(free_port())
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    flags = [*QUICK, "--epochs", "1", "--output-dir", tmp_path / "run"]

    def started(rank: int) -> subprocess.Popen:
        environment = clean_environment(RANK=str(rank), **common)
        return subprocess.Popen(
            [PYTHON, "train.py", *flags],
            env=environment,
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )

    second = started(1)
    assert second.stderr
    lines = iter(second.stderr.readline, "")
    said = next(line for line in lines if "waiting" in line)
    assert said.startswith(
        f"waiting for all 2 processes to meet at 127.0.0.1:{port}, for 15 minutes at most"
    )
    first = started(0)
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], errors
    assert "waiting" not in "".join(errors)


@pytest.mark.slow
def test_a_process_that_finds_nobody_is_refused(tmp_path):
    impatient = "import runpy, sys, datetime; from mnist_dist.run import rendezvous; sys.argv[0] = 'train.py'; "
    impatient += "rendezvous.TIMEOUT = datetime.timedelta(seconds=1); runpy.run_path('train.py', run_name='__main__')"
    alone: dict[str, Any] = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_PORT": str(free_port()),
    }
    for address, reason in {"127.0.0.1": "Connection refused", "no-such-host.invalid": ""}.items():
        done = call(
            PYTHON,
            "-c",
            impatient,
            *QUICK,
            "--output-dir",
            tmp_path / "run",
            MASTER_ADDR=address,
            **alone,
        )
        assert_refused(done, f"nobody answers at {address}:{alone['MASTER_PORT']} ({reason}")
        assert "start all 2, with MASTER_ADDR" in done.stderr


def test_a_name_that_does_not_exist_is_not_waited_for(monkeypatch):
    """It is given the time that a container's may need to appear, and no quarter of an hour."""
    monkeypatch.setattr(rendezvous, "UNKNOWN", 0.2)
    begin = time.monotonic()
    with pytest.raises(DistStoreError, match=r"nobody answers at no-such-host\.invalid:29500 \("):
        rendezvous.reach("no-such-host.invalid", 29500, timedelta(minutes=15))
    assert time.monotonic() - begin < 60


def test_a_folder_that_holds_a_run_is_left_as_it_is(trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    done = call(PYTHON, "train.py", *QUICK, "--output-dir", trained)
    assert_refused(done, f"--output-dir {trained} already holds a run")
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_whose_numbers_break_says_at_which_update(tmp_path):
    exploding = "--lr 1000 --weight-decay 1000".split()
    done = call(PYTHON, "train.py", *QUICK, *exploding, "--output-dir", tmp_path / "run")
    assert_refused(done, "the loss of update ")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "mnist_model.pth").exists()


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_folder_are_refused(small_disk):
    disk, remount = small_disk
    remount("size=128k")
    done = call(PYTHON, "train.py", *QUICK, "--output-dir", disk / "run")
    assert_refused(done, "No space left on device")
    assert not (disk / "run" / "summary.json").exists()
    # An epoch that could not be saved is not evaluated.
    assert (disk / "run" / "metrics.jsonl").read_text() == ""
    remount("ro")
    done = call(PYTHON, "train.py", *QUICK, "--output-dir", disk / "other")
    assert_refused(done, "Read-only file system")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious()))


def wide(units: int) -> dict[str, torch.Tensor]:
    """Weights with so many hidden units, from one number."""
    shapes = {
        "fc1.weight": (units, 784),
        "fc1.bias": (units,),
        "fc2.weight": (10, units),
        "fc2.bias": (10,),
    }
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_text("no weights here"), "is damaged"),
        (write_pickle, "holds Python objects, which are not loaded"),
        (
            lambda path: torch.save(networks.MNISTNet(), path),
            "holds Python objects, which are not loaded",
        ),
        (
            lambda path: torch.save({"fc1.weight": Malicious()}, path),
            "holds Python objects, which are not loaded",
        ),
        (lambda path: torch.save([1, 2], path), "does not hold a state_dict"),
        (lambda path: torch.save({}, path), "does not hold a state_dict"),
        (
            lambda path: torch.save({"fc1.weight": torch.full((10, 784), float("nan"))}, path),
            "not finite numbers",
        ),
        (
            lambda path: torch.save({"fc1.weight": torch.zeros(10, 784).int()}, path),
            "holds fc1.weight as torch.int32",
        ),
        (
            lambda path: torch.save({"fc1.weight": torch.zeros(1).expand(10**6, 10**6)}, path),
            "holds 1,000,000,000,000",
        ),
        (
            lambda path: torch.save(wide(10**6), path),
            "holds 795,000,010 numbers, and here a model has at most 100,000",
        ),
        (
            lambda path: torch.save({"x": torch.zeros(1).to(torch.float8_e5m2)}, path),
            "as torch.float8_e5m2",
        ),
        (
            lambda path: torch.save(
                networks.MNISTNet((3,)).state_dict() | {"x": torch.zeros(1)}, path
            ),
            "x (1,)",
        ),
        (lambda _: None, "there is no model at"),
        (lambda path: path.mkdir(), "there is no model at"),
    ],
)
def test_bad_model_files_are_refused_and_run_nothing(make, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "model.pth")
    with pytest.raises(UserError) as refusal:
        networks.from_state_dict(weights.load_weights(locate(tmp_path / "model.pth").weights))
    assert sentence in str(refusal.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            "{}",
            b"\xff\xfe",
            '{"normalization": 3}',
            '{"dataset": 5, "normalization": {"mean": 1}}',
        ),
        pytest.param(100_000 * "[", id="deep"),
    ],
)
def test_settings_beside_a_model_that_are_none_are_refused(content, trained, tmp_path):
    shutil.copy(trained / "mnist_model.pth", tmp_path)
    (tmp_path / "config.json").write_bytes(
        content.encode() if isinstance(content, str) else content
    )
    with pytest.raises(UserError, match=r"config\.json are not those of a run"):
        locate(tmp_path)
    assert settings_of(tmp_path).keys() <= {"normalization", "dataset"}


def test_impossible_settings_are_refused_by_name(trained, tmp_path):
    shutil.copy(trained / "mnist_model.pth", tmp_path)
    settings = json.loads((trained / "config.json").read_text())
    assert locate(trained) == TrainedModel(trained / "mnist_model.pth", "mnist-5k")
    normalization = {"mean": 0.1307, "std": 0.0}
    for wrong, complaint in {
        "val_size is 'many'": {"val_size": "many"},
        "val_size is -1": {"val_size": -1},
        "seed is -1": {"seed": -1},
        "dataset is 'foo'": {"dataset": "foo"},
        "std is 0.0": {"normalization": normalization},
        "mean is nan": {"normalization": normalization | {"mean": float("nan"), "std": 1.0}},
    }.items():
        (tmp_path / "config.json").write_text(json.dumps(settings | complaint))
        with pytest.raises(UserError, match=wrong):
            locate(tmp_path)


def test_weights_from_before_a_run_went_on_are_named(trained, tmp_path, capsys):
    run = tmp_path / "my run"
    shutil.copytree(trained, run)
    locate(run)
    assert not capsys.readouterr().err
    (run / "summary.json").unlink()  # as a run does that is given more epochs
    locate(run)
    assert capsys.readouterr().err == (
        f"warning: {run}/mnist_model.pth may be older than the newest checkpoint of its run, which "
        "is not finished (it has no summary.json): to finish it, run its command again with "
        f"--output-dir '{run}' --resume\n"
    )
    shutil.rmtree(run / "checkpoints")  # a copy of the model and its settings is no run
    locate(run)
    shutil.copy(trained / "mnist_model.pth", run / "other.pth")
    locate(run / "other.pth")
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_the_evaluation_refuses_what_it_cannot_evaluate(trained, tmp_path):
    done = call(PYTHON, "evaluate.py", trained, "--split", "val", "--cpu")
    assert_refused(done, "evaluate.py: error: --split val: the run of")
    torch.save(
        {"fc1.weight": torch.zeros(11, 784), "fc1.bias": torch.zeros(11)}, tmp_path / "other.pth"
    )
    done = torchrun(2, "evaluate.py", tmp_path / "other.pth", "--cpu", timeout=120)
    assert_all_refused(done, "not those of a digit classifier", "evaluate.py")
    with pytest.raises(UsageError, match="'dev' for argument '--split'"):
        parse(EvaluateConfig, ["run", "--split", "dev"])


@pytest.mark.slow
def test_nothing_is_fetched_into_a_folder_that_a_file_from_elsewhere_names(trained, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    shutil.copy(trained / "mnist_model.pth", run)
    settings = json.loads((trained / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps(settings | {"dataset": "kmnist", "data_dir": str(elsewhere)})
    )
    nowhere: dict[str, Any] = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = call(PYTHON, REPOSITORY / "evaluate.py", run, "--cpu", cwd=tmp_path, **nowhere)
    assert_refused(done, "kmnist could not be downloaded into data (")
    assert not elsewhere.exists()


@pytest.mark.slow
def test_a_model_that_gives_no_numbers_is_refused(tmp_path):
    huge = {
        name: torch.full_like(tensor, 1e38)
        for name, tensor in networks.MNISTNet().state_dict().items()
    }
    torch.save(huge, tmp_path / "huge.pth")
    done = call(PYTHON, "evaluate.py", tmp_path / "huge.pth", "--dataset", "mnist-5k", "--cpu")
    assert_refused(done, "evaluate.py: error: the loss on the test samples is nan")
    assert {path.name for path in tmp_path.iterdir()} == {"huge.pth"}
    Image.fromarray(numpy.eye(28, dtype="uint8") * 255).save(tmp_path / "digit.png")
    with pytest.raises(UserError, match=r"huge\.pth gives .*digit\.png no finite probabilities"):
        predict.main(
            predict.Config(images=(tmp_path / "digit.png",), weights=tmp_path / "huge.pth")
        )


@pytest.mark.slow
def test_what_a_run_held_out_matters_to_an_evaluation_on_other_data_as_little_as_on_the_test_samples(
    trained, tmp_path
):
    shutil.copy(trained / "mnist_model.pth", tmp_path)
    settings = json.loads((trained / "config.json").read_text()) | {
        "dataset": "mnist",
        "val_size": 10_000,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for split in ("train", "test"):
        done = call(
            PYTHON, "evaluate.py", tmp_path, "--dataset", "mnist-5k", "--split", split, "--cpu"
        )
        assert done.returncode == 0, done.stderr


def test_paths_in_commands_can_be_pasted(capsys):
    def stops() -> None:
        raise Stopped("stopped", STOPPED, Path("my runs/one"))

    with pytest.raises(SystemExit):
        launch.run(stops, "train.py")
    with pytest.raises(SystemExit):
        launch.run(stops, "own.py", again="run the same command")
    said = capsys.readouterr().err
    assert "own.py: stopped: to resume, run the same command" in said
    assert "with --output-dir 'my runs/one' --resume" in said
    assert datasets.command_to_fetch("mnist", Path("my data")).endswith("--data-dir 'my data'")


@pytest.mark.slow
def test_where_the_reader_of_the_output_leaves_the_status_says_so(tmp_path):
    words = [PYTHON, "train.py", *QUICK, "--output-dir", str(tmp_path / "run")]
    done = call("bash", "-c", f"{' '.join(words)} | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert (
        done.returncode == 1
        and "its output is no longer read" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_where_the_reader_leaves_no_process_of_several_waits(tmp_path):
    """With the watch that there is on GPUs, whose farewell a process that left alone would wait for."""
    flags = [*QUICK, "--output-dir", str(tmp_path / "run")]
    spec = {"runs": [{"flags": flags, "fault": "a_process_is_watched"}], "forked": 2}
    read, write = os.pipe()
    os.close(read)
    begin = time.monotonic()
    done = subprocess.run(
        [PYTHON, REPOSITORY / "tests" / "driver.py", json.dumps(spec)],
        env=clean_environment(PYTHONPATH=str(REPOSITORY)),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    os.close(write)
    assert done.returncode == 1 and time.monotonic() - begin < 50, done.stderr
    assert "its output is no longer read" in done.stderr


def test_an_interrupted_run_claims_no_success(tmp_path):
    """SIGKILL in mid-run: a folder without summary.json, from which nothing was lost that was complete."""
    flags = "--dataset mnist-5k --epochs 100000 --cpu --wandb disabled --output-dir".split()
    process = subprocess.Popen(
        [PYTHON, "train.py", *flags, tmp_path / "run"], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not metrics.exists() or metrics.read_text().count("\n") < 2:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "run" / "summary.json").exists()
    complete = metrics.read_text().splitlines(keepends=True)
    epochs = [json.loads(line)["epoch"] for line in complete if line.endswith("\n")]
    assert epochs == list(range(1, len(epochs) + 1))
