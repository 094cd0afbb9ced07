"""The fixed tree along which the gradients of V shares are added up.

The sum over all shares is that over the first half plus that over the second, and so on down.
Floating-point addition is not associative, so a fixed order is what makes bits independent of which
process holds which shares.
"""

import torch
from torch import Tensor

from .errors import UserError

ShareRange = tuple[int, int]  # half-open range of shares: first, stop
Sums = dict[ShareRange, list[Tensor]]  # tensors that were added up over the shares of a range


def complete_subtrees(held: range, first: int, stop: int) -> list[ShareRange]:
    """The largest subtrees of [first, stop), by repeated halving, whose shares a process holds completely.

    Args:
        held: the shares that the process has.
        first, stop: the shares to look at.
    """
    if held.start <= first and stop <= held.stop:
        return [(first, stop)]
    if stop <= held.start or held.stop <= first:
        return []
    middle = (first + stop) // 2
    return complete_subtrees(held, first, middle) + complete_subtrees(held, middle, stop)


def tree_sum(sums: Sums, first: int, stop: int) -> list[Tensor]:
    """The sum over a range of shares: its first half's sum plus its second half's, on whichever process.

    Args:
        sums: of the ranges that have been added up already; together they cover [first, stop).
        first, stop: the range.
    """
    if (first, stop) in sums:
        return sums[first, stop]
    if stop - first <= 1:
        raise UserError(
            "accelerator.backward was not called for every micro-batch of this update: call it for "
            "each of them, even for one without rows"
        )
    middle = (first + stop) // 2
    first_half = tree_sum(sums, first, middle)
    second_half = tree_sum(sums, middle, stop)
    return list(torch._foreach_add(first_half, second_half))
