"""Rules on a run that was stopped and started again: does it resume as if nothing had happened?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mnist_dist.tools.doctor.case import Case, listed
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Record, Update
from mnist_dist.tools.doctor.resume_samples import Samples

CLOSE = 1e-3  # of the gradient: rounding of float32 is a thousandth of that
EQUAL = 1e-6  # of a learning rate


@dataclass
class Resume:
    """A run that was stopped, and the one that went on from it.

    Attributes:
        stopped: the records of the processes of the run that was stopped.
        resumed: those of the run that was started again.
        asked_after: updates after which the first one was sent SIGTERM.
        complaint: of a process of the second one that failed.
        hangs: whether the second one hung.
    """

    stopped: list[Record]
    resumed: list[Record]
    asked_after: int
    complaint: str = ""
    hangs: bool = False


@dataclass
class Pair:
    """The updates after the resume beside those that would have been.

    Attributes:
        whole: the records of the run that was not stopped.
        resumed: those of the one that was started again.
        made: updates that the checkpoint holds.
        meant: updates of the first process that would have been, from the next one on.
        found: updates that were made instead.
    """

    whole: list[Record]
    resumed: list[Record]
    made: int
    meant: list[Update] = field(init=False)
    found: list[Update] = field(init=False)

    def __post_init__(self) -> None:
        self.meant = self.whole[0].updates[self.made :]
        self.found = self.resumed[0].updates

    @property
    def place(self) -> str:
        """The line of the first update after the resume."""
        return self.found[0].place


def judge_resume(case: Case, resume: Resume) -> list[Finding]:
    """Return what was found, or a line that says that the resume is right.

    Args:
        case: the run that was not stopped.
        resume: the two others.
    """
    failed = not_resumed(case, resume)
    if failed:
        return [failed]
    if case.first.is_sharded:
        words = "each process holds a part of the weights: the resume was not compared"
        return [Finding("NOTE", "resume", words)]
    parted = first_difference(case.first, resume.stopped[0])
    if parted:
        words = f"two runs with the same flags differ from update {parted} on"
        advice = "seed the weights, the order and the masks; nothing can be compared before that"
        words += ", so it is unknown what should come after the resume"
        return [Finding("NOTE", "resume", words, advice)]
    made = updates_in_checkpoint(case, resume)
    if made is None or made == 0:
        return [not_loaded(case, resume, made)]
    pair = Pair(case.ranks, resume.resumed, made)
    for rule in RULES:
        found = rule(pair)
        if found:
            return [found, *made_again(resume, made)]
    count = "the update after it is" if len(pair.found) == 1 else "the updates after it are"
    words = f"after update {made} {count} those that would have been"
    return [Finding("PASS", "resume", words), *made_again(resume, made)]


def not_resumed(case: Case, resume: Resume) -> Finding | None:
    """A run that is not stopped by SIGTERM, or that does not start again."""
    made = resume.stopped[0].made
    if made >= case.first.made and made > resume.asked_after:
        return Finding(
            "WARN",
            "resume",
            f"sent SIGTERM after update {resume.asked_after}, it makes all its {made} updates",
            "save and end soon: a cluster kills what is still there after half a minute or so",
        )
    records = [record for record in resume.resumed if record.error]
    if resume.complaint or resume.hangs or not resume.resumed or not resume.resumed[0].made:
        words = resume.complaint or ("it hangs" if resume.hangs else "it makes no update")
        place = records[0].error_place if records else ""
        if records:
            words = records[0].error
        advice = "look at what it reads, and at what it had written when it was stopped"
        return Finding("FAIL", "resume", f"after the restart it fails: {words}", advice, place)
    return None


def first_difference(one: Record, other: Record) -> int:
    """Return the first update before which the weights of two runs differ; 0 if none does."""
    for mine, its in zip(one.updates, other.updates, strict=False):
        if mine.weights != its.weights:
            return mine.number
    return 0


def updates_in_checkpoint(case: Case, resume: Resume) -> int | None:
    """Return after how many updates the weights were what the resume begins with, None if never."""
    first = resume.resumed[0].updates[0].weights
    stopped = resume.stopped[0]
    if first == stopped.stopped_with and stopped.made == resume.asked_after:
        return stopped.made
    found = None
    for update in case.first.updates:
        if update.weights == first and update.number - 1 <= stopped.made:
            found = update.number - 1
    return found


def not_loaded(case: Case, resume: Resume, made: int | None) -> Finding:
    """Return the finding of a run that begins with other weights than those of a checkpoint.

    Args:
        case: the run that was not stopped.
        resume: the two others.
        made: 0 if it begins with the first weights, None if with those of no update.
    """
    record = resume.resumed[0]
    place = record.updates[0].place
    after = resume.stopped[0].made
    if made == 0:
        words = f"stopped after update {after} and started again, it begins with the first weights"
        advice = "save on SIGTERM, and load all of it; or stop it after a checkpoint"
        return Finding("FAIL", "resume", words, advice, place)
    first = record.updates[0].weights
    equal = {
        update.number: [mine == its for mine, its in zip(first, update.weights, strict=False)]
        for update in case.first.updates[1 : after + 1]
    }
    nearest = max(equal, key=lambda number: sum(equal[number]), default=0)
    words = "started again, it begins with weights that it never had"
    if nearest and any(equal[nearest]):
        names = record.optimizer_of(record.updates[0]).names
        differing = [
            name for name, is_equal in zip(names, equal[nearest], strict=False) if not is_equal
        ]
        words += f": those after update {nearest - 1}, but for {listed(differing)}"
    return Finding("FAIL", "resume", words, "save and load all weights, bit by bit", place)


def made_again(resume: Resume, made: int) -> list[Finding]:
    """Return a line about updates that are made a second time, because no checkpoint has them."""
    lost = resume.stopped[0].made - made
    if lost <= 0:
        return []
    words = f"stopped after update {resume.stopped[0].made}, it resumes from update {made}: "
    words += f"{lost} are made again"
    advice = "save on SIGTERM, so that none is lost"
    return [Finding("NOTE", "resume", words, advice)]


def rate(pair: Pair) -> Finding | None:
    """Learning rates that are other ones than they would have been."""
    for meant, found in zip(pair.meant, pair.found, strict=False):
        for one, other in zip(meant.rates, found.rates, strict=False):
            if math.isclose(one, other, rel_tol=EQUAL):
                continue
            words = f"after the resume the learning rate of update {meant.number} is {other:.6g}; "
            words += f"without a stop it is {one:.6g}"
            advice = "save and load scheduler.state_dict(), or compute the rate from the updates"
            if found.number == 1:
                advice = (
                    "save and load optimizer.state_dict(), which holds the rate, and the scheduler"
                )
            return Finding("FAIL", "resume", words, advice, found.place)
    return None


def samples(pair: Pair) -> Finding | None:
    """Samples that come again, or never, because of the stop."""
    found = Samples(pair.whole, pair.resumed, pair.made)
    if found.are_as_meant:
        return None
    words = found.what_is_wrong()
    if not words:
        return None
    return Finding("FAIL", "resume", words, found.advice(), found.place or pair.place)


def same_rows(pair: Pair) -> Finding | None:
    """Without numbers of samples: rows of earlier updates that come again."""
    rows = pair.found[0].inputs
    if not rows or not pair.meant or rows == pair.meant[0].inputs:
        return None
    before = [
        update.number for update in pair.whole[0].updates[: pair.made] if update.inputs == rows
    ]
    if not before:
        words = f"the rows after the resume differ from those of update {pair.made + 1}"
        advice = "save and load the random states from which samples or their changes are drawn"
        return Finding("WARN", "resume", words, advice, pair.found[0].forward_place)
    words = (
        f"the first update after the resume has the rows of update {before[-1]} again instead of "
    )
    words += f"those of update {pair.made + 1}"
    advice = "save and load the random state, or the position in the data, from which they come"
    return Finding("FAIL", "resume", words, advice, pair.found[0].forward_place)


def gradient(pair: Pair) -> Finding | None:
    """A gradient of the same rows at the same weights that is another one."""
    if not pair.meant:
        return None
    meant, found = pair.meant[0], pair.found[0]
    if meant.gradients == found.gradients or is_rounding(meant.sketch, found.sketch):
        return None
    words = f"at the same weights and samples the gradient of update {meant.number} is another one"
    advice = "look at buffers, and at what else the loss depends on"
    if meant.random_state != found.random_state:
        words += ", because dropout draws from another random state"
        advice = "save and load the random states of all processes: torch.get_rng_state()"
        return Finding("WARN", "resume", words, advice, found.forward_place)
    return Finding("FAIL", "resume", words, advice, found.backward_place)


def is_rounding(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two sketches are of the same gradient, but for rounding."""
    if not one or len(one) != len(other):
        return False
    return math.dist(one, other) <= CLOSE * math.hypot(*one)


def optimizer_state(pair: Pair) -> Finding | None:
    """Weights that are others after an equal gradient and rate."""
    if len(pair.meant) < 2 or len(pair.found) < 2:
        return None
    if pair.meant[0].gradients != pair.found[0].gradients:
        return None  # but for rounding: then bits cannot be compared
    if pair.meant[1].optimizer != pair.meant[0].optimizer:
        return None
    if pair.meant[1].weights == pair.found[1].weights:
        return None
    words = (
        f"at the same weights, gradient and rate, update {pair.made + 1} leads to different weights"
    )
    advice = "save and load optimizer.state_dict(): without it momentum and averages start anew"
    return Finding("FAIL", "resume", words, advice, pair.place)


def later_updates(pair: Pair) -> Finding | None:
    """Updates further on that are others, or another number of them."""
    for meant, found in zip(pair.meant[1:], pair.found[1:], strict=False):
        same = meant.weights == found.weights or is_rounding(meant.sketch, found.sketch)
        if not same:
            words = f"update {meant.number} is the first that starts from different weights"
            advice = "look at what differs from update to update: masks, averages, the epoch"
            return Finding("WARN", "resume", words, advice, found.place)
    before, after = pair.whole[0].made - pair.made, pair.resumed[0].made
    if before != after:
        words = f"after the resume it makes {after} updates; without a stop {before} are left"
        advice = "save and load the number of the epoch, and of the updates made"
        return Finding("FAIL", "resume", words, advice, pair.place)
    return None


RULES: tuple[Callable[[Pair], Finding | None], ...] = (
    rate,
    samples,
    same_rows,
    gradient,
    optimizer_state,
    later_updates,
)
