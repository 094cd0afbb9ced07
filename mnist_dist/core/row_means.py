"""Detects, from autograd's graph, a loss that is not the mean over the rows of a batch.

Without virtual processes, each process's loss is weighted by its number of rows. That is right for a
mean over rows. It is wrong if rows contribute unequal numbers of terms to the mean, as they do with
class weights, ignored targets and masks. Losses that compare rows with each other are detected in
`row_pairs.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MEAN, SUM = 1, 2  # torch's numbers for the reductions of a loss
CLOSE = 1e-4  # of a factor, which may have been rounded
DEPTH = 12  # operations, from the end of the graph, that are looked at
WAY_OUT = "or pass virtual_processes to ExactAccelerator"
# Operations that leave a scalar as it is.
TRANSPARENT = ("ToCopyBackward", "ViewBackward", "CloneBackward", "SqueezeBackward")
ADDITIONS = ("AddBackward", "SubBackward")
CROSS_ENTROPIES = ("NllLossBackward", "NllLoss2DBackward")


def why_no_mean_over_rows(loss: Tensor, rows: int) -> str:
    """Say why a loss is not the mean over the rows of a micro-batch, and what to do; empty if it may be.

    Args:
        loss: a scalar, before its backward pass.
        rows: n, of the micro-batch, more than 0.
    """
    return of_operation(Place(loss.grad_fn, rows))


@dataclass(frozen=True)
class Place:
    """An operation of autograd's graph, of those that make up a loss.

    Attributes:
        operation: a node of the graph; None where the graph ends.
        rows: n, of the micro-batch.
        factor: by which its result is multiplied on the way to the loss.
        is_term: whether it is added to others, some of which may have nothing to do with rows.
        depth: operations that are still to be looked at.
    """

    operation: Any
    rows: int
    factor: float = 1.0
    is_term: bool = False
    depth: int = DEPTH


def of_operation(place: Place) -> str:
    """Look at an operation, and at those before it."""
    operation = place.operation
    if operation is None or place.depth == 0:
        return ""
    name = name_of(operation)
    if hasattr(operation, "_saved_reduction"):
        return of_loss_function(place)
    if name == "MeanBackward":
        return of_mean(place)
    if name == "SumBackward":
        return of_divided_sum(place)
    factor = place.factor
    before = [earlier for earlier, _ in operation.next_functions if earlier is not None]
    if name in ("MulBackward", "DivBackward") and len(before) == 1:
        number = scalar_operand(operation)
        if not number:
            return ""
        factor = factor * number if name == "MulBackward" else factor / number
    elif name not in (*TRANSPARENT, *ADDITIONS):
        return ""
    is_term = place.is_term or name in ADDITIONS
    found = [
        of_operation(Place(each, place.rows, factor, is_term, place.depth - 1)) for each in before
    ]
    return next((why for why in found if why), "")


def name_of(operation: Any) -> str:
    """The name of an operation without the number of its variant."""
    return operation.name().rstrip("0123456789")


def scalar_operand(operation: Any) -> float | None:
    """The number by which an operation multiplies or divides; None if it is not a single number."""
    for name in ("_saved_other", "_saved_self"):
        operand = getattr(operation, name, None)
        if isinstance(operand, Tensor) and operand.numel() == 1 and not operand.requires_grad:
            return float(operand)
        if isinstance(operand, int | float):
            return float(operand)
    return None


def of_loss_function(place: Place) -> str:
    """Look at a loss function of torch."""
    operation = place.operation
    target = getattr(operation, "_saved_target", None)
    values = target.numel() if isinstance(target, Tensor) else place.rows
    if operation._saved_reduction == SUM:
        return of_sum(place, values)
    if operation._saved_reduction != MEAN:
        return ""
    if name_of(operation) in CROSS_ENTROPIES:
        return of_cross_entropy(place, values)
    return "" if place.is_term else of_values(place.rows, values)


def of_sum(place: Place, values: int) -> str:
    """Look at a sum over values."""
    is_over_rows = values % place.rows == 0
    # Divided by the rows, or by their equal numbers of values, it is a mean.
    is_mean = any(abs(place.factor * count - 1) < CLOSE for count in (place.rows, values))
    if is_mean or not is_over_rows:
        return ""
    return (
        "the loss is a sum, and should be a mean over the rows that the loader has just given: divide it by their "
        "number, or by what you pass accelerator.backward as terms"
    )


def of_cross_entropy(place: Place, values: int) -> str:
    """Look at a mean over the targets of a cross entropy."""
    operation = place.operation
    if operation._saved_weight is not None:
        return (
            "the loss weights classes, so it is not the mean over rows: pass accelerator.backward "
            f"terms=weight[labels].sum(), {WAY_OUT}"
        )
    if values % place.rows:
        return of_values(place.rows, values)
    ignored = operation._saved_target == operation._saved_ignore_index
    in_each_row = ignored.reshape(place.rows, -1).sum(dim=1)
    are_alike = bool((in_each_row == in_each_row[0]).all())
    has_several = values > place.rows
    # As in language models, in which the last token of a row has no target.
    if not ignored.any() or (are_alike and has_several):
        return ""
    return (
        f"the loss ignores {int(ignored.sum())} of {values} targets (ignore_index), so it is not the mean over rows: "
        f"pass accelerator.backward terms=, the number of those that count, {WAY_OUT}"
    )


def of_mean(place: Place) -> str:
    """Look at a mean over all values of a tensor."""
    sizes = getattr(place.operation, "_saved_self_sym_sizes", None)
    if sizes is None or place.is_term:
        return ""
    return of_values(place.rows, torch.Size(sizes).numel())


def of_divided_sum(place: Place) -> str:
    """Look at a sum of all values of a tensor that is divided by a count, such as that of a mask."""
    sizes = getattr(place.operation, "_saved_self_sym_sizes", None)
    if sizes is None or place.is_term or torch.Size(sizes).numel() % place.rows:
        return ""
    divisor = 1 / place.factor
    count = round(divisor)
    is_count = count > 1 and abs(divisor - count) < CLOSE
    return of_values(place.rows, count) if is_count else ""


def of_values(rows: int, values: int) -> str:
    """Look at the number of values that a mean is over."""
    if values % rows == 0:
        return ""
    return (
        f"the loss is a mean over {values} values for {rows} rows, so rows have unequal numbers of them: pass "
        f"accelerator.backward terms=, the number of values, {WAY_OUT}"
    )
