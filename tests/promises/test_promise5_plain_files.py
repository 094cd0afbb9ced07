"""Promise 5: what a run leaves is read by plain PyTorch and plain JSON, without this project."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ACCELERATE, PYTHON, REPOSITORY, call, read_lines
from torch import nn

from mnist_dist.run.provenance import code_digest
from mnist_dist.task.data import load


class Stranger(nn.Module):
    """Written from the README's description alone."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


def assert_a_stranger_gets_the_same_accuracy(run):
    model = Stranger()
    model.load_state_dict(torch.load(run / "mnist_model.pth", weights_only=True))
    test = load("mnist-5k", Path()).test
    with torch.no_grad():
        logits = model(test.images)
    summary = json.loads((run / "summary.json").read_text())
    assert (logits.argmax(1) == test.labels).sum().item() == summary["test_correct"]
    assert torch.nn.functional.cross_entropy(logits.double(), test.labels) == pytest.approx(
        summary["test_loss"], 1e-6
    )


def test_a_stranger_can_load_the_model(trained):
    assert_a_stranger_gets_the_same_accuracy(trained)


@pytest.mark.slow
def test_also_where_several_processes_in_mixed_precision_trained_it(tmp_path):
    flags = "--dataset mnist-5k --epochs 1 --wandb disabled --cpu --output-dir".split()
    launch = (*ACCELERATE, "--num_processes", "2", "--mixed_precision", "bf16")
    done = call(*launch, "train.py", *flags, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "2 processes on CPU (gloo), mixed precision bf16" in done.stdout
    weights = torch.load(tmp_path / "run" / "mnist_model.pth", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    # The weights are evaluated as they are stored.
    assert_a_stranger_gets_the_same_accuracy(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] > 0.8


def test_the_folder_holds_what_the_readme_says(trained):
    assert {path.name for path in trained.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "mnist_model.pth",
        "plots",
        "report.html",
        "checkpoints",
    }
    assert {path.name for path in (trained / "plots").iterdir()} == {
        "confusion_matrix.png",
        "learning_curves.png",
        "mistakes.png",
        "reliability.png",
    }
    config = json.loads((trained / "config.json").read_text())
    assert (
        config["dataset"] == "mnist-5k" and config["hidden"] == [128, 64] and config["lr"] == 0.001
    )
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    assert config["normalization"] == {"mean": 0.1307, "std": 0.3081}
    assert config["command"].startswith(f"{PYTHON} train.py --dataset mnist-5k --cpu")
    assert config["code"] == code_digest() and (config["threads"], config["num_processes"]) == (
        1,
        1,
    )
    assert (
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", config["date"])
        and config["processor"]
    )
    if (REPOSITORY / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", config["commit"])
    lines = read_lines(trained / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert line.keys() == {
            *("epoch", "global_step", "train_loss", "learning_rate", "samples_per_second"),
            *("test_loss", "test_accuracy", "test_correct", "test_total"),
        }
        assert line["test_accuracy"] == line["test_correct"] / line["test_total"]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    summary = json.loads((trained / "summary.json").read_text())
    of_the_end = {key: value for key, value in lines[-1].items() if key != "samples_per_second"}
    assert summary.items() >= of_the_end.items()
    assert (summary["dataset"], summary["train_samples"], summary["num_processes"]) == (
        "mnist-5k",
        4000,
        1,
    )
    assert (summary["parameters"], summary["model"]) == (109_386, "mlp")
    assert summary["train_seconds"] > 0


@pytest.mark.slow
def test_held_out_samples_are_reported_beside_the_test_set(tmp_path):
    flags = "--dataset mnist-5k --epochs 1 --wandb disabled --cpu --val-size 500 --model cnn --batch-size 500".split()
    done = call(PYTHON, "train.py", *flags, "--output-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert (line["val_total"], line["test_total"], line["global_step"]) == (500, 1000, 7)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train_samples"] == 3500
    plots = tmp_path / "run" / "plots"
    own = {path: path.read_bytes() for path in plots.iterdir()}
    for kind in ("png", "pdf"):
        done = call(
            PYTHON, "evaluate.py", tmp_path / "run", "--split", "val", "--cpu", "--pictures", kind
        )
        assert done.returncode == 0, done.stderr
    assert own == {path: path.read_bytes() for path in plots.iterdir() if path.is_file()}
    assert (plots / "evaluation" / "confusion_matrix.png").read_bytes() != own[
        plots / "confusion_matrix.png"
    ]
    assert (plots / "evaluation" / "confusion_matrix.pdf").read_bytes().startswith(b"%PDF")
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["correct"]) == ("val", line["val_correct"])


def test_evaluation_of_a_lone_file(trained, tmp_path):
    lone = tmp_path / "somewhere.pth"
    lone.write_bytes((trained / "mnist_model.pth").read_bytes())
    done = call(PYTHON, "evaluate.py", lone, "--dataset", "mnist-5k", "--cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "evaluation.json").read_text())
    summary = json.loads((trained / "summary.json").read_text())
    assert (result["accuracy"], result["loss"]) == pytest.approx(
        (summary["test_accuracy"], summary["test_loss"])
    )
    assert list(result["class_accuracy"]) == list("0123456789")
    diagonal = sum(result["confusion_matrix"][digit][digit] for digit in range(10))
    assert diagonal == result["correct"] == summary["test_correct"]
    assert done.stdout.splitlines()[-1] == (
        f"Test Accuracy: {100 * result['accuracy']:.2f}% ({result['correct']}/{result['total']})"
    )
    assert (
        0 < result["calibration_error"] < 0.2
        and sum(bin["count"] for bin in result["reliability"]) == 1000
    )
    assert (tmp_path / "plots" / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
