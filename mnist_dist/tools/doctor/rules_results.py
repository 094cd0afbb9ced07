"""Rules on what comes out: evaluation, and files."""

from collections.abc import Iterator

from mnist_dist.tools.doctor.case import Case, by_process, listed
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Epoch
from mnist_dist.tools.doctor.rules_samples import Deal

ROUNDING = 3e-7  # of a number near 1 in float32
SUMS = ("all_reduce", "reduce")
GATHERS = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "gather",
    "gather_object",
)


def not_added_up(case: Case) -> Finding | None:
    """An evaluation whose figures each process keeps to itself, and trains on.

    What the processes decide by their figures, such as when to stop, may be why they part later.
    """
    if case.world == 1:
        return None
    by_rank = [record.trainings() for record in case.ranks]
    last = [epochs[-1].number if epochs else -1 for epochs in by_rank]
    for epochs in evaluations_of_all(case):
        is_followed = all(epoch.number < number for epoch, number in zip(epochs, last, strict=True))
        if is_followed:
            found = of_own_part(Deal(epochs))
            if found:
                return found
    return None


def evaluation(case: Case) -> Finding | None:
    """An evaluation on a part, or one that counts padding."""
    if case.world == 1:
        return None
    taking_part = [epochs for epochs in (each.evaluations() for each in case.ranks) if epochs]
    if 0 < len(taking_part) < case.world:
        return by_some(case, taking_part)
    for epochs in evaluations_of_all(case):
        found = by_all(case, epochs)
        if found:
            return found
    return None


def evaluations_of_all(case: Case) -> Iterator[tuple[Epoch, ...]]:
    """Give the evaluations that all processes came to the end of, and whose samples have numbers."""
    by_rank = [record.evaluations() for record in case.ranks]
    for epochs in zip(*by_rank, strict=False):
        is_whole = all(epoch.complete and epoch.numbers for epoch in epochs)
        if is_whole and not epochs[0].exact and not epochs[0].repeats:
            yield epochs


def by_some(case: Case, taking_part: list[list[Epoch]]) -> Finding | None:
    """An evaluation by a few processes, each of which was given a part only."""
    epoch = taking_part[0][0]
    if not epoch.complete or epoch.samples < 0 or not epoch.numbers:
        return None
    found = len(set(epoch.numbers))
    if found >= epoch.samples or len(taking_part) > 1:
        return None
    return Finding(
        "FAIL",
        "evaluation",
        f"one of {case.world} processes evaluates, on its part: {found} of {epoch.samples} samples",
        "let all processes evaluate and add up the counts, or give that process a loader of all samples",
        epoch.place,
    )


def by_all(case: Case, epochs: tuple[Epoch, ...]) -> Finding | None:
    """An evaluation in which all processes take part."""
    deal = Deal(epochs)
    if deal.all_have_everything:
        return None
    found = averaged(deal)
    if found or not deal.same_part:
        return found
    found = of_own_part(deal)
    if found:
        return found
    if deal.different < deal.whole:
        return Finding(
            "FAIL",
            "evaluation",
            f"{deal.different} of {deal.whole} samples are evaluated",
            "leave drop_last out, and share them out once",
            deal.place,
        )
    return counted_twice(case, deal)


def of_own_part(deal: Deal) -> Finding | None:
    """An evaluation in which each process has a part, and nothing is added up."""
    is_shared = deal.same_part and not deal.all_have_everything
    if not is_shared or operations_of(deal) & {*SUMS, *GATHERS}:
        return None
    return Finding(
        "FAIL",
        "evaluation",
        f"each process evaluates its own {len(deal.lists[0])} of {deal.whole} samples, and nothing "
        "is added up: each reports, and decides by, a different figure",
        "add counts up with dist.all_reduce, or accelerator.gather_for_metrics",
        deal.place,
    )


def operations_of(deal: Deal) -> set[str]:
    """Return the operations between processes since an evaluation began."""
    return {name for epoch in deal.epochs for name, count in epoch.collectives.items() if count}


def averaged(deal: Deal) -> Finding | None:
    """Shares of correct samples that are averaged, although they are of unequal numbers of samples."""
    counts = [len(numbers) for numbers in deal.lists]
    if len(set(counts)) == 1:
        return None
    by_figure = list(zip(*(epoch.figures for epoch in deal.epochs), strict=False))
    if any(list(figures) == counts for figures in by_figure):
        return None  # so that each mean may be weighted by its count
    for figures in by_figure:
        pairs = zip(figures, counts, strict=True)
        is_of_whole = all(is_share(figure, deal.whole) for figure in figures)
        if not is_of_whole and all(is_share(figure, count) for figure, count in pairs):
            shown = ", ".join(f"{figure:.4g}" for figure in figures)
            return Finding(
                "FAIL",
                "evaluation",
                f"each process gives its own mean ({shown}) of unequal numbers of samples "
                f"({by_process(counts)}), and the mean of these counts each process alike",
                "add up the counts of all processes, and divide afterwards",
                deal.place,
            )
    return None


def is_share(figure: float, count: int) -> bool:
    """Return whether a figure is a whole number divided by a count, but for rounding in float32."""
    return 0 < figure < 1 and abs(figure * count - round(figure * count)) < ROUNDING * count


def counted_twice(case: Case, deal: Deal) -> Finding | None:
    """Padding that is counted in an evaluation."""
    twice = deal.given - deal.different
    if twice == 0 or case.first.gathered_for_metrics:
        return None
    words = f"{deal.given} samples are evaluated where there are {deal.whole}: {twice} twice"
    advice = "count each once: accelerator.gather_for_metrics, or rows by rank[::world] unpadded"
    is_summed = bool(operations_of(deal) & {*SUMS})
    if case.first.cuts_gathered and not is_summed:
        words += ", unless the program cuts them off after gathering, as it seems to do"
        return Finding("NOTE", "evaluation", words, place=deal.place)
    if is_summed or case.first.accelerate:
        return Finding("FAIL", "evaluation", words, advice, deal.place)
    advice = f"make sure that the {twice} duplicates are cut off after gathering"
    return Finding("WARN", "evaluation", words, advice, deal.place)


def shared_files(case: Case) -> Finding | None:
    """Files that several processes write."""
    writers: dict[str, list[int]] = {}
    for record in case.ranks:
        for path in record.saved:
            writers.setdefault(path, []).append(record.rank)
    several = {path: ranks for path, ranks in writers.items() if len(ranks) > 1}
    if not several:
        return None
    path, ranks = next(iter(several.items()))
    names = sorted({each.rpartition("/")[2] for each in several})
    return Finding(
        "FAIL",
        "files",
        f"processes {listed([str(rank) for rank in ranks])} write the same file: {listed(names)}",
        "write it on one process: if rank == 0, accelerator.is_main_process",
        case.ranks[ranks[0]].saved[path],
    )
