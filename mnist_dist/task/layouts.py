"""How the pictures of the data sets were made, for pictures of people's own that are to look like them."""

from dataclasses import dataclass

from mnist_dist.task.datasets import SOURCES

SIDE = 28  # pixels of the field in which a picture is centred


@dataclass(frozen=True)
class Layout:
    """How the pictures of a data set were made.

    Attributes:
        name: what the page of a run calls it.
        box: pixels of the longer side that what is drawn was scaled to.
        by_mass: whether it was centred by mass, or else by its sides.
        keeps_shades: whether it has shades, or else is ink on paper.
    """

    name: str
    box: int
    by_mass: bool
    keeps_shades: bool


DIGITS = Layout("digits", box=20, by_mass=True, keeps_shades=False)  # MNIST (LeCun et al. 1998)
FILLING = Layout("filling", box=SIDE, by_mass=False, keeps_shades=True)  # Fashion-MNIST, KMNIST


def layout_of(dataset: str) -> Layout:
    """Return how the pictures of a data set were made, by its name; MNIST's for an unknown one."""
    return FILLING if dataset in SOURCES and dataset != "mnist" else DIGITS
