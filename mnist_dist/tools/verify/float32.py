"""The line of `verify` about float32, in which the real training calculates."""

import math
from dataclasses import replace

from mnist_dist.task.data import DataSplits, Split
from mnist_dist.tools.verify.answer import Check
from mnist_dist.tools.verify.session import Session, Trial
from mnist_dist.tools.verify.watched.differences import as_dtype

LINE = "float32"
UPDATES = 3
# As shares of the norm. Float32 gives some 1e-6; a unit that rounding turns on or off gives up to
# 1e-3, but hardly in each of the updates; and float16, the finest dtype below, 2e-4 in each.
LARGEST = 5e-5
ADVICE = (
    "compute and exchange gradients in float32: without autocast, TF32 and a hook that compresses"
)


def check_float32(session: Session, trial: Trial) -> Check:
    """Check whether gradients in float32 are those in float64, but for the rounding of float32."""
    settings = replace(trial.settings, dtype="float32", checkpoint_every=0)
    short = Trial(settings, in_float32(trial.samples))
    session.watch(LINE, LINE, short, enough=UPDATES, tolerance=math.inf)
    observations = session.observations.pop(LINE)
    faults = []
    largest = 0.0
    for rank, observation in enumerate(observations):
        if observation.error:
            faults.append(f"{session.on(rank)}: {observation.error}")
            continue
        share = min(observation.roundings)
        largest = max(largest, share)
        if not share <= LARGEST:
            dtype = as_dtype(share)
            like = f", as {dtype} is" if dtype else ""
            faults.append(
                f"{session.on(rank)}: they are rounded by {share:.0e} of their size{like}"
            )
    right = f"gradients differ from those in float64 by {largest:.0e} of their size"
    return Check(LINE, not faults, "; ".join(faults[:2]) or right, ADVICE)


def in_float32(samples: DataSplits) -> DataSplits:
    """Return a data set whose images are float32."""
    return replace(
        samples,
        train=split_in_float32(samples.train),
        test=split_in_float32(samples.test),
        val=split_in_float32(samples.val) if samples.val else None,
    )


def split_in_float32(split: Split) -> Split:
    """Return a split whose images are float32."""
    return Split(split.images.float(), split.labels)
