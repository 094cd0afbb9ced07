"""The figures of an evaluation, on cases that a person can count."""

import pytest
import torch

from mnist_dist.evaluation import Bin, Evaluation


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
    found = {bin.count: (bin.confidence, bin.accuracy) for bin in result.reliability(bins=10) if bin.accuracy < 1}
    assert found[2] == pytest.approx((0.9, 0.5))
    assert result.calibration_error == pytest.approx((2 * 0.4 + 2 * 0.5) / 4)


def test_who_is_right_as_often_as_it_says_is_calibrated():
    result = says(*[(0, 0.75, 0)] * 3, (0, 0.75, 1))
    assert result.reliability() == [Bin(4, pytest.approx(0.75), 0.75)]
    assert result.calibration_error == pytest.approx(0)


def test_certainty_belongs_to_the_last_bin():
    (bin,) = says((0, 1 - 1e-12, 0), (1, 1 - 1e-12, 1)).reliability()
    assert (bin.count, bin.accuracy) == (2, 1.0)


def test_the_most_confident_mistake_comes_first():
    result = says((0, 0.6, 1), (1, 0.9, 1), (2, 0.8, 3))
    assert result.mistakes().tolist() == [2, 0]
    assert (result.correct, result.total) == (1, 3)
    assert result.confusion[1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
