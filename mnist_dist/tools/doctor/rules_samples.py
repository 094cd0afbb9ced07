"""Rules on the samples that processes train on: whose they are, how often, and in which order."""

from mnist_dist.tools.doctor.case import Case, listed
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Epoch
from mnist_dist.tools.doctor.rules_streams import without_numbers

ROUGHLY = 0.1


class Deal:
    """How an epoch's samples are dealt out to the processes.

    Args:
        epochs: the same iteration of each process.

    Attributes:
        lists: the numbers of each process's samples.
        given: how many samples were given in all.
        different: how many of them are different ones.
        whole: how many samples the data set has, or the parts of it that the processes have.
        same_part: whether the loaders of all processes were given the same data set.
        batch: rows of a process's first batch.
        is_own: whether the sampler is of the user's own making.
        place: the line of the loop.
    """

    def __init__(self, epochs: tuple[Epoch, ...]) -> None:
        self.epochs = epochs
        self.lists = [epoch.numbers for epoch in epochs]
        self.sets = [set(numbers) for numbers in self.lists]
        self.given = sum(len(numbers) for numbers in self.lists)
        self.different = len(set().union(*self.sets))
        self.same_part = len({epoch.part for epoch in epochs}) == 1
        parts = [epoch.samples for epoch in epochs]
        self.whole = parts[0] if self.same_part else sum(parts)
        self.batch = max(len(epoch.batches[0]) for epoch in epochs)
        self.is_own = any(epoch.is_own for epoch in epochs)
        self.place = epochs[0].place

    @property
    def global_batch(self) -> int:
        """The most rows that all processes have at a time."""
        return self.batch * len(self.epochs)

    @property
    def all_have_everything(self) -> bool:
        """Whether each process has the whole data set, but perhaps for a dropped batch."""
        if len(self.epochs) == 1 or not self.same_part:
            return False
        dropped = self.batch - 1 if self.epochs[0].drops else 0
        is_shared = self.given == self.different
        return not is_shared and all(len(seen) >= self.whole - dropped for seen in self.sets)

    @property
    def is_meant_as_shares(self) -> bool:
        """Whether no process has a sample twice, and all together give as many as there are."""
        own_twice = any(
            len(seen) < len(numbers) for seen, numbers in zip(self.sets, self.lists, strict=True)
        )
        return not own_twice and abs(self.given - self.whole) < self.global_batch

    def twins(self) -> tuple[int, int] | None:
        """Return two processes that have the same samples."""
        for number, mine in enumerate(self.sets):
            for other in range(number + 1, len(self.sets)):
                if mine == self.sets[other]:
                    return number, other
        return None


def deals(case: Case) -> list[Deal]:
    """Return how each complete epoch of a training is dealt out."""
    return [Deal(epochs) for epochs in case.complete_trainings()]


def other_data(case: Case) -> Finding | None:
    """The same number is another sample on each process."""
    if case.world == 1 or not case.trainings:
        return None
    epochs = case.trainings[0]
    digests = {epoch.data for epoch in epochs}
    same_part = len({epoch.part for epoch in epochs}) == 1
    shared_out = [deal for deal in deals(case) if not deal.all_have_everything]
    if len(digests) == 1 or not same_part or not shared_out:
        return None
    return Finding(
        "FAIL",
        "data",
        f"the processes share out the numbers of {epochs[0].samples} samples of "
        f"{epochs[0].dataset}, but the data set has different content on each process",
        "make the same data everywhere: one seed for making it, one order of files",
        epochs[0].place,
    )


def other_split(case: Case) -> Finding | None:
    """Each process was given another part of the data, and the parts overlap."""
    for deal in deals(case):
        twice = deal.given - deal.different
        sizes = {epoch.samples for epoch in deal.epochs}
        if deal.same_part or twice == 0:
            continue
        return Finding(
            "FAIL",
            "split",
            f"each process has a different part ({listed(sorted(map(str, sizes)))} samples) of the "
            f"data, and {twice} samples of an epoch are trained on by several",
            "split the data by the same seed on all processes, and share out afterwards",
            deal.place,
        )
    return None


def wrong_share(case: Case) -> Finding | None:
    """Samples that no process has, or that several have."""
    if case.world == 1:
        return None
    for deal in deals(case):
        if not deal.epochs[0].exact:
            found = everything_everywhere(case, deal) or overlap(deal) or missing(case, deal)
            if found:
                return found
    return without_numbers(case)


def everything_everywhere(case: Case, deal: Deal) -> Finding | None:
    """All processes train on all samples."""
    holds_own = len({epoch.data for epoch in deal.epochs}) > 1
    if not deal.all_have_everything or holds_own:
        return None
    return Finding(
        "FAIL",
        "samples",
        f"each of the {case.world} processes trains on all {deal.whole} samples of an epoch: "
        f"{deal.given} in all, {deal.different} different ones",
        "share them out: sampler=DistributedSampler(dataset), or accelerator.prepare(loader)",
        deal.place,
    )


def overlap(deal: Deal) -> Finding | None:
    """Several processes have the same samples, and by more than padding."""
    twice = deal.given - deal.different
    is_padding = deal.different == deal.whole and twice < deal.global_batch
    twins = deal.twins()
    is_intended = deal.is_own and not twins and not deal.is_meant_as_shares
    if twice == 0 or is_padding or is_intended or deal.all_have_everything:
        return None
    if twins:
        words = f"processes {twins[0]} and {twins[1]} train on the same {len(deal.sets[0])} samples"
        advice = "give DistributedSampler each process's own rank: rank=dist.get_rank()"
    else:
        words = f"{twice} samples of an epoch are given more than once"
        advice = "share out one order: the same seed on all processes for what shuffles"
    share = f"together they see {deal.different} of {deal.whole}"
    return Finding("FAIL", "samples", f"{words}: {share}", advice, deal.place)


def missing(case: Case, deal: Deal) -> Finding | None:
    """Samples that no process has, and by more than an incomplete batch."""
    left_out = deal.whole - deal.different
    is_dropped = any(epoch.drops for epoch in deal.epochs) and left_out < deal.global_batch
    if left_out <= 0 or is_dropped or deal.is_own:
        return None
    words = f"an epoch has {deal.different} of {deal.whole} samples"
    is_squared = abs(deal.different * case.world / deal.whole - 1) < ROUGHLY
    if is_squared:
        words += f", a {case.world}th: they are shared out among the processes twice"
        advice = "leave DistributedSampler out: accelerator.prepare shares the loader out itself"
        if not case.first.accelerate:
            advice = "share them out once: by the sampler, or by the data set"
    else:
        advice = "look at num_replicas and rank of the sampler, and at what ends the loop"
    words = words.replace("a 2th", "half of them").replace("a 3th", "a third of them")
    return Finding("FAIL", "samples", words, advice, deal.place)


def padding(case: Case) -> Finding | None:
    """A few samples are given twice, so that all processes have as many."""
    for deal in deals(case):
        twice = deal.given - deal.different
        if deal.same_part and deal.different == deal.whole and 0 < twice < deal.global_batch:
            return Finding(
                "WARN",
                "padding",
                f"{twice} of {deal.whole} samples come twice in an epoch, to make shares equal",
                "harmless in large epochs; drop_last=True leaves a few out instead",
                deal.place,
            )
    return None


def stale_workers(case: Case) -> Finding | None:
    """Workers that have a copy of the data set from before it was changed."""
    for epoch in case.first.epochs:
        if epoch.stale:
            return Finding(
                "WARN",
                "workers",
                f"{epoch.stale} in the loader's persistent workers, which keep the data set as it "
                "was when they were started",
                "persistent_workers=False, or keep the value in a tensor in shared memory",
                epoch.place,
            )
    return None


def same_order(case: Case) -> Finding | None:
    """A shuffled order that is the same in two epochs."""
    seen: dict[str, list[tuple[str, list[int]]]] = {}
    for epoch in case.first.trainings():
        numbers = epoch.numbers
        is_to_differ = epoch.shuffles or (epoch.is_own and epoch.takes_epochs)
        is_shuffled = is_to_differ and numbers != sorted(numbers)
        # An own sampler that was told another epoch keeps its order by intent.
        order = ("" if epoch.shuffles else epoch.told, numbers)
        if epoch.complete and is_shuffled and order in seen.get(epoch.place, []):
            advice = "seed the order once, before the first epoch, and not in each"
            if epoch.takes_epochs:
                call = "sampler.set_epoch(epoch)"
                if epoch.is_own:
                    call = f"set_epoch(epoch) of the {epoch.sampler}"
                advice = f"call {call} at the beginning of each epoch"
            return Finding(
                "FAIL",
                "order",
                f"two epochs have the same shuffled order of {len(numbers)} samples, which begins "
                f"with {', '.join(map(str, numbers[:4]))}",
                advice,
                epoch.place,
            )
        seen.setdefault(epoch.place, []).append(order)
    return None
