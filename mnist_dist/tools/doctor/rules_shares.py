"""Rules on shares of a batch that count alike and are unequal: of rows, and of tokens."""

from mnist_dist.tools.doctor.case import Case, by_process
from mnist_dist.tools.doctor.findings import Finding


def uneven_shares(case: Case) -> Finding | None:
    """Processes whose means count alike, but are over unequal numbers of rows or tokens."""
    if case.world == 1 or case.first.exact:
        return None
    return uneven_rows(case) or uneven_counts(case)


def uneven_rows(case: Case) -> Finding | None:
    """Batches of unequal numbers of rows."""
    for epochs in case.trainings:
        if epochs[0].is_own:
            continue  # batches of so many words, for example
        batches = zip(*(epoch.batches for epoch in epochs), strict=False)
        for number, group in enumerate(batches, start=1):
            rows = [len(batch) for batch in group]
            if len(set(rows)) > 1:
                return Finding(
                    "FAIL",
                    "shares",
                    f"batch {number} of an epoch has unequal numbers of rows ({by_process(rows)}), "
                    "and the mean of the processes' means counts each process alike",
                    "equal shares (DistributedSampler), or weight each loss by its rows",
                    epochs[0].place,
                )
    return None


def uneven_counts(case: Case) -> Finding | None:
    """Losses that each process makes a mean by another count, such as of its tokens."""
    for group in case.examined:
        counts = [update.batch_count for update in group]
        if not all(counts) or len(set(counts)) == 1:
            continue
        return Finding(
            "WARN",
            "shares",
            f"in update {group[0].number} each process's loss is a mean over its own count "
            f"({by_process(counts)}), and the mean of the processes' means counts each process alike",
            "divide each sum by the count of all processes (all_reduce it), times world_size for DDP",
            group[0].backward_place,
        )
    return None
