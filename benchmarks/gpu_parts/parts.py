"""The parts, most worth knowing first, and what each is reckoned to take on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

from gpu_parts import programs, resnets, right, updates, waits
from gpu_parts.asking import Asked, Result
from gpu_parts.pairs import pair

# Assumed, not measured: there was no GPU. Both are meant to be too long rather than too short.
SECONDS_A_START = 10.0  # of a process, with its imports, CUDA and the data
SECONDS_AN_UPDATE = 0.002
LEAST = 45  # seconds that every part may take

MNIST = 60_000


@dataclass(frozen=True)
class Part:
    """A part, and what it does on a GPU.

    Attributes:
        ask: does it.
        starts: processes that start one after the other, that of the part itself included.
        updates: that all of them make.
        further: seconds that something else is assumed to take.
    """

    ask: Callable[[Asked], Result]
    starts: int
    updates: int
    further: float = 0.0

    @property
    def name(self) -> str:
        """The name of the part."""
        return self.ask.__name__

    @property
    def about(self) -> str:
        """What it asks."""
        return self.ask.__doc__ or ""

    @property
    def reckoned(self) -> float:
        """The seconds that it is reckoned to take on a GPU."""
        return self.starts * SECONDS_A_START + self.updates * SECONDS_AN_UPDATE + self.further

    @property
    def limit(self) -> float:
        """The seconds after which it is ended."""
        return max(LEAST, 2 * self.reckoned)


def in_epochs(epochs: int, batch_size: int) -> int:
    """The updates of so many epochs of MNIST."""
    return epochs * -(-MNIST // batch_size)


OF_BITS = len(right.BITS) * 5 * right.UPDATES_OF_BITS
OF_SHARES = 2 * (1 + len(right.SHARES)) * right.UPDATES_OF_SHARES
OF_RECIPE = programs.SEEDS * in_epochs(2, 128)
OF_OPTIONS = len(programs.OPTIONS) * in_epochs(1, 500)

PARTS = (
    Part(right.machine, starts=1, updates=0),
    Part(right.trains, starts=2, updates=in_epochs(5, 64)),
    Part(right.verify, starts=5, updates=1000),
    Part(right.bits, starts=1, updates=OF_BITS),
    Part(right.stop, starts=4, updates=in_epochs(4, 500)),
    Part(updates.updates, starts=1, updates=updates.ALL_UPDATES),
    Part(programs.recipe, starts=1 + programs.SEEDS, updates=OF_RECIPE),
    Part(pair, starts=2, updates=2),
    Part(waits.waits, starts=1, updates=waits.UPDATES),
    Part(right.shares, starts=1, updates=OF_SHARES),
    # The last of the options is to be compiled first.
    Part(
        programs.options,
        1 + len(programs.OPTIONS),
        updates=OF_OPTIONS,
        further=40.0,
    ),
    # An update of a ResNet-18 is ten times as large.
    Part(resnets.resnet18, starts=1, updates=10 * resnets.ALL_UPDATES),
)


def reckon(parts: list[Part], minutes: float) -> tuple[list[str], list[str]]:
    """Reckon which parts fit in so many minutes on a GPU.

    Returns:
        A line for each part, and the names of those that do not fit.
    """
    lines = []
    left_out = []
    seconds = 0.0
    for part in parts:
        seconds += part.reckoned
        fits = seconds <= 60 * minutes
        if not fits:
            left_out.append(part.name)
        lines.append(
            f"{part.name}: {part.starts} starts, {part.updates:,} updates, "
            f"{part.reckoned:.0f} s, in all {seconds:.0f} s"
        )
    return lines, left_out
