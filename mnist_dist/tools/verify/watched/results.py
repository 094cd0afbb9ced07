"""What a process sees of a watched training, and what is wrong with the samples that all saw."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mnist_dist.digits.config import TrainConfig
from mnist_dist.tools.verify import reference

DONE = "done"
KILLED = "enough"
STOPPED = "stopped"


@dataclass
class Observation:
    """What a process saw of one training, for the others.

    Attributes:
        differences: for each kind of thing the largest difference from the reference, and the
            update, from 1, of the first that exceeds the tolerance, or of the largest.
        faults: what is wrong with what the training recorded: the line of the table, the update,
            what it is, and what to do, in words.
        samples: for each update the numbers of this process's samples.
        batches: for each update its epoch and its number in it, from 0.
        updates: those made when it was over.
        end: how it ended: DONE, KILLED, STOPPED, or what went wrong.
        line: what it was about at its end, as a line of the table.
        gradient_is: what the first wrong gradient is instead, in words, if that is known.
        rate: the first wrong learning rate.
        roundings: for each update how far its gradient is from the reference's, as a share of it
            (of norms).
        dtypes: of the weights when the training began.
        digest: of the weights when the training began.
    """

    differences: dict[str, tuple[float, int]] = field(default_factory=dict)
    faults: list[tuple[str, int, str, str]] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)
    updates: int = 0
    end: str = DONE
    line: str = "initial weights"
    gradient_is: str = ""
    rate: float = math.nan
    roundings: list[float] = field(default_factory=list)
    dtypes: str = ""
    digest: str = ""

    @property
    def error(self) -> str:
        """What went wrong, if anything did."""
        return "" if self.end in (DONE, KILLED, STOPPED) else self.end

    def difference_of(self, kind: str) -> tuple[float, int]:
        """Return how far things of a kind are from the reference, and at which update."""
        size, update = self.differences.get(kind, (0.0, 0))
        return size, update

    def note(self, kind: str, size: float, update: int, tolerance: float) -> None:
        """Note a difference.

        Args:
            kind: of what.
            size: how large it is.
            update: its number, from 1.
            tolerance: the largest difference that is rounding.
        """
        largest, first = self.difference_of(kind)
        if largest > tolerance:  # what comes after the first may follow from it
            update = first
        if not first or size > largest:
            self.differences[kind] = size, update


def wrong_samples(
    observations: Sequence[Observation],
    settings: TrainConfig,
    samples: int,
    first: int = 0,
) -> tuple[int, str] | None:
    """Find how the batches of all processes together differ from those of one.

    Args:
        observations: of all processes.
        settings: of the training.
        samples: those in the training set.
        first: updates that were made before.

    Returns:
        The update, from 1, of the first difference, and what it is, in words; None if there is
        none.
    """
    per_epoch = math.ceil(samples / settings.batch_size)
    updates = range(first, settings.epochs * per_epoch)
    expected = [divmod(update, per_epoch) for update in updates]
    found = [
        wrong_numbers(observations, expected),
        wrong_contents(observations, settings, samples, expected),
    ]
    faults = [each for each in found if each]
    if not faults:
        return None
    number = min(number for number, _ in faults)
    _, text = faults[0]
    return first + number + 1, text


def wrong_numbers(
    observations: Sequence[Observation],
    expected: Sequence[tuple[int, int]],
) -> tuple[int, str] | None:
    """Find a process whose batches are not the right ones by their numbers.

    Args:
        observations: of all processes.
        expected: the epoch of each batch and its number in it, from 0.

    Returns:
        The place of the first wrong one among them, and what is wrong, in words.
    """
    for rank, observation in enumerate(observations):
        given = [tuple(batch) for batch in observation.batches]
        is_short = observation.end == DONE and len(given) < len(expected)
        if is_short or given != expected[: len(given)]:
            right = equal_at_the_beginning(given, expected)
            count = f"process {rank} has {len(given)} batches of {len(expected)}"
            return right, f"{count}, different ones from its {right + 1}. on"
    return None


def wrong_contents(
    observations: Sequence[Observation],
    settings: TrainConfig,
    samples: int,
    expected: Sequence[tuple[int, int]],
) -> tuple[int, str] | None:
    """Find the first batch that does not have its samples; arguments and value as above."""
    first = expected[0][0] * math.ceil(samples / settings.batch_size) + expected[0][1]
    made = min(complete(observation, first) for observation in observations)
    for number, (epoch, batch) in enumerate(expected[:made]):
        found = wrong_batch(observations, settings, samples, number, epoch, batch)
        if found:
            twice = visited_twice(observations, number - batch, number)
            if twice:
                found += f", and {twice} more than once in the epoch"
            return number, f"update {first + number + 1} has {found}"
    return None


def complete(observation: Observation, first: int) -> int:
    """Count the batches whose samples a process has seen, without one that an error ended.

    Args:
        observation: of the process.
        first: updates that were made before.
    """
    seen = len(observation.samples)
    return min(seen, observation.updates - first) if observation.error else seen


def equal_at_the_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count how many items two sequences have in common before they differ."""
    for number, (its, others) in enumerate(zip(one, other, strict=False)):
        if its != others:
            return number
    return min(len(one), len(other))


def wrong_batch(
    observations: Sequence[Observation],
    settings: TrainConfig,
    samples: int,
    number: int,
    epoch: int,
    batch: int,
) -> str:
    """Return which samples a global batch has that it should not have, in words.

    Args:
        observations, settings, samples: as for `wrong_samples`.
        number: of the batch among those that were seen.
        epoch, batch: the epoch, and the number of the batch in it, from 0.
    """
    together = samples_of(observations, number)
    right = batch_of(settings, samples, epoch, batch)
    if together == right:
        return ""
    return f"{len(together)} samples, not those {len(right)} of one process"


def samples_of(observations: Sequence[Observation], number: int) -> list[int]:
    """Return the samples of all processes in one of the batches that they saw, sorted."""
    together = []
    for observation in observations:
        together += observation.samples[number]
    return sorted(together)


def batch_of(settings: TrainConfig, samples: int, epoch: int, batch: int) -> list[int]:
    """Return the samples of a global batch of one process, sorted; arguments as `wrong_batch`."""
    begin = batch * settings.batch_size
    order = reference.order(samples, settings.seed, epoch)
    return sorted(order[begin : begin + settings.batch_size].tolist())


def visited_twice(observations: Sequence[Observation], first: int, last: int) -> int:
    """Count the samples that are more than once in some of the batches that were seen.

    Args:
        observations: of all processes.
        first, last: the first and the last of these batches.
    """
    visits: Counter[int] = Counter()
    for number in range(max(first, 0), last + 1):
        visits.update(samples_of(observations, number))
    return sum(count > 1 for count in visits.values())
