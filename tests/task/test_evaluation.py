"""The figures of an evaluation, on cases that a person can count."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, torchrun

from mnist_dist import plots
from mnist_dist.core import UserError
from mnist_dist.core.microbatches import MicroBatchSampler
from mnist_dist.core.orders import EqualBatches
from mnist_dist.core.sampler import ExactSampler
from mnist_dist.core.sharing import Sharing
from mnist_dist.run import weights
from mnist_dist.run.command_line import parse
from mnist_dist.task import networks
from mnist_dist.task.data import load
from mnist_dist.task.distortions import distort
from mnist_dist.task.evaluation import BATCH, Bin, Evaluation
from mnist_dist.usage import UsageError

sys.path.insert(0, str(REPOSITORY))
from evaluate import EvaluateConfig, table


def says(*confident: tuple[int, float, int]) -> Evaluation:
    """An evaluation of samples given as (prediction, its probability, label), the rest shared among nine classes."""
    rows = []
    for prediction, confidence, _ in confident:
        row = torch.full((10,), (1 - confidence) / 9, dtype=torch.float64)
        row[prediction] = confidence
        rows.append(row.log())
    return Evaluation(torch.stack(rows), torch.tensor([label for _, _, label in confident]))


def test_the_calibration_error_is_the_mean_gap_of_confidence_and_accuracy():
    result = says((0, 0.9, 0), (1, 0.9, 2), (2, 0.5, 2), (3, 0.5, 3))
    found = {
        bin.count: (bin.confidence, bin.accuracy)
        for bin in result.reliability(bins=10)
        if bin.accuracy < 1
    }
    assert found[2] == pytest.approx((0.9, 0.5))
    assert result.calibration_error == pytest.approx((2 * 0.4 + 2 * 0.5) / 4)


def test_who_is_right_as_often_as_it_says_is_calibrated():
    result = says(*[(0, 0.75, 0)] * 3, (0, 0.75, 1))
    confidence: Any = pytest.approx(0.75)
    assert result.reliability() == [Bin(4, confidence, 0.75)]
    assert result.calibration_error == pytest.approx(0)


def test_certainty_belongs_to_the_last_bin():
    (bin,) = says((0, 1 - 1e-12, 0), (1, 1 - 1e-12, 1)).reliability()
    assert (bin.count, bin.accuracy) == (2, 1.0)


def test_the_table_says_what_stands_in_its_columns():
    classes = ("one", "another", *(str(number) for number in range(2, 10)))
    lines = table(classes, says((0, 0.6, 1), (1, 0.9, 1), (1, 0.8, 1))).splitlines()
    assert "confusion matrix (rows: true class, columns: predicted class)" in lines[0]
    assert lines[1].split() == ["class", "accuracy", "one", "anoth", *classes[2:]]
    assert lines[3].split() == ["another", "66.67%", "1", "2", *"00000000"]
    assert lines[4].split() == ["2", "no", "sample", *"0000000000"]
    # Headings and counts end in the same columns.
    assert all(len(line) == len(lines[1]) for line in lines[2:])


def test_a_loss_that_is_not_finite_is_refused():
    result = Evaluation(torch.tensor([[0.0, torch.inf]], dtype=torch.float64), torch.tensor([0]))
    with pytest.raises(UserError, match="the loss on the val samples is"):
        result.metrics("val")


def test_the_most_confident_mistake_comes_first():
    result = says((0, 0.6, 1), (1, 0.9, 1), (2, 0.8, 3))
    assert result.mistakes().tolist() == [2, 0]
    assert (result.correct, result.total) == (1, 3)
    assert result.confusion[1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_no_mistakes_of_before_are_shown_where_there_are_none(tmp_path):
    samples = load("mnist-5k", Path())
    perfect = Evaluation(9.0 * F.one_hot(samples.test.labels, 10).double(), samples.test.labels)
    (tmp_path / "mistakes.png").touch()
    plots.evaluation(tmp_path, perfect, samples, "test", "mlp of run")
    assert {path.name for path in tmp_path.iterdir()} == {"confusion_matrix.png", "reliability.png"}


@pytest.mark.slow
def test_several_models_and_shifted_and_distorted_copies_say_the_mean_of_their_probabilities(
    tmp_path,
):
    """Also on three processes, where the copies must be distorted as on one."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        weights.save_weights(tmp_path / f"{seed}.pth", networks.build("mlp", (16,)).double())
    flags = [
        tmp_path / "1.pth",
        tmp_path / "2.pth",
        "--cpu",
        "--dataset",
        "mnist-5k",
        "--shifts",
        "--distortions",
        "2",
    ]
    for processes in (1, 3):
        done = torchrun(processes, "evaluate.py", *flags, "--output-dir", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    one, three = (
        json.loads((tmp_path / str(count) / "evaluation.json").read_text()) for count in (1, 3)
    )
    assert one["loss"] == pytest.approx(three["loss"], abs=1e-12)
    assert one["confusion_matrix"] == three["confusion_matrix"]
    assert one["shifts"] is True and one["distortions"] == 2

    test, probabilities = load("mnist-5k", Path(), dtype=torch.float64).test, []
    alone = Sharing(shares=1, world=1, rank=0)
    orders = EqualBatches(ExactSampler(range(len(test)), alone, shuffle=False, seed=0), BATCH)
    ((batch,),) = MicroBatchSampler(orders, alone).epoch(0)
    for seed in (1, 2):
        model = networks.from_state_dict(weights.load_weights(tmp_path / f"{seed}.pth"))
        copies = [
            distort(test.images, batch.rand, affine=0.3, elastic=0.3, copy=copy)
            for copy in range(2)
        ]
        wide = F.pad(test.images, (1, 1, 1, 1), mode="replicate")
        copies += [
            wide[:, :, top : top + 28, left : left + 28]
            for top, left in ((0, 1), (2, 1), (1, 0), (1, 2))
        ]
        probabilities += [model.probabilities(images) for images in (test.images, *copies)]
    expected = F.nll_loss(torch.stack(probabilities).mean(dim=0).log(), test.labels)
    assert one["loss"] == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "no model to evaluate was given"),
        ("a.pth b.pth", "several models need --output-dir"),
        ("a.pth --distortions -1", "--distortions -1 is not possible"),
        ("a.pth --affine 9", "--affine 9.0 is not possible"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse(EvaluateConfig, words.split())
