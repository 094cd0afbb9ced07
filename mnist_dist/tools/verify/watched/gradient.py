"""What a wrong gradient is instead: it is compared with the gradients that known mistakes give.

The mistakes are made with the reference, at the same update and with the same weights.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mnist_dist.task.settings import Settings
from mnist_dist.tools.verify.reference import Reference, clipped
from mnist_dist.tools.verify.watched.differences import as_dtype, difference, norm_of

SAME = 1e-10  # the largest difference, as a share, of a gradient that is the one of a mistake
ROUNDED = 1e-6  # how far from 1 the factor of a gradient may be that is rounded
Gradient = dict[str, Tensor]

BY_SAMPLES = "weigh a process's loss by its samples, not by processes"
DRAW_FOR_ALL = (
    "draw it for the whole global batch and take this process's rows: "
    "micro_batch.rand (task/distortions.py)"
)
LEFT_OUT = {  # options, and what to look at if the gradient is the one without them
    ("label_smoothing",): "the loss must spread that fraction of the target over all classes "
    "(task/objective.py)",
    ("clip_norm",): "call accelerator.clip_grad_norm_ between backward and optimizer.step",
    ("dropout",): "give the model its masks (task/objective.py)",
    ("affine", "elastic"): "distort the images before the model sees them (task/objective.py)",
}


@dataclass(frozen=True)
class Wrong:
    """A wrong gradient, and where it was found.

    Attributes:
        reference: the training, at this update.
        expected: the right gradient.
        found: the one that the optimizer was given.
        epoch, number: of the global batch, from 0.
        shares: into how many the global batch is divided.
        world: the number of processes.
        pieces: in how many a share is worked through.
    """

    reference: Reference
    expected: Gradient
    found: Gradient
    epoch: int
    number: int
    shares: int
    world: int
    pieces: int

    @property
    def rows(self) -> int:
        """Samples in the global batch."""
        return len(self.reference.batch(self.epoch, self.number))

    @property
    def share_of_row(self) -> Tensor:
        """(n,) int64, for each row of the global batch the share that it is in."""
        start = self.number * self.reference.settings.batch_size
        return (start + torch.arange(self.rows)) % self.shares

    @property
    def piece_of_row(self) -> Tensor:
        """(n,) int64, for each row the piece of its share, by --gradient-accumulation-steps."""
        numbers = torch.zeros(self.rows, dtype=torch.int64)
        for share in range(self.shares):
            places = torch.nonzero(self.share_of_row == share).flatten()
            for piece, part in enumerate(torch.tensor_split(places, self.pieces)):
                numbers[part] = piece
        return numbers

    def gradient(
        self,
        row_weights: Tensor | None = None,
        drawn_by: Tensor | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Gradient:
        """Return what the gradient would be.

        Args:
            row_weights, drawn_by: as for the reference.
            settings: those that are others than the training's.
        """
        changed: Settings = replace(self.reference.settings, **(settings or {}))
        place = self.epoch, self.number, changed
        return self.reference.loss_and_gradient(*place, row_weights, drawn_by)[1]

    def is_it(self, gradient: Gradient) -> bool:
        """Return whether the wrong gradient is this one, but for rounding."""
        return difference(gradient, self.found) <= SAME


def explain(wrong: Wrong) -> str:
    """Return what a wrong gradient is instead and what to do about it; empty if that is unknown."""
    if wrong.expected.keys() != wrong.found.keys():
        missing = sorted(wrong.expected.keys() - wrong.found.keys())
        return f"the optimizer is given no gradient of {', '.join(missing)}: look at its parameters"
    if any(not tensor.isfinite().all() for tensor in wrong.found.values()):
        return (
            "it is not a number at that update: look at the loss and its gradient there, "
            "and for an overflow"
        )
    for advice, gradient in mistakes(wrong):
        if wrong.is_it(gradient):
            return advice
    return multiple_of(wrong) or rounding_of(wrong)


def mistakes(wrong: Wrong) -> Iterator[tuple[str, Gradient]]:
    """Make the mistakes, one after the other.

    Yields:
        What to do about each, and the gradient that it gives.
    """
    yield from wrong_weights(wrong)
    yield from missing_rows(wrong)
    yield from wrong_options(wrong)
    if wrong.reference.settings.clip_norm:
        yield from wrong_clipping(wrong)


def wrong_weights(wrong: Wrong) -> Iterator[tuple[str, Gradient]]:
    """Weigh rows wrongly, as `mistakes`."""
    share = wrong.share_of_row
    group = share * wrong.pieces + wrong.piece_of_row
    in_share = share.bincount()[share].double()
    in_group = group.bincount()[group].double()
    n = wrong.rows
    present = len(share.unique())
    for count in {present, wrong.shares}:
        alike = 1 / (in_share * count)
        yield f"only unequal shares are wrong: {BY_SAMPLES}", wrong.gradient(alike)
    groups = len(group.unique())
    yield f"only unequal pieces are wrong: {BY_SAMPLES}", wrong.gradient(1 / (in_group * groups))
    advice = "the loss is the sum over the rows of a micro-batch: give the mean over them"
    yield advice, wrong.gradient(in_group / n)


def missing_rows(wrong: Wrong) -> Iterator[tuple[str, Gradient]]:
    """Leave out rows, as `mistakes`."""
    share = wrong.share_of_row
    piece = wrong.piece_of_row
    every = torch.full((wrong.rows,), 1 / wrong.rows, dtype=torch.float64)
    look = "look at the exchange of gradients (core/exchange.py, core/update.py)"
    for number in range(wrong.shares):
        mine = share == number
        alone = mine / mine.sum().clamp(min=1)
        of_share = f"share {number} of {wrong.shares} of the batch"
        yield f"{of_share} is missing in it: {look}", wrong.gradient(every * ~mine)
        yield f"{of_share} is in it twice: {look}", wrong.gradient(every + every * mine)
        advice = f"it is that of {of_share} alone: {look}"
        yield advice, wrong.gradient(every * mine)
        yield advice, wrong.gradient(alone)
    pieces = int(piece.max()) + 1
    keep = "a share's gradient is the sum over all its pieces: clear gradients once an update"
    for number in range(pieces if pieces > 1 else 0):
        mine = piece == number
        yield (
            f"only piece {number + 1} of each share is in it: {keep}",
            wrong.gradient(every * mine),
        )
        for other in range(wrong.shares):
            lost = mine & (share == other)
            advice = f"piece {number + 1} of share {other} is missing in it: {keep}"
            yield advice, wrong.gradient(every * ~lost)


def wrong_options(wrong: Wrong) -> Iterator[tuple[str, Gradient]]:
    """Leave out options, or draw their random numbers for each process apart, as `mistakes`."""
    settings = wrong.reference.settings
    for names, advice in LEFT_OUT.items():
        used = [name for name in names if getattr(settings, name)]
        if used:
            said = f"{flags(used)} is not in it: {advice}"
            yield said, wrong.gradient(settings=dict.fromkeys(used, 0.0))
    drawing = [name for name in ("dropout", "affine", "elastic") if getattr(settings, name)]
    if drawing:
        share = wrong.share_of_row
        pieces = wrong.pieces
        for source in (share, share * pieces + wrong.piece_of_row):
            advice = f"each process draws {flags(drawing)} for itself: {DRAW_FOR_ALL}"
            yield advice, wrong.gradient(drawn_by=source)


def flags(names: list[str]) -> str:
    """Return options as a user writes them."""
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def wrong_clipping(wrong: Wrong) -> Iterator[tuple[str, Gradient]]:
    """Limit the wrong norm, as `mistakes`."""
    limit = wrong.reference.settings.clip_norm
    whole = wrong.gradient(settings={"clip_norm": 0.0})
    before = "limit the norm of the mean over all processes, after it has been reduced, not of each one's part"
    said = f"each process's part is clipped by --clip-norm before they are added up: {before}"
    for of_mean in (True, False):
        yield said, sum_of_clipped_parts(wrong, limit, of_mean=of_mean)
    each = {name: clipped({name: tensor}, limit)[name] for name, tensor in whole.items()}
    yield "--clip-norm limits the norm of each tensor, not that of all together", each
    cut = {name: tensor.clamp(-limit, limit) for name, tensor in whole.items()}
    yield "--clip-norm cuts off each number, as clip_grad_value_: limit the norm of all", cut
    for factor in {wrong.world, wrong.shares}:
        for wrong_limit in (limit * factor, limit / factor):
            advice = f"it is clipped to the norm {wrong_limit:g}, not to --clip-norm {limit:g}"
            yield f"{advice}: the limit is that of the global batch", clipped(whole, wrong_limit)


def sum_of_clipped_parts(wrong: Wrong, limit: float, *, of_mean: bool) -> Gradient:
    """Return the sum of what shares contribute if each is clipped by itself.

    Args:
        wrong: the gradient.
        limit: of the norm.
        of_mean: whether it is that of the mean over the share, and not of its part of the sum.
    """
    total = {name: torch.zeros_like(tensor) for name, tensor in wrong.expected.items()}
    factor = wrong.shares if of_mean else 1
    for number in range(wrong.shares):
        mine = (wrong.share_of_row == number).double() / wrong.rows
        part = clipped(wrong.gradient(mine * factor, settings={"clip_norm": 0.0}), limit)
        total = {name: total[name] + part[name] / factor for name in total}
    return total


def multiple_of(wrong: Wrong) -> str:
    """Return what to do if a gradient is a multiple of the right one; empty if it is not."""
    product = 0.0
    for name, tensor in wrong.expected.items():
        product += float((tensor * wrong.found[name]).sum())
    norm = norm_of(wrong.expected)
    factor = product / norm**2 if norm else math.nan
    if not math.isfinite(factor) or math.isclose(factor, 1, rel_tol=ROUNDED):
        return ""
    if not wrong.is_it({name: factor * tensor for name, tensor in wrong.expected.items()}):
        return ""
    if factor == 0:
        return (
            "it is 0: nothing of the loss comes to the weights, or gradients are cleared too early"
        )
    what = f"it is {factor:.6g} times the right one"
    if wrong.reference.settings.clip_norm:
        limit = wrong.reference.settings.clip_norm
        return (
            f"{what}, with the norm {norm_of(wrong.found):.6g}: --clip-norm {limit:g} is the limit "
            "of the 2-norm of all tensors together, and is applied once"
        )
    if math.isclose(factor, wrong.shares):
        return f"{what}, as many as there are shares: add the processes' parts up once, as they are"
    if math.isclose(factor, 1 / wrong.shares):
        return (
            f"{what}, for there are {wrong.shares} shares: the parts are to be added, not averaged"
        )
    return f"{what}: look at what the loss is multiplied by"


def rounding_of(wrong: Wrong) -> str:
    """Return what to do if a gradient is right but for a dtype's rounding; empty if it is not."""
    gap = {name: tensor - wrong.found[name] for name, tensor in wrong.expected.items()}
    share = norm_of(gap) / (norm_of(wrong.expected) or 1.0)
    dtype = as_dtype(share)
    if not dtype:
        return ""
    return (
        f"it is rounded by {share:.0e} of its size, as {dtype} is: compute and exchange it in the "
        "weights' own dtype, on every process"
    )
