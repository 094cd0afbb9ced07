"""Rules on the pace of processes, and on operations between them that do not match."""

from statistics import median

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Record, Update

WARM_UP = 2  # updates at the beginning that are not timed
FEWEST = 8  # updates that are
SLOWER = 2.0  # times the others
MOSTLY = 0.8  # of the updates
SECONDS = 0.02  # more than the others, below which a busy machine may be the cause
MIXED_UP = "it is then matched with another operation of the others, and values get mixed up"
CONSEQUENCES = {"save_state": "the others' random states, and parts of a sharded state, are lost"}
ONE_SIDED = ("send", "recv")


def seconds_of(record: Record, update: Update) -> float:
    """Return for how long others may have waited for a process before an update's gradients.

    A GPU computes beside the program, so there only the loaders are timed.
    """
    if record.device.startswith("cuda"):
        return update.loading
    return update.working


def slow_process(case: Case) -> Finding | None:
    """A process for which the others wait in almost every update."""
    timed = [group for group in case.updates if group[0].number > WARM_UP and group[0].backward]
    if case.world == 1 or case.first.exact or len(timed) < FEWEST:
        return None
    for rank, record in enumerate(case.ranks):
        mine, theirs = [], []
        for group in timed:
            seconds = [seconds_of(*pair) for pair in zip(case.ranks, group, strict=True)]
            mine.append(seconds.pop(rank))
            theirs.append(median(seconds))
        is_slower = [one > SLOWER * other for one, other in zip(mine, theirs, strict=True)]
        lost = median(mine) - median(theirs)
        if sum(is_slower) >= MOSTLY * len(timed) and lost > SECONDS:
            loading = median(group[rank].loading for group in timed)
            return slow(record, median(mine), median(theirs), loading > lost / 2)
    return None


def slow(record: Record, mine: float, theirs: float, by_loader: bool) -> Finding:
    """Return the finding of a slow process.

    Args:
        record: of the process.
        mine: seconds that it takes before an update's gradients.
        theirs: seconds that the others take.
        by_loader: whether it waits for its loader.
    """
    what = "its loader" if by_loader else "its own work outside the backward pass"
    epochs = record.trainings()
    place = epochs[0].place if by_loader and epochs else record.updates[-1].forward_place
    words = f"process {record.rank} takes {mine * 1000:.0f} ms an update for {what}, the others "
    words += f"{theirs * 1000:.0f} ms: they wait for it"
    advice = (
        "look at what only this process does, at its samples, and at its node's disks and cores"
    )
    return Finding("WARN", "pace", words, advice, place)


def unequal_operations(case: Case) -> Finding | None:
    """Operations between all processes that some have called oftener than others."""
    if case.world == 1 or not all(record.ended for record in case.ranks):
        return None
    totals = [totals_of(record) for record in case.ranks]
    for name in totals[0] | totals[-1]:
        counts = [total.get(name, 0) for total in totals]
        if len(set(counts)) == 1:
            continue
        most, least = counts.index(max(counts)), counts.index(min(counts))
        words = f"{name} is called {counts[most]} x on process {most} and {counts[least]} x on "
        words += f"{least}: {CONSEQUENCES.get(name, MIXED_UP)}"
        lines = case.ranks[most].collectives
        others = case.ranks[least].collectives
        places = [key for key in lines if key.startswith(f"{name} at ")]
        place = next((key for key in places if lines[key] != others.get(key, 0)), "")
        advice = "call it on all processes, outside of any `if` for one of them"
        return Finding("FAIL", "operations", words, advice, place.partition(" at ")[2])
    return None


def totals_of(record: Record) -> dict[str, int]:
    """Return how often each operation was called, by its name."""
    totals: dict[str, int] = {}
    for key, count in record.collectives.items():
        name = key.partition(" at ")[0]
        if name not in ONE_SIDED:
            totals[name] = totals.get(name, 0) + count
    return totals
