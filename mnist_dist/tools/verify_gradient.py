"""Why a gradient is wrong, by trials: without options, in equal shares, with each option alone."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mnist_dist.digits.config import TrainConfig
from mnist_dist.tools.verify_session import TOLERANCE, Session, Trial
from mnist_dist.tools.verify_trainings import TESTED
from mnist_dist.tools.watched import cut

LATEST = 12  # the update up to which trials go at most
ROUNDED = 5e-3  # the relative difference below which a gradient is right but for its dtype

LEFT_OUT = "draw it for the whole global batch and take this process's rows: "
LEFT_OUT += "micro_batch.rand (task/distortions.py)"
OPTIONS = {  # those that change the gradient: what to look at if it is wrong with one alone
    "label_smoothing": "the loss must spread that share of the target over all classes "
    "(task/objective.py)",
    "dropout": LEFT_OUT,
    "affine": LEFT_OUT,
    "elastic": LEFT_OUT,
    "clip_norm": "limit the norm of the mean over all processes, once it is there, "
    "not of each one's part",
    "gradient_accumulation_steps": "a piece's loss is to be weighed by its samples of those "
    "of the global batch, as any other",
}
ALSO_LEFT_OUT = ("schedule", "weight_decay", "ema")


def why_gradient(session: Session, trials: Mapping[str, Trial]) -> str:
    """Return what to do about a wrong gradient."""
    title = first_wrong(session)
    trial = trials[title]
    updates = [LATEST]
    for observation in session.observations[title]:
        size, update = observation.difference_of("gradient")
        if not size <= TOLERANCE:
            updates.append(update)
    at = min(updates)
    defaults = TrainConfig()
    off: dict[str, Any] = {name: getattr(defaults, name) for name in (*OPTIONS, *ALSO_LEFT_OUT)}
    plain = Trial(replace(trial.settings, **off), trial.samples)
    rounding = rounding_in(session, plain, "plain", at)
    if rounding:
        return why_plain(session, plain, at, rounding)
    return which_options(session, trial, plain, at)


def first_wrong(session: Session) -> str:
    """Return the title of the first training whose gradient is wrong."""
    for title, observations in session.observations.items():
        if any(not each.difference_of("gradient")[0] <= TOLERANCE for each in observations):
            return title
    raise ValueError("no gradient is wrong")


def rounding_in(session: Session, trial: Trial, title: str, at: int) -> float:
    """Watch a trial.

    Args:
        session: the processes.
        trial: the training.
        title: its name.
        at: the update after which it ends.

    Returns:
        The largest relative difference of its gradients; 0 if it is right.
    """
    title = f"trial, {title}"
    session.watch("gradient", title, trial, enough=at)
    observations = session.observations.pop(title)
    is_right = True
    for observation in observations:
        size = observation.difference_of("gradient")[0]
        is_compared = "gradient" in observation.differences
        is_right = is_right and is_compared and size <= TOLERANCE
    return 0.0 if is_right else max(each.rounding for each in observations)


def why_plain(session: Session, plain: Trial, at: int, rounding: float) -> str:
    """Return what to do about a gradient that is wrong without options.

    Args:
        session: the processes.
        plain: the training without options.
        at: the update at which it is wrong.
        rounding: the relative difference of its gradient.
    """
    world = session.supervisor.world
    batch_size = world * max(1, plain.settings.batch_size // world)
    whole_batches = len(plain.samples.train) // batch_size
    if world > 1 and whole_batches:
        samples = cut(plain.samples, whole_batches * batch_size, TESTED)
        equal = Trial(replace(plain.settings, batch_size=batch_size), samples)
        if not rounding_in(session, equal, "equal shares", at):
            return (
                "only unequal shares are wrong: weigh a process's loss by its samples, "
                "not by processes"
            )
    if rounding == math.inf:
        return (
            "it is no number at that update: look at the loss and its gradient there, "
            "and for an overflow"
        )
    if rounding < ROUNDED:
        return (
            f"it is rounded by {rounding:.0e} of itself, as bfloat16 is: "
            "exchange it in the weights' own dtype"
        )
    return "it is not the mean over the samples of the global batch: look at the loss, and at core/"


def which_options(session: Session, trial: Trial, plain: Trial, at: int) -> str:
    """Return which options alone make a gradient wrong, and what to do about them.

    Args:
        session: the processes.
        trial: the training with all options.
        plain: the same without.
        at: the update at which it is wrong.
    """
    flags: dict[str, list[str]] = {}
    for name, advice in OPTIONS.items():
        value = getattr(trial.settings, name)
        if value == getattr(plain.settings, name):
            continue
        with_one = Trial(replace(plain.settings, **{name: value}), plain.samples)
        if rounding_in(session, with_one, name, at):
            flags.setdefault(advice, []).append(f"--{name.replace('_', '-')}")
    found = [
        f"{' and '.join(names)} alone made it wrong: {advice}" for advice, names in flags.items()
    ]
    if not found:
        return "without options, and with each alone, it is right: look at how they work together"
    return "; ".join(found)
