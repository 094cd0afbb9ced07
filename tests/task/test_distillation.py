"""--teacher: what trained models say is learned, too, the same at any number of processes, and after a stop."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Planned, forked, read_lines, rewind, train_py, weight_difference, weights_of

from mnist_dist.core import UserError
from mnist_dist.digits.config import TrainConfig
from mnist_dist.digits.teachers import load_teachers
from mnist_dist.run.command_line import parse
from mnist_dist.task import data, networks
from mnist_dist.tools.verify import command as verify
from mnist_dist.tools.verify import reference
from mnist_dist.usage import UsageError

# 736 training samples: 13 updates, the last one of 4 samples; the teachers are soft and unlike each other.
COMMON = "--dataset mnist-5k --val-size 3264 --batch-size 61 --epochs 1 --checkpoint-every 5 --cpu --wandb disabled"
LEARNING = "--temperature 3 --teacher-share 0.7 --label-smoothing 0.1"
VARIANTS = {
    "plain": f"{LEARNING} --dtype float64 --affine 1 --elastic 1",
    "all": f"{LEARNING} --dtype float64 --affine 1 --elastic 1 --dropout 0.1 --gradient-accumulation-steps 3 --ema 0.9",
    "bits": f"{LEARNING} --model cnn --channels 4 8 --affine 1 --elastic 1 --virtual-processes 4",
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[Path]:
    """An mlp and a cnn that have learned nothing, which is as good for arithmetic."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(1)
    for name, network in (("a", networks.MNISTNet((30,))), ("b", networks.ConvNet((4,), (8,)))):
        torch.save(
            {key: 3 * tensor for key, tensor in network.state_dict().items()},
            folder / f"{name}.pth",
        )
    return [folder / "a.pth", folder / "b.pth"]


def train_all(folder: Path, processes: int, teachers: list[Path]) -> Path:
    """Every variant on so many real processes."""
    runs: list[Planned] = [
        (
            [
                *COMMON.split(),
                "--teacher",
                *teachers,
                *flags.split(),
                "--output-dir",
                folder / name,
            ],
            None,
        )
        for name, flags in VARIANTS.items()
    ]
    done = forked(processes, runs)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a.pth may have seen samples that are held out here") == len(VARIANTS)
    return folder


@pytest.fixture(scope="module")
def alone(teachers, tmp_path_factory):
    return train_all(tmp_path_factory.mktemp("alone"), 1, teachers)


def test_a_loop_in_plain_pytorch_comes_to_the_same_weights(teachers, alone):
    samples = data.load("mnist-5k", Path("data"), val_size=3264, dtype=torch.float64).train
    torch.manual_seed(0)
    student = networks.build("mlp").double()
    taught = [
        networks.from_state_dict(torch.load(path, weights_only=True)).double() for path in teachers
    ]
    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
    losses = 0.0
    for number, index in enumerate(reference.order(len(samples), seed=0, epoch=0).split(61)):
        sources = [reference.generator(name, 0, 0, number) for name in ("affine 0", "elastic 0")]
        drawn = (
            torch.rand(len(index), 6, generator=sources[0]),
            torch.randn(len(index), 2, 49, generator=sources[1]),
        )
        images = reference.distorted(samples.images[index], 1, 1, *drawn)
        logits = student(images)
        with torch.no_grad():
            soft = sum(teacher(images).div(3).softmax(dim=1) for teacher in taught) / 2
        apart = (soft * (soft.log() - logits.div(3).log_softmax(dim=1))).sum(dim=1).mean()
        loss = (
            0.3 * F.cross_entropy(logits, samples.labels[index], label_smoothing=0.1)
            + 0.7 * 9 * apart
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(index)
    weights = weights_of(alone / "plain")
    for name, parameter in student.named_parameters():
        assert torch.allclose(parameter, weights[name], rtol=0, atol=1e-9), name
    (line,) = read_lines(alone / "plain" / "metrics.jsonl")
    assert line["train_loss"] == pytest.approx(losses / len(samples), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_on_several_processes_the_weights_are_those_of_one(processes, teachers, alone, tmp_path):
    train_all(tmp_path, processes, teachers)
    for name in ("plain", "all"):
        assert weight_difference(tmp_path / name, alone / name) <= 1e-9, name
    assert weight_difference(tmp_path / "bits", alone / "bits") == 0


@pytest.mark.slow
def test_stopped_and_resumed_it_has_the_same_bits_and_needs_the_same_teachers(
    teachers, alone, tmp_path
):
    shutil.copytree(alone / "all", tmp_path / "run")
    rewind(tmp_path / "run")
    flags = [
        *COMMON.split(),
        *VARIANTS["all"].split(),
        "--output-dir",
        tmp_path / "run",
        "--resume",
    ]
    moved = [shutil.copy(path, tmp_path) for path in teachers]
    for others in ([], ["--teacher", moved[1], moved[0]]):
        done = train_py(*flags, *others)
        assert done.returncode == 1 and "error: the teachers' digest is " in done.stderr, (
            done.stderr
        )
    done = train_py(*flags, "--teacher", *moved)
    assert done.returncode == 0 and "resuming from update 10" in done.stdout, done.stderr
    assert weight_difference(tmp_path / "run", alone / "all") == 0
    runs = (tmp_path / "run", alone / "plain")
    digests = [json.loads((run / "config.json").read_text())["teachers_digest"] for run in runs]
    assert digests[0] == digests[1] and len(digests[0]) == 64


def test_what_cannot_teach_is_refused_by_name(tmp_path):
    torch.save(
        {"fc1.weight": torch.zeros(11, 784), "fc1.bias": torch.zeros(11)}, tmp_path / "classes.pth"
    )
    torch.save(
        {"fc1.weight": torch.zeros(10, 100), "fc1.bias": torch.zeros(10)}, tmp_path / "pixels.pth"
    )
    (tmp_path / "words.pth").write_text("no weights here")
    (tmp_path / "fashion").mkdir()
    torch.save(networks.MNISTNet((3,)).state_dict(), tmp_path / "fashion" / "mnist_model.pth")
    settings = {"dataset": "fashion-mnist", "data_dir": "data", "val_size": 0, "seed": 0}
    settings["normalization"] = {"mean": 0.286, "std": 0.353}
    (tmp_path / "fashion" / "config.json").write_text(json.dumps(settings))
    here: Any = SimpleNamespace(name="mnist", mean=0.1307, std=0.3081, val=None)
    for name, complaint in {
        "classes.pth": "cannot teach: the weights are not those of a digit classifier from 784 pixels to 10 classes",
        "pixels.pth": "cannot teach: the weights are not those of a digit classifier from 784 pixels to 10 classes",
        "words.pth": "cannot teach: the model file .* is damaged",
        "nothing": "there is no model at .*nothing",
        "fashion": r"on fashion-mnist \(mean 0.286, std 0.353\), but this run uses mnist \(0.1307, 0.3081\)",
    }.items():
        config = parse(TrainConfig, ["--teacher", str(tmp_path / name)])
        with pytest.raises(UserError, match=complaint) as refusal:
            load_teachers(config, here, torch.device("cpu"))
        assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "words", ["--temperature 0", "--temperature nan", "--teacher-share 0", "--teacher-share 1.1"]
)
def test_impossible_settings_are_refused_by_name(words):
    with pytest.raises(UsageError, match=f"{words}.* is not possible"):
        parse(TrainConfig, words.split())


def test_verify_says_that_it_does_not_know_teachers(teachers):
    with pytest.raises(
        UsageError, match="verify does not know teachers, and so cannot check --teacher"
    ):
        parse(verify.Config, ["--", "--teacher", str(teachers[0])])


def test_without_teachers_their_settings_may_be_others_when_a_run_goes_on():
    one, other = (TrainConfig(temperature=number) for number in (1.0, 2.0))
    assert one.fixed(vars(one)) == other.fixed(vars(other))
    one, other = (TrainConfig(temperature=number, teacher=(Path("a"),)) for number in (1.0, 2.0))
    assert one.fixed(vars(one)) != other.fixed(vars(other))
