"""The learning rate of every update, as a function of its number: nothing to step, nothing to save."""

import math


def learning_rate(
    step: int, total: int, *, peak: float = 1.0, schedule: str, warmup: float | None = None
) -> float:
    """The rate of one update.

    - constant: `peak`.
    - cosine: half a cosine from `peak` to 0, which it would reach at update `total` (Loshchilov and
      Hutter 2017).
    - one-cycle: half a cosine from peak/25 up to `peak`, then another down to peak/250,000 (Smith
      and Topin 2018, in the form of `torch.optim.lr_scheduler.OneCycleLR`, Adam's betas left
      alone).

    Before constant and cosine the rate rises in equal steps over the warm-up; one-cycle's rise is
    its warm-up.

    Args:
        step: number of the update, 0 to total - 1.
        total: updates in the whole run.
        peak: the highest rate; by default the result is a share of it.
        schedule: "constant", "cosine" or "one-cycle".
        warmup: share of the updates in which the rate rises, in [0, 1); None: 0.3 for one-cycle,
            else 0.
    """
    if schedule == "one-cycle":
        top = (
            0.3 if warmup is None else warmup
        ) * total - 1  # the update at which the rate peaks, maybe fractional
        low, lowest = peak / 25, peak / 25 / 1e4
        if step <= top:
            return between(low, peak, step / top if top > 0 else 1.0)
        top = max(top, 0)
        return between(peak, lowest, (step - top) / max(total - 1 - top, 1))
    rising = round((warmup or 0) * total)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "cosine":
        return between(peak, 0, (step - rising) / (total - rising))
    return peak


def between(start: float, end: float, share: float) -> float:
    """A point on half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
