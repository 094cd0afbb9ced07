"""Rules on samples that have no numbers: those of streams, and rows that a program makes itself."""

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Epoch

SHARE = 0.1  # of all rows, above which those that several processes have are no accident


def without_numbers(case: Case) -> Finding | None:
    """Rows that several processes compute with."""
    return same_rows(case) or shared_rows(case)


def same_rows(case: Case) -> Finding | None:
    """Without numbers of samples: processes that compute with the same rows."""
    has_numbers = any(epoch.numbers for epochs in case.trainings for epoch in epochs)
    groups = [group for group in case.examined if all(update.inputs for update in group)]
    if has_numbers or not groups or case.first.is_sharded:
        return None
    for group in groups:
        if len({update.inputs for update in group}) > 1:
            return None
    return Finding(
        "FAIL",
        "samples",
        f"all {case.world} processes compute with the same rows in each of the "
        f"{len(groups)} updates that were examined",
        "give each process its own: a different seed for drawing them, or rows[rank::world_size]",
        groups[0][0].forward_place,
    )


def shared_rows(case: Case) -> Finding | None:
    """A stream some rows of which are given to several processes."""
    for epochs in case.trainings:
        if all(epoch.rows and not epoch.exact for epoch in epochs):
            found = rows_of_several(epochs)
            if found:
                return found
    return None


def rows_of_several(epochs: tuple[Epoch, ...]) -> Finding | None:
    """Judge the rows of a stream.

    If all processes are given the same rows in the same order, the program may share them out
    itself. If a process is given rows repeatedly, they are drawn, and others may draw them, too.

    Args:
        epochs: the same iteration of each process.
    """
    sets = [set(epoch.rows) for epoch in epochs]
    different = len(set().union(*sets))
    given = sum(len(epoch.rows) for epoch in epochs)
    by_several = sum(len(rows) for rows in sets) - different
    repeated = given - sum(len(rows) for rows in sets)
    shortest = min(len(epoch.rows) for epoch in epochs)
    are_all_alike = len({tuple(epoch.rows[:shortest]) for epoch in epochs}) == 1
    if are_all_alike or by_several < SHARE * different + 3 * repeated:
        return None
    return Finding(
        "FAIL",
        "samples",
        f"{by_several} of {different} rows of a stream are given to several processes",
        "share out what is streamed: files[rank::world_size], and among a process's workers "
        "likewise",
        epochs[0].place,
    )
