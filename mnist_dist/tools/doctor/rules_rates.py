"""Rules that hold the learning rates on several processes against those on one process."""

import itertools

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Record
from mnist_dist.tools.doctor.rules_against import rows_of
from mnist_dist.tools.doctor.rules_training import BY_LOSS

LITTLE, MUCH = 0.05, 0.2  # of the highest learning rate
SAME = 1e-3  # of a factor


def rates_of(record: Record) -> list[float]:
    """Return the learning rate of the first optimizer's first group, at each of its steps."""
    updates = [update for update in record.updates if update.optimizer == 0]
    return [update.rates[0] for update in updates if update.rates]


def rates(case: Case) -> Finding | None:
    """Learning rates that are those of one process neither by updates nor by samples."""
    alone = case.alone
    assert alone is not None
    if any(each.kind == BY_LOSS for each in case.first.schedules):
        return None  # other batches have other losses
    one = rates_of(alone)
    several = rates_of(case.first)
    rows_one = rows_of([alone])
    rows_several = rows_of(case.ranks)
    if not (one and several and one[0] and rows_one and rows_several):
        return None
    factor = several[0] / one[0]
    by_updates = zip(one, several, strict=False)
    if all(is_close(mine * factor, its, one[0]) for mine, its in by_updates):
        return scaled(case, factor, rows_several / rows_one)
    seen = list(itertools.accumulate([rows_one] * len(one), initial=0))
    at_samples = dict(zip(seen, one, strict=False))
    highest_one = one.index(max(one)) * rows_one
    highest_several = several.index(max(several))
    for number, its in enumerate(several):
        mine = at_samples.get(number * rows_several)
        is_warming_up = number < highest_several or number * rows_several < highest_one
        if mine is None or is_warming_up:
            continue  # a warm-up of so many updates is the same by intent
        if not is_close(mine * factor, its, one[0] * factor):
            return other_rate(case, number + 1, mine * factor, its)
    return None


def unfinished(case: Case) -> Finding | None:
    """A schedule that comes to its end on one process, and not on several."""
    return unfinished_plan(case) or unfinished_rate(case)


def unfinished_plan(case: Case) -> Finding | None:
    """A schedule with a plan, of which less is done on several processes."""
    alone = case.alone
    assert alone is not None
    for one, several in zip(alone.schedules, case.first.schedules, strict=False):
        is_done = 0 < one.planned <= one.steps + 1
        if is_done and several.planned > several.steps + 1:
            return Finding(
                "FAIL",
                "schedule",
                f"{several.kind} makes {one.steps} of {one.planned} steps on 1 process, and "
                f"{several.steps} of {several.planned} on {case.world}: it never ends",
                "plan it by the length of the loader that is shared out",
                several.place,
            )
    return None


def unfinished_rate(case: Case) -> Finding | None:
    """A learning rate that falls to almost nothing on one process, and not on several."""
    alone = case.alone
    assert alone is not None
    one = rates_of(alone)
    several = rates_of(case.first)
    schedules = case.first.schedules
    by_loss = any(each.kind == BY_LOSS for each in schedules)
    if by_loss or not schedules or not one or not 0 < len(several) < len(one):
        return None
    is_done = one[-1] <= LITTLE * max(one)
    is_left = several[-1] > MUCH * max(several)
    if not (is_done and is_left) or is_exponential(one):
        return None
    return Finding(
        "FAIL",
        "schedule",
        f"the learning rate falls to {one[-1]:.2g} in {len(one)} updates on 1 process, and to "
        f"{several[-1]:.2g} in {len(several)} on {case.world}: the schedule never ends",
        "plan it by the number of updates that there are on so many processes",
        schedules[0].place,
    )


def is_exponential(rates: list[float]) -> bool:
    """Return whether a rate falls by the same factor from the highest one to the last: without end."""
    falling = rates[rates.index(max(rates)) :]
    factors = [after / before for before, after in itertools.pairwise(falling) if before]
    return bool(factors) and abs(factors[0] - factors[-1]) < SAME * factors[0]


def is_close(one: float, other: float, scale: float) -> bool:
    """Return whether two rates are equal but for rounding, or for one step of a schedule."""
    return abs(one - other) <= 0.05 * abs(scale)


def scaled(case: Case, factor: float, batches: float) -> Finding | None:
    """Judge a learning rate that is a multiple of that on one process."""
    if abs(factor - 1) < 1e-9:
        return None
    words = f"the learning rate is {factor:.4g} times that on 1 process"
    place = case.first.updates[0].place
    if batches > 1:
        words += f", for a batch that is {batches:.4g} times as large"
        return Finding("NOTE", "rate", words, "most likely intended", place)
    return Finding("WARN", "rate", f"{words}, for the same batch", "leave the rate as it is", place)


def other_rate(case: Case, number: int, meant: float, found: float) -> Finding:
    """Return the finding of a schedule that is at another point than on one process."""
    schedules = case.first.schedules
    place = schedules[0].place if schedules else case.first.updates[0].place
    words = f"in update {number} the learning rate is {found:.4g}"
    return Finding(
        "FAIL",
        "schedule",
        f"{words}; on 1 process it is {meant:.4g} after as many samples",
        "plan the schedule with the number of updates that there are on so many processes",
        place,
    )
