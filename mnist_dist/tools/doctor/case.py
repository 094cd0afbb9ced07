"""What the rules judge: the records of one run on several processes, and of one beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mnist_dist.tools.doctor.records import Epoch, Record, Sign
from mnist_dist.tools.doctor.updates import Update

LISTED = 3  # names in a sentence


@dataclass
class Case:
    """The records of a program's processes.

    Attributes:
        ranks: of the processes, that of the first one first.
        alone: of the same program on one process, if that was asked for.
        hang: the signs of life of all processes, if they hang.
    """

    ranks: list[Record]
    alone: Record | None = None
    hang: list[Sign] = field(default_factory=list)

    @property
    def world(self) -> int:
        """The number of processes."""
        return len(self.ranks)

    @property
    def first(self) -> Record:
        """The record of the first process."""
        return self.ranks[0]

    @cached_property
    def updates(self) -> list[tuple[Update, ...]]:
        """The same update of all processes, for each that all have made and recorded."""
        by_rank = [{update.number: update for update in record.updates} for record in self.ranks]
        numbers = set(by_rank[0]).intersection(*by_rank[1:])
        return [tuple(updates[number] for updates in by_rank) for number in sorted(numbers)]

    @cached_property
    def examined(self) -> list[tuple[Update, ...]]:
        """Those of `updates` of which all processes have taken digests."""
        return [group for group in self.updates if all(update.examined for update in group)]

    @cached_property
    def trainings(self) -> list[tuple[Epoch, ...]]:
        """The same iteration of all processes over a loader, for each from which updates came."""
        by_rank = [record.trainings() for record in self.ranks]
        return list(zip(*by_rank, strict=False))

    def complete_trainings(self) -> Iterator[tuple[Epoch, ...]]:
        """Give those of `trainings` that came to their end and whose samples have numbers."""
        for epochs in self.trainings:
            has_numbers = all(epoch.numbers for epoch in epochs)
            draws_again = any(epoch.repeats for epoch in epochs)
            if has_numbers and not draws_again and all(epoch.complete for epoch in epochs):
                yield epochs

    def files_left_to(self, later: Sequence[Record]) -> str:
        """Return a checkpoint that these processes wrote and later ones read, if there is one.

        Args:
            later: records of a run that was to begin anew.
        """
        written = {path for record in self.ranks for path in record.saved}
        for record in later:
            for path in record.loaded:
                if path in written:
                    return path.rpartition("/")[2]
        return ""

    def names_of_differing(self, updates: Sequence[Update], digests: str) -> list[str]:
        """Return the names of the parameters whose digests differ between processes.

        Args:
            updates: the same one of each process.
            digests: which of its digests: `weights` or `gradients`.
        """
        names = self.first.optimizer_of(updates[0]).names
        differing = []
        by_parameter = zip(*(getattr(update, digests) for update in updates), strict=False)
        for number, values in enumerate(by_parameter):
            if len(set(values)) > 1:
                is_known = number < len(names)
                differing.append(names[number] if is_known else f"parameter {number}")
        return differing


def listed(names: Sequence[str]) -> str:
    """Return a few names in words."""
    if len(names) <= LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:LISTED])} and {len(names) - LISTED} more"


def by_process(values: Sequence[object]) -> str:
    """Return one figure for each process in words, such as "10 on process 0 and 11 on 1"."""
    parts = [f"{value} on {rank}" for rank, value in enumerate(values)]
    if len(parts) > 4:
        parts = [*parts[:3], f"... {parts[-1]}"]
    return f"process by process: {', '.join(parts)}"
