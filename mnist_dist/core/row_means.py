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
ADDITIONS = ("AddBackward", "SubBackward", "RsubBackward")
# Operations whose results do not have a value, or several, for each row.
NOT_OF_ROWS = ("StackBackward", "CatBackward", "UnsafeViewBackward", "MmBackward")
REDUCTIONS = ("MeanBackward", "SumBackward")
CROSS_ENTROPIES = ("NllLossBackward", "NllLoss2DBackward")


def why_not_mean_over_rows(loss: Tensor, rows: int) -> str:
    """Say why a loss is not the mean over the rows of a micro-batch, and what to do; empty if it may be.

    Args:
        loss: a scalar, before its backward pass.
        rows: n, of the micro-batch, more than 0.
    """
    return examine(Node(loss.grad_fn, rows))


@dataclass(frozen=True)
class Node:
    """An operation of autograd's graph, of those that make up a loss.

    Attributes:
        operation: a node of the graph; None where the graph ends.
        rows: n, of the micro-batch.
        divisors: what its result is divided by on the way to the loss, the last division first.
        factors: likewise what it is multiplied by.
        is_term: whether it is added to others, some of which may have nothing to do with rows.
        depth: operations that are still to be looked at.
    """

    operation: Any
    rows: int
    divisors: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    is_term: bool = False
    depth: int = DEPTH


def examine(node: Node) -> str:
    """Look at an operation, and at those before it."""
    operation = node.operation
    if operation is None or node.depth == 0:
        return ""
    name = name_of(operation)
    if hasattr(operation, "_saved_reduction"):
        return examine_loss_function(node)
    if name == "MeanBackward":
        return examine_mean(node)
    if name == "SumBackward":
        return examine_sum_of_values(node)
    before = [earlier for earlier, _ in operation.next_functions if earlier is not None]
    divisors = node.divisors
    factors = node.factors
    is_term = node.is_term
    if name == "DivBackward" and len(before) == 2:
        return examine_quotient(node, *before)
    if name in ("MulBackward", "DivBackward") and len(before) == 1:
        number = scalar_operand(operation)
        if not number:
            return ""
        if name == "DivBackward":
            divisors = (*divisors, number)
        else:
            factors = (*factors, number)
    elif name in ADDITIONS:
        is_term = is_term or len(before) > 1
    elif name not in TRANSPARENT:
        return ""
    for each in before:
        why = examine(Node(each, node.rows, divisors, factors, is_term, node.depth - 1))
        if why:
            return why
    return ""


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


def examine_loss_function(node: Node) -> str:
    """Look at a loss function of torch."""
    operation = node.operation
    target = getattr(operation, "_saved_target", None)
    values = target.numel() if isinstance(target, Tensor) else node.rows
    if operation._saved_reduction == SUM:
        return examine_sum(node, values)
    if operation._saved_reduction != MEAN:
        return ""
    if name_of(operation) in CROSS_ENTROPIES:
        return examine_cross_entropy(node, values)
    return "" if node.is_term else examine_number_of_values(node.rows, values)


def examine_sum(node: Node, values: int) -> str:
    """Look at a sum over the rows' values of a loss function."""
    if values % node.rows:
        return ""
    return examine_divisors(node, [node.rows, values])


def examine_divisors(node: Node, counts: list[int]) -> str:
    """Look at what a sum over rows is divided by.

    Args:
        node: of the sum.
        counts: the divisors that make it a mean over the rows.
    """
    divisors = all_divisors(node)
    # With one row, a sum is its own mean, and a division by 1 says nothing. The division next to the
    # sum does: it is the one that is to make a mean of it.
    telling = (node.divisors[-1:] or (1.0,)) if node.rows == 1 else divisors
    for divisor in telling:
        if any(abs(divisor / count - 1) < CLOSE for count in counts):
            return ""
    others = [divisor for divisor in divisors if divisor > 1 + CLOSE]
    what = f"a sum divided by {max(others):g}" if others else "a sum"
    rows = "1 row" if node.rows == 1 else f"{node.rows} rows"
    return (
        f"the loss is {what}, and should be a mean over the {rows} that the loader has just given: divide it by their "
        "number; or make it a mean over something else, such as tokens, and pass accelerator.backward terms=, their "
        "number here"
    )


def all_divisors(node: Node) -> list[float]:
    """What a result is divided by on the way to the loss, also by a multiplication."""
    return [*node.divisors, *(1 / factor for factor in node.factors)]


def examine_cross_entropy(node: Node, values: int) -> str:
    """Look at a mean over the targets of a cross entropy."""
    operation = node.operation
    if operation._saved_weight is not None:
        return (
            "the loss weights classes, so it is not the mean over rows: pass accelerator.backward "
            f"terms=weight[labels].sum(), {WAY_OUT}"
        )
    if values % node.rows:
        return examine_number_of_values(node.rows, values)
    ignored = operation._saved_target == operation._saved_ignore_index
    in_each_row = ignored.reshape(node.rows, -1).sum(dim=1)
    are_alike = bool((in_each_row == in_each_row[0]).all())
    has_several = values > node.rows
    # As in language models, in which the last token of a row has no target.
    if not ignored.any() or (are_alike and has_several):
        return ""
    return (
        f"the loss ignores {int(ignored.sum())} of {values} targets (ignore_index), so it is not the mean over rows: "
        f"pass accelerator.backward terms=, the number of those that count, {WAY_OUT}"
    )


def examine_mean(node: Node) -> str:
    """Look at a mean over all values of a tensor."""
    sizes = getattr(node.operation, "_saved_self_sym_sizes", None)
    if sizes is None or node.is_term:
        return ""
    return examine_number_of_values(node.rows, torch.Size(sizes).numel())


def examine_sum_of_values(node: Node) -> str:
    """Look at a sum of all values of a tensor, which may be divided by a count, such as that of a mask."""
    sizes = sizes_over_rows(node.operation, node.rows)
    if not sizes or node.is_term:
        return ""
    counts = [node.rows * each for each in counts_in_a_row(sizes, node.rows)]
    why = examine_divisors(node, counts)
    largest = max(all_divisors(node), default=1.0)
    count = round(largest)
    is_of_a_mask = count > 2 and count % node.rows and abs(largest - count) < CLOSE
    return examine_number_of_values(node.rows, count) if why and is_of_a_mask else why


def examine_quotient(node: Node, above: Any, below: Any) -> str:
    """Look at a quotient of two results of the model, as in a Dice loss of the whole batch."""
    if node.is_term or not all(leads_to_sum(each, node.rows) for each in (above, below)):
        return ""
    return (
        "the loss is one sum over rows divided by another, so it is not the mean over rows: divide them for each row, "
        f"and take the mean, {WAY_OUT}"
    )


def leads_to_sum(operation: Any, rows: int, depth: int = DEPTH) -> bool:
    """Whether an operation's result is, up to factors and terms, a sum over rows."""
    if operation is None or depth == 0:
        return False
    name = name_of(operation)
    if name == "SumBackward":
        return bool(sizes_over_rows(operation, rows))
    if name not in (*TRANSPARENT, *ADDITIONS, "MulBackward", "DivBackward"):
        return False
    return any(leads_to_sum(each, rows, depth - 1) for each, _ in operation.next_functions)


def sizes_over_rows(operation: Any, rows: int) -> list[int]:
    """The sizes of the tensor that a sum is over; empty if it does not have a value, or several, for each row.

    Args:
        operation: the sum over all values of a tensor.
        rows: n, of the micro-batch; with one row, any sum is over its values.
    """
    sizes = list(getattr(operation, "_saved_self_sym_sizes", None) or [])
    earlier = operation.next_functions[0][0]
    if not sizes or sizes[0] % rows or rows == 1 or earlier is None:
        return []
    name = name_of(earlier)
    dimensions = getattr(earlier, "_saved_dim", None)
    has_lost_rows = name in REDUCTIONS and dimensions is not None and 0 in dimensions
    return [] if has_lost_rows or name in NOT_OF_ROWS else sizes


def counts_in_a_row(sizes: list[int], rows: int) -> set[int]:
    """The numbers of values in a row that a mean may be over: products of some of the other sizes."""
    counts = {1}
    for size in (sizes[0] // rows, *sizes[1:]):
        counts |= {count * size for count in counts}
    return counts


def examine_number_of_values(rows: int, values: int) -> str:
    """Look at the number of values that a mean is over."""
    if values % rows == 0:
        return ""
    return (
        f"the loss is a mean over {values} values for {rows} rows, so rows have unequal numbers of them: pass "
        f"accelerator.backward terms=, the number of values, {WAY_OUT}"
    )
