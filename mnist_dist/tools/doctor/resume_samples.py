"""Which samples come again after a resume, and which never."""

from mnist_dist.tools.doctor.records import Record


class Samples:
    """The samples of the updates after a resume, beside those that would have come.

    Args:
        whole: the records of the run that was not stopped.
        resumed: those of the one that was started again.
        made: updates that the checkpoint holds.

    Attributes:
        meant: the samples that would have come next, update by update.
        found: those that came instead.
        place: the line of the loop.
    """

    def __init__(self, whole: list[Record], resumed: list[Record], made: int) -> None:
        self.made = made
        self.by_update = by_update(whole)
        self.meant = self.by_update[made:]
        self.found = by_update(resumed)
        self.epochs = epochs_of(whole[0])
        self.resumed_epochs = epochs_of(resumed[0])
        number = self.resumed_epochs[0] if self.resumed_epochs else -1
        self.place = resumed[0].epochs[number].place if number >= 0 else ""

    @property
    def are_as_meant(self) -> bool:
        """Whether the same samples came in each update, as far as they have numbers."""
        pairs = zip(self.meant, self.found, strict=False)
        known = [(mine, its) for mine, its in pairs if mine and its]
        return all(mine == its for mine, its in known)

    def before(self) -> set[int]:
        """Return the samples of the epoch in progress from which updates had been made."""
        epoch = self.epochs[self.made] if self.made < len(self.epochs) else None
        numbers = [number for number in range(self.made) if self.epochs[number] == epoch]
        return set().union(*(self.by_update[number] for number in numbers))

    def left(self) -> set[int]:
        """Return the samples of that epoch that were still to come."""
        epoch = self.epochs[self.made]
        updates = range(self.made, len(self.epochs))
        numbers = [number for number in updates if self.epochs[number] == epoch]
        return set().union(*(self.by_update[number] for number in numbers))

    def came(self) -> set[int]:
        """Return the samples of the first epoch after the resume."""
        first = self.resumed_epochs[0]
        pairs = zip(self.resumed_epochs, self.found, strict=True)
        return set().union(*(samples for epoch, samples in pairs if epoch == first))

    def what_is_wrong(self) -> str:
        """Say what has become of the samples; nothing if that is unknown."""
        if self.made >= len(self.epochs) or not self.found:
            return ""
        again = len(self.before() & self.came())
        never = len(self.left() - self.came())
        if again or never:
            return (
                f"of the epoch in which it was stopped {again} samples are read again after the resume, "
                f"and {never} are never read"
            )
        earlier = [number for number in range(self.made) if self.by_update[number] == self.found[0]]
        if earlier and not self.before():
            return (
                f"after the resume the order of samples is that of update {earlier[0] + 1} on again"
            )
        return "after the resume the remaining samples come in a different order"

    def advice(self) -> str:
        """Say what to do."""
        if self.before():
            return (
                "save the epoch and the number of batches done, seed the order by the epoch (set_epoch), and "
                "skip those batches"
            )
        return "continue counting epochs from the checkpoint: sampler.set_epoch(epoch)"


def by_update(ranks: list[Record]) -> list[set[int]]:
    """Return the samples of each update, of all processes together; none if they are unknown."""
    updates = []
    for group in zip(*(record.updates for record in ranks), strict=False):
        samples: set[int] = set()
        for record, update in zip(ranks, group, strict=True):
            for epoch, position in update.batches:
                batches = record.epochs[epoch].batches
                if 0 <= position < len(batches):
                    samples |= set(batches[position])
        updates.append(samples)
    return updates


def epochs_of(record: Record) -> list[int]:
    """Return the number of the iteration over a loader from which each update came, -1 if none."""
    return [update.batches[-1][0] if update.batches else -1 for update in record.updates]
