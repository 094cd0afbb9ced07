"""How far numbers are from what they should be, as a share of their size, and how to say so."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Between float64 results, as a share of the largest number of the tensor. Rounding gives up to
# 2e-14 (`python -m mnist_dist verify`, 1 to 3 processes, `--lr` 1e-5 to 30); mistakes give more
# than 1e-8, for float32 is the finest thing that may have come between.
TOLERANCE = 1e-11
PART_OF_WHOLE = 0.1  # of a gradient's largest number: the least that counts as a tensor's own
FEWEST_DIGITS = 6
MOST_DIGITS = 17  # as many as a float64 has


def difference(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    sizes: Mapping[str, float] | None = None,
) -> float:
    """Return the largest difference between numbers of the same name, as a share of their size.

    Args:
        expected, found: tensors by name.
        sizes: what the differences in each tensor are a share of; without it the largest number
            that is expected in that tensor.

    Returns:
        It is infinite if names or shapes differ, or where only one of them is a number.
    """
    if expected.keys() != found.keys():
        return math.inf
    largest = 0.0
    for name, tensor in expected.items():
        counterpart = found[name]
        if tensor.shape != counterpart.shape:
            return math.inf
        gap = largest_gap(tensor, counterpart)
        size = sizes[name] if sizes else size_of(tensor)
        largest = max(largest, gap / (size or 1.0))
    return largest


def largest_gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between numbers of two tensors of one shape."""
    if not one.numel():
        return 0.0
    mine = one.detach().double()
    its = other.detach().to(mine.device).double()
    gap = (mine - its).abs()
    are_equal = (mine == its) | (mine.isnan() & its.isnan())
    gap[are_equal] = 0
    gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
    return float(gap.max())


def size_of(tensor: Tensor) -> float:
    """Return the largest finite number of a tensor, without its sign; 0 if there is none."""
    if not tensor.numel():
        return 0.0
    numbers = tensor.detach().double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return float(numbers.abs().max())


class GradientSizes:
    """What differences between gradients are compared with, tensor by tensor.

    A gradient may cancel: that of a bias before a normalisation is 0 but for rounding, and so is a
    whole gradient whose samples are all classified right. So a tensor counts as large as it has
    been in the training so far, and as a part of the whole gradient at least.
    """

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def include(self, gradient: Mapping[str, Tensor]) -> dict[str, float]:
        """Take another gradient into account.

        Returns:
            The size of each tensor.
        """
        for name, tensor in gradient.items():
            self.largest[name] = max(self.largest.get(name, 0.0), size_of(tensor))
        least = PART_OF_WHOLE * max(self.largest.values(), default=0.0)
        return {name: max(size, least) for name, size in self.largest.items()}


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the norm of all numbers of some tensors."""
    total = 0.0
    for tensor in tensors.values():
        total += float(tensor.square().sum())
    return math.sqrt(total)


def apart(expected: float, found: Any) -> float:
    """Return how far a figure is from what it should be.

    Args:
        expected: what it should be. The difference is a share of it if it is a large one: a mean
            loss near 0 is rounded like the logits, which are not.
        found: what it is, if it is a number at all.

    Returns:
        It is infinite where only one of them is a number.
    """
    if not isinstance(found, int | float):
        return math.inf
    if found == expected or (math.isnan(expected) and math.isnan(found)):
        return 0.0
    gap = abs(found - expected) / max(1.0, abs(expected))
    return gap if math.isfinite(gap) else math.inf


def told_apart(one: Any, other: Any) -> tuple[str, str]:
    """Return two different figures with as many digits as it takes to see that they differ."""
    if not (isinstance(one, int | float) and isinstance(other, int | float)):
        return str(one), str(other)
    digits = FEWEST_DIGITS
    texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
    while texts[0] == texts[1] and digits < MOST_DIGITS:
        digits += 1
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
    return texts


def in_words(size: float) -> str:
    """Return by how much something differs, in words."""
    if not math.isfinite(size):
        return "and is not a finite number"
    return f"by {size:.1e} of its largest number"


def as_dtype(share: float) -> str:
    """Return the dtype whose rounding makes a difference of this size; empty if there is none.

    Args:
        share: the norm of the difference, as a share of the norm of the whole.
    """
    for dtype, (least, most) in ROUNDING.items():
        if least <= share <= most:
            return dtype
    return ""


# A number of p bits is rounded by up to 2**-p of itself, on average by about 0.4 of that. Sums of
# many rounded numbers have up to some ten times as much.
ROUNDING = {
    "float32": (1e-10, 2e-6),
    "float16 or TF32": (8e-5, 7e-4),
    "bfloat16": (7e-4, 6e-3),
}
