"""Rules on schedulers of learning rates."""

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Record, Schedule

TAIL = 3  # updates with a rate of 0, after which that is not the end of a schedule
SHARE = 0.1  # of all updates, likewise


def schedule(case: Case) -> Finding | None:
    """A schedule that ends before the training does, or is stepped oftener than planned."""
    record = case.first
    if record.made < 2:
        return None
    for each in record.schedules:
        found = too_often(case, each)
        if found:
            return found
    return rate_is_zero(record)


def too_often(case: Case, each: Schedule) -> Finding | None:
    """A schedule that is stepped several times an update, without a plan for that."""
    made = case.first.made
    steps = round(each.steps / made)
    is_within_plan = each.planned >= each.steps
    if steps < 2 or is_within_plan:
        return None
    by_accelerate = case.first.accelerate and steps == case.world and not case.first.exact
    if by_accelerate and not each.planned:
        return None  # for it may have been planned so; what comes of it the next rule sees
    words = f"{each.kind} is stepped {steps} times an update, {each.steps} times in all"
    if each.planned:
        words += f", and was planned for {each.planned}"
    advice = "step it once after each optimizer.step()"
    if by_accelerate:
        advice = (
            "Accelerate steps it once for each process: plan it by the loader's length before "
            "prepare, or give Accelerator(step_scheduler_with_optimizer=False)"
        )
    return Finding("FAIL", "schedule", words, advice, each.place)


def rate_is_zero(record: Record) -> Finding | None:
    """A learning rate that is 0 long before the training ends."""
    zero = 0
    for update in reversed(record.updates):
        if any(update.rates):
            break
        zero += 1
    is_tail = zero >= TAIL and zero >= SHARE * record.made
    if not is_tail or zero == len(record.updates):
        return None
    first = record.updates[-zero]
    place = record.schedules[-1].place if record.schedules else first.place
    return Finding(
        "FAIL",
        "schedule",
        f"the learning rate is 0 from update {first.number} of {record.made} on",
        "plan it by the steps that it makes: Accelerate makes one for each process",
        place,
    )
