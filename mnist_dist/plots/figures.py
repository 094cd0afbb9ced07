"""What all pictures share: an empty figure, and how it is written."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")  # the endings of files that a picture can be written to
EXPECTED = "a .png, .pdf or .svg file"


def figure(width: float, height: float) -> "Figure":
    """Make an empty figure, which needs no screen.

    Args:
        width, height: its size in inches.

    Returns:
        The figure.
    """
    # Whatever window somebody set there is not wanted here, and may not exist.
    os.environ["MPLBACKEND"] = "agg"
    from matplotlib.figure import Figure  # half a second for which only those who draw should wait

    return Figure(figsize=(width, height), layout="constrained")


def count_whole_numbers(axes: Any) -> None:
    """Let the ticks of a horizontal axis be whole numbers.

    Args:
        axes: what the axis belongs to, an `Axes` of Matplotlib.
    """
    axes.xaxis.get_major_locator().set_params(integer=True)


def save(picture: "Figure", path: Path) -> None:
    """Write a figure.

    Args:
        picture: the figure.
        path: the file, whose name says in which format. Its folder is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
