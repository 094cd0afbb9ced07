"""Why a gradient is wrong: by what it is instead, or by trials with fewer options."""

from dataclasses import replace
from typing import Any

from mnist_dist.digits.config import TrainConfig
from mnist_dist.tools.verify.faults import ENDED, Fault
from mnist_dist.tools.verify.session import Session, Trial
from mnist_dist.tools.verify.watched.differences import TOLERANCE

LOOK = "it is not the mean over the samples of the global batch: look at the loss, and at core/"
OPTIONS = {  # those that change how a gradient is made: what to look at if it is wrong with it
    "label_smoothing": "the loss must spread that fraction of the target over all classes "
    "(task/objective.py)",
    "dropout": "its masks must be those of micro_batch.rand (task/distortions.py)",
    "affine": "its random numbers must be those of micro_batch.rand (task/distortions.py)",
    "elastic": "its random numbers must be those of micro_batch.rand (task/distortions.py)",
    "clip_norm": "limit the norm of the mean over all processes, after it has been reduced",
    "gradient_accumulation_steps": "the gradient of a share is the sum over all its pieces, each "
    "weighed by its samples (core/microbatches.py)",
    "virtual_processes": "the gradient is the sum over all shares, each once (core/exchange.py)",
}
ALSO_LEFT_OUT = ("schedule", "weight_decay", "ema")


def why_gradient(session: Session, trial: Trial, fault: Fault) -> str:
    """Return what to do about a wrong gradient.

    Args:
        session: the processes.
        trial: the training in which it was seen.
        fault: where it was seen.
    """
    known = what_it_is(session, fault.title, fault.update)
    if known:
        return known
    if fault.ends:
        return ENDED
    defaults = TrainConfig()
    off: dict[str, Any] = {name: getattr(defaults, name) for name in (*OPTIONS, *ALSO_LEFT_OUT)}
    plain = Trial(replace(trial.settings, **off), trial.samples)
    found = trouble_in(session, plain, "plain", fault.update)
    if found:
        return found
    return which_options(session, trial, plain, fault.update)


def what_it_is(session: Session, title: str, update: int) -> str:
    """Return what a wrong gradient is instead, in words; empty if no process knows.

    Args:
        session: the processes.
        title: of the training in which it was seen.
        update: the first in which it was wrong.
    """
    for observation in session.observations[title]:
        _, first = observation.difference_of("gradient")
        if observation.gradient_is and first == update:
            return observation.gradient_is
    return ""


def trouble_in(session: Session, trial: Trial, title: str, at: int) -> str:
    """Watch a trial.

    Args:
        session: the processes.
        trial: the training.
        title: its name.
        at: the update after which it ends.

    Returns:
        What is wrong with its gradients, in words; empty if nothing is.
    """
    title = f"trial, {title}"
    session.watch("gradient", title, trial, enough=at)
    known = ""
    is_right = True
    for observation in session.observations[title]:
        size, update = observation.difference_of("gradient")
        is_compared = "gradient" in observation.differences
        if not is_compared or not size <= TOLERANCE:
            is_right = False
            known = known or what_it_is(session, title, update)
    del session.observations[title]
    return "" if is_right else known or LOOK


def which_options(session: Session, trial: Trial, plain: Trial, at: int) -> str:
    """Return which options alone make a gradient wrong, and what to do about them.

    Args:
        session: the processes.
        trial: the training with all options.
        plain: the same without.
        at: the update at which it is wrong.
    """
    found: dict[str, list[str]] = {}
    for name, advice in OPTIONS.items():
        value = getattr(trial.settings, name)
        if value == getattr(plain.settings, name):
            continue
        with_one = Trial(replace(plain.settings, **{name: value}), plain.samples)
        if trouble_in(session, with_one, name, at):
            found.setdefault(advice, []).append(f"--{name.replace('_', '-')}")
    said = [
        f"{' and '.join(names)} alone made it wrong: {advice}" for advice, names in found.items()
    ]
    if not said:
        return "without options, and with each alone, it is right: look at how they interact"
    return "; ".join(said)
