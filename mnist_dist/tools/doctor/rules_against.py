"""Rules that hold a run on several processes against the same one on one process."""

import math

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Record

CLOSE = 1e-3  # of the gradient: rounding of float32 is a thousandth of that
CLOSE_ROUNDED = 0.05  # likewise, where the model computes in bfloat16 or float16
ALIKE = 0.8  # the cosine of two gradients of other samples
ROUGHLY = 0.15
OF_OWN_ROWS = (
    "each process computes the loss of all rows, but has the gradients of its own rows only"
)


def first_samples(ranks: list[Record]) -> list[int] | None:
    """Return the numbers of the samples of the first update, sorted; None if they are unknown."""
    found: list[int] = []
    for record in ranks:
        trainings = record.trainings()
        if not trainings or not record.updates or not trainings[0].batches:
            return None
        passes = record.updates[0].backward
        batches = trainings[0].batches[:passes]
        if not all(batches):
            return None  # a stream's samples have no numbers
        found += [number for batch in batches for number in batch]
    return sorted(found)


def rows_of(ranks: list[Record]) -> int:
    """Return how many rows the first update is made of; 0 if that is unknown."""
    numbers = first_samples(ranks)
    if numbers:
        return len(numbers)
    return sum(record.updates[0].rows or 0 for record in ranks)


def global_batch(case: Case) -> Finding | None:
    """A batch size that is each process's own."""
    alone = case.alone
    assert alone is not None
    one = rows_of([alone])
    several = rows_of(case.ranks)
    if not one or one == several:
        return None
    words = f"an update has {one} rows on 1 process and {several} on {case.world}"
    if several == one * case.world:
        words += ": batch_size is per process"
    rate = case.first.updates[0].rates == alone.updates[0].rates
    same = ", at the same learning rate" if rate else ", at a different learning rate"
    return Finding("NOTE", "batch", words + same, place=case.first.updates[0].place)


def other_start(case: Case) -> Finding | None:
    """First weights that depend on the number of processes."""
    alone = case.alone
    assert alone is not None
    one = alone.updates[0].weights
    several = case.first.updates[0].weights
    if one == several or case.first.is_sharded:
        return None
    return Finding(
        "NOTE",
        "first weights",
        "they differ from those on 1 process, so the first gradients cannot be compared",
        "initialise them with the same seed on every rank",
        case.first.updates[0].place,
    )


def gradient(case: Case) -> Finding | None:
    """A first gradient that is not that on one process."""
    alone = case.alone
    assert alone is not None
    first_alone = alone.updates[0]
    first = case.first.updates[0]
    if not first_alone.sketch or not first.sketch or first_alone.norm == 0:
        return None
    if first_alone.weights != first.weights:
        return None
    one = [value / first_alone.clip_factor for value in first_alone.sketch]
    several = [value / first.clip_factor for value in first.sketch]
    product = sum(mine * its for mine, its in zip(one, several, strict=True))
    ratio = product / sum(mine * mine for mine in one)
    off = math.dist(several, [ratio * mine for mine in one]) / math.hypot(*several)
    numbers = first_samples([alone])
    same = numbers is not None and numbers == first_samples(case.ranks)
    if same:
        return of_same_samples(case, ratio, off)
    norms = [update.norm / update.clip_factor for update in (first, first_alone)]
    return of_other_samples(case, norms[0] / norms[1], off)


def of_same_samples(case: Case, ratio: float, off: float) -> Finding | None:
    """Judge the gradients of the same samples at the same weights.

    Args:
        case: all records.
        ratio: of the gradient on several processes to that on one.
        off: by how much it is another one, but for the ratio.
    """
    close = CLOSE_ROUNDED if case.first.updates[0].is_rounded else CLOSE
    if off < close and abs(ratio - 1) < close:
        return None
    words = "for the same samples and weights, the first gradient"
    if off < close:
        words += f" is {ratio:.4g} times that on 1 process"
        if ratio < 1 and case.first.updates[0].gathers_rows:
            words += f": {OF_OWN_ROWS}"
        advice = how_to_scale(case, ratio)
    else:
        words += f" differs from that on 1 process by {off:.1g} of its size"
        advice = "look at what each process computes from its own rows alone: shares, masks, normalisation"
    return Finding("FAIL", "gradient", words, advice, case.first.updates[0].backward_place)


def of_other_samples(case: Case, ratio: float, off: float) -> Finding | None:
    """Judge the gradients of a batch and of one that is larger by the number of processes.

    Args:
        case: all records.
        ratio: of their norms.
        off: by how much they point elsewhere.
    """
    points_alike = off < math.sqrt(1 - ALIKE**2)
    found = divided_by_processes(case)
    if found:
        return found
    is_sum = abs(ratio / case.world - 1) < ROUGHLY
    is_part = abs(ratio * case.world - 1) < ROUGHLY
    if case.world == 1 or not points_alike or not (is_sum or is_part):
        return None
    words = f"the first gradient is {ratio:.2f} times as large as on 1 process, about "
    if is_sum:
        words += f"{case.world} times: is it a sum where a mean was meant?"
    elif case.first.updates[0].gathers_rows:
        words += f"1 / {case.world}: {OF_OWN_ROWS}"
    else:
        words += f"1 / {case.world}: is the loss divided by the number of processes?"
    place = case.first.updates[0].backward_place
    return Finding("WARN", "gradient", words, how_to_scale(case, ratio), place)


def how_to_scale(case: Case, ratio: float) -> str:
    """Return what to do about a gradient that is a multiple of that on one process.

    Args:
        case: all records.
        ratio: of the gradient on several processes to that on one.
    """
    if ratio > 1:
        return "divide the sum of gradients, or the loss, by the number of processes, once"
    if case.first.updates[0].gathers_rows:
        return "multiply the loss by world_size, or gather the rows with a gradient"
    return "divide once less: DistributedDataParallel takes the mean over processes itself"


def divided_by_processes(case: Case) -> Finding | None:
    """Judge a loss that is divided by the number of processes before DDP takes their mean."""
    assert case.alone is not None
    update = case.first.updates[0]
    one = case.alone.updates[0].divisor
    if not update.wrapped or case.world == 1 or update.divisor != one * case.world:
        return None
    words = f"the loss is divided by {update.divisor:g}, and by {one:g} on 1 process; the wrapper "
    words += "divides by the number of processes, too"
    advice = "leave your own division out: the wrapper takes the mean over processes"
    return Finding("FAIL", "gradient", words, advice, update.backward_place)


def updates_an_epoch(case: Case) -> Finding | None:
    """Numbers of updates in an epoch that do not follow from the batches."""
    alone = case.alone
    assert alone is not None
    mine = [epoch for epoch in alone.trainings() if epoch.complete]
    its = [epoch for epoch in case.first.trainings() if epoch.complete]
    one = rows_of([alone])
    several = rows_of(case.ranks)
    if not (mine and its and one and several):
        return None
    samples_one = mine[0].updates * one
    samples_several = its[0].updates * several
    if abs(samples_one - samples_several) <= one + several:
        return None
    return Finding(
        "WARN",
        "updates",
        f"an epoch has {mine[0].updates} updates of {one} rows on 1 process, and "
        f"{its[0].updates} of {several} on {case.world}",
        "look at what ends the loop, and at how the samples are shared out",
        its[0].place,
    )
