"""What the core sees in autograd's graph of a loss that is not the mean over rows, or compares them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.core.row_means import why_not_mean_over_rows
from mnist_dist.core.row_pairs import compares_rows

ROWS = 8
IGNORED = -100

torch.manual_seed(0)
scores = torch.randn(ROWS, 3, requires_grad=True)
labels = torch.randint(3, (ROWS,))
some_ignored = labels.clone()
some_ignored[:2] = IGNORED
zeros = torch.zeros(ROWS, 3)
parameter = torch.ones(5, requires_grad=True)
projection = nn.Linear(3, 4)
mask = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0])

Loss = Callable[[], Tensor]


def each_row() -> Tensor:
    """The loss of each row."""
    return F.cross_entropy(scores, labels, reduction="none")


MEANS: dict[str, Loss] = {
    "cross entropy": lambda: F.cross_entropy(scores, labels),
    "label smoothing": lambda: F.cross_entropy(scores, labels, label_smoothing=0.1),
    "of each row": lambda: F.cross_entropy(scores, labels, reduction="none").mean(),
    "as many tokens in each row": lambda: F.cross_entropy(
        torch.randn(ROWS, 3, 4, requires_grad=True), torch.randint(3, (ROWS, 4))
    ),
    "as many ignored in each row": lambda: F.cross_entropy(
        torch.randn(ROWS * 4, 3, requires_grad=True),
        torch.tensor([0, 1, 2, IGNORED]).repeat(ROWS),
    ),
    "a sum divided by the rows": lambda: F.cross_entropy(scores, labels, reduction="sum") / ROWS,
    "a sum divided by a tensor": lambda: (
        F.cross_entropy(scores, labels, reduction="sum") / torch.tensor(ROWS)
    ),
    "a sum divided by all values": lambda: (
        F.mse_loss(scores, zeros, reduction="sum") / zeros.numel()
    ),
    "squares": lambda: F.mse_loss(scores, zeros),
    "a weight for the positive class": lambda: F.binary_cross_entropy_with_logits(
        scores, zeros, pos_weight=torch.full((3,), 2.0)
    ),
    "a mask that leaves nothing out": lambda: each_row().sum() / torch.ones(ROWS).sum(),
    "half of it": lambda: 0.5 * (scores - zeros).square().sum() / ROWS,
    "a sum over features, and a mean over rows": lambda: scores.square().sum(dim=1).sum() / ROWS,
    "a sum over rows of a mean over features": lambda: scores.square().mean(1).sum() * (1 / ROWS),
    "a sum over features of a mean over rows": lambda: projection(scores).mean(0).square().sum(),
    "a mean over pixels": lambda: (
        torch.ones(ROWS, 2, 5, 5, requires_grad=True).square().sum() / (ROWS * 25)
    ),
    "quotients of rows": lambda: (1 - scores.exp()[:, 0] / scores.exp().sum(1)).mean(),
    "as many losses as rows": lambda: torch.stack([scores.square().mean()] * ROWS).sum(),
    "a sum of three losses": lambda: torch.stack([scores.square().mean()] * 3).sum() / 3,
    "divergence": lambda: F.kl_div(scores.log_softmax(1), zeros + 1 / 3, reduction="batchmean"),
    "in half precision": lambda: F.cross_entropy(scores, labels).half(),
    "two terms": lambda: F.cross_entropy(scores, labels) + 0.1 * scores.square().mean(),
    "a mean over parameters beside it": lambda: (
        F.cross_entropy(scores, labels) + parameter.abs().mean()
    ),
    "a distance of parameters beside it": lambda: (
        F.cross_entropy(scores, labels)
        + F.mse_loss(parameter, torch.zeros(5), reduction="sum")
        + F.mse_loss(parameter, torch.zeros(5))
    ),
}
OTHERS: dict[str, tuple[Loss, str]] = {
    "weights of classes": (
        lambda: F.cross_entropy(scores, labels, weight=torch.ones(3)),
        "weights classes",
    ),
    "ignored": (lambda: F.cross_entropy(scores, some_ignored), "ignores 2 of 8 targets"),
    "ignored and smoothed": (
        lambda: F.cross_entropy(scores, some_ignored, label_smoothing=0.1),
        "ignores 2 of 8 targets",
    ),
    "ignored, beside another term": (
        lambda: scores.square().mean() + 0.5 * F.cross_entropy(scores, some_ignored),
        "ignores 2 of 8 targets",
    ),
    "a sum": (lambda: F.cross_entropy(scores, labels, reduction="sum"), "is a sum"),
    "a sum divided by the rows of all processes": (
        lambda: F.cross_entropy(scores, labels, reduction="sum") / (2 * ROWS),
        "is a sum",
    ),
    "an autoencoder's": (
        lambda: F.mse_loss(scores, zeros, reduction="sum") - 0.5 * scores.exp().sum(),
        "is a sum",
    ),
    "a sum by hand": (lambda: (scores - zeros).square().sum(), "is a sum,"),
    "a sum of the rows' losses": (lambda: each_row().sum(), "is a sum,"),
    "a sum by hand divided by the global batch": (
        lambda: (scores - zeros).square().sum(1).sum() / (2 * ROWS),
        "is a sum divided by 16, and should be a mean over the 8 rows",
    ),
    "a sum times a factor": (
        lambda: (scores - zeros).square().sum() * (1 / 128),
        "is a sum divided by 128",
    ),
    "weights of rows": (
        lambda: (each_row() * (mask + 0.03)).sum() / (mask + 0.03).sum(),
        "is a sum divided by 5.24",
    ),
    "overlap of the whole batch": (
        lambda: 1 - 2 * (scores.sigmoid() * zeros).sum() / (scores.sigmoid().sum() + zeros.sum()),
        "is one sum over rows divided by another",
    ),
    "some rows": (
        lambda: F.cross_entropy(scores, labels, reduction="none")[:5].mean(),
        "a mean over 5 values for 8 rows",
    ),
    "a mask": (
        lambda: (each_row() * mask).sum() / mask.sum(),
        "a mean over 5 values for 8 rows",
    ),
    "some rows, in cross entropy": (
        lambda: F.cross_entropy(scores[:5], labels[:5]),
        "a mean over 5 values for 8 rows",
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_over_rows_is_seen_as_one(name):
    assert why_not_mean_over_rows(MEANS[name](), ROWS) == ""


@pytest.mark.parametrize("name", OTHERS)
def test_another_loss_is_named(name):
    loss, words = OTHERS[name]
    assert words in why_not_mean_over_rows(loss(), ROWS)


square = nn.Linear(3, ROWS, bias=False)  # by accident as many units as there are rows
bilinear = nn.Bilinear(3, 3, ROWS)


def views() -> tuple[Tensor, Tensor]:
    """Two views of each row."""
    return F.normalize(projection(scores)), F.normalize(projection(scores + 1))


def similarities(one: Tensor, other: Tensor) -> Tensor:
    """A contrastive loss of two views."""
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


COMPARING: dict[str, Loss] = {
    "two views": lambda: similarities(*views()),
    "both views as one": lambda: (
        (torch.cat(views()) @ torch.cat(views()).T).logsumexp(dim=1).mean()
    ),
    "einsum": lambda: torch.einsum("nc,mc->nm", *views()).logsumexp(1).mean(),
    "cosine similarities": lambda: F.cosine_similarity(
        views()[0][:, None], views()[1][None], dim=-1
    ).mean(),
    "differences": lambda: (views()[0][:, None] - views()[1][None]).abs().mean(),
    "distances of one view": lambda: torch.pdist(views()[0]).mean(),
    "distances": lambda: torch.cdist(*views()).mean(),
    "correlations of features": lambda: torch.matmul(views()[0].T, views()[1]).square().mean(),
    "a spread over rows": lambda: F.relu(1 - projection(scores).std(dim=0)).mean(),
    "beside a classifier": lambda: F.cross_entropy(scores, labels) + similarities(*views()),
}
NOT_COMPARING: dict[str, Loss] = {
    "a classifier": lambda: F.cross_entropy(projection(scores), labels),
    "as many units as rows": lambda: square(projection(scores)[:, :3]).square().mean(),
    "as many units as rows, in bfloat16": lambda: F.linear(
        projection(scores)[:, :3].bfloat16(), square.weight.bfloat16()
    ).mean(),
    "a bilinear layer": lambda: bilinear(scores, scores).mean(),
    "attention within a row": lambda: F.scaled_dot_product_attention(
        *[projection(scores).view(ROWS, 1, 2, 2)] * 3
    ).mean(),
    "views of the same row": lambda: F.cosine_similarity(*views()).mean(),
    "a spread within a row": lambda: projection(scores).std(dim=1).mean(),
    "a spread of weights": lambda: scores.square().mean() + square.weight.std(),
    "a low rank": lambda: (scores @ (projection.weight.T @ projection.weight)).mean(),
}


@pytest.mark.parametrize("name", COMPARING)
def test_a_loss_that_compares_rows_is_seen(name):
    assert compares_rows(COMPARING[name]().grad_fn, ROWS)


@pytest.mark.parametrize("name", NOT_COMPARING)
def test_another_one_is_not_taken_for_it(name):
    assert not compares_rows(NOT_COMPARING[name]().grad_fn, ROWS)


def test_one_row_that_is_ignored_is_named():
    loss = F.cross_entropy(scores[:1], torch.tensor([IGNORED]))
    assert "ignores 1 of 1 targets" in why_not_mean_over_rows(loss, 1)


def sum_over_one_row() -> Tensor:
    return F.cross_entropy(scores[:1], labels[:1], reduction="sum")


OF_ONE_ROW: dict[str, Loss] = {
    "a sum": sum_over_one_row,
    "divided by the rows": lambda: sum_over_one_row() / 1,
    "and by accumulated steps": lambda: sum_over_one_row() / 1 / 4,
    "times a factor": lambda: 0.1 * sum_over_one_row() / 1,
}


@pytest.mark.parametrize("name", OF_ONE_ROW)
def test_a_sum_over_one_row_is_its_mean(name):
    assert why_not_mean_over_rows(OF_ONE_ROW[name](), 1) == ""


def test_one_row_divided_by_the_tokens_of_all_processes_is_named():
    """As in Accelerate's example of accumulation for language models, where one factor is 1."""
    loss = sum_over_one_row() / 23 * 1 * 2
    assert "a sum divided by 23, and should be a mean over the 1 row" in why_not_mean_over_rows(
        loss, 1
    )
