"""What is wrong with watched trainings, in order: the first thing is the cause of the others."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mnist_dist.tools.verify import reference
from mnist_dist.tools.verify.session import Session, Trial
from mnist_dist.tools.verify.watched.differences import TOLERANCE, in_words, told_apart
from mnist_dist.tools.verify.watched.files import COUNT
from mnist_dist.tools.verify.watched.results import Observation, wrong_samples

# The lines of the table about a training, in the order in which an update comes to their subjects.
ORDER = (
    "initial weights",
    "samples",
    "gradient",
    "schedule",
    "update",
    "moving average",
    "checkpoint",
    "evaluation",
    "results",
)
COMPARED = ("initial weights", "gradient", "schedule", "update", "moving average")
ENDED = "train.py ends with this on every process: do what it says"


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a training.

    Attributes:
        line: of the table.
        title: of the training.
        number: of the training, from 0.
        update: from 1.
        rank: of the process that saw it.
        text: what it is.
        advice: what to do about it; empty if that is still to be found out.
        ends: whether it is an error that ended the training.
    """

    line: str
    title: str
    number: int
    update: int
    rank: int
    text: str
    advice: str = ""
    ends: bool = False

    @property
    def when(self) -> tuple[int, int, int, int]:
        """What is compared to find the first one."""
        return self.number, self.update, ORDER.index(self.line), self.rank


def faults_of(session: Session, trials: Mapping[str, Trial]) -> list[Fault]:
    """Return all that is wrong with the trainings that were watched, the first one first."""
    found: list[Fault] = []
    for number, (title, observations) in enumerate(session.observations.items()):
        trial = trials[title]
        for rank, observation in enumerate(observations):
            found += differences(session, trial, title, number, rank, observation)
            for line, update, text, advice in observation.faults:
                words = f"{title}: {text}"
                found.append(Fault(line, title, number, update, rank, words, advice))
        found += wrong_batches(trial, title, number, observations)
        found += error(title, number, observations[0])
    found.sort(key=lambda fault: fault.when)
    # An error that came later follows from what came first.
    return found[:1] + [fault for fault in found[1:] if not fault.ends]


def differences(
    session: Session,
    trial: Trial,
    title: str,
    number: int,
    rank: int,
    observation: Observation,
) -> Iterator[Fault]:
    """Yield how what a process saw of a training differs from the reference."""
    for line in COMPARED:
        size, update = observation.difference_of(line)
        if size <= TOLERANCE:
            continue
        at = f"first at update {update}"
        much = f"differs from one process's {in_words(size)}"
        if line == "schedule" and math.isfinite(observation.rate):
            right = reference.rate(trial.settings, update - 1, trial.updates)
            is_there, should_be = told_apart(observation.rate, right)
            much = f"has the learning rate {is_there} and should have {should_be}"
        text = f"{title}: {session.on(rank)} {much}, {at}"
        yield Fault(line, title, number, update, rank, text)


def wrong_batches(
    trial: Trial,
    title: str,
    number: int,
    observations: list[Observation],
) -> Iterator[Fault]:
    """Yield the first batch of a training that has other samples than it should have."""
    found = wrong_samples(observations, trial.settings, len(trial.samples.train))
    if found:
        update, text = found
        yield Fault("samples", title, number, update, 0, f"{title}: {text}")


def error(title: str, number: int, first: Observation) -> Iterator[Fault]:
    """Yield the error by which a training ended on all processes.

    Args:
        title, number: of the training.
        first: what the first process saw.
    """
    if not first.error:
        return
    text = f"{title}, after update {first.updates}: {first.error}"
    advice = ENDED
    if first.line == "evaluation" and not first.error.startswith("UserError"):
        advice = COUNT
    if first.line == "initial weights":
        advice = ""
    yield Fault(first.line, title, number, first.updates + 1, 0, text, advice, ends=True)
