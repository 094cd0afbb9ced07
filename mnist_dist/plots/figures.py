"""What all pictures share: an empty figure, and how it is written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.core.files import make_folder, warn_once

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
    make_folder(path.parent)
    picture.savefig(path, dpi=150)


@contextmanager
def spared() -> Iterator[None]:
    """Draw what belongs to a run: a picture that cannot be drawn costs one warning, and no more."""
    try:
        yield
    except Exception as error:  # whatever fonts, formats and disks have in store
        reason = str(error).strip() or type(error).__name__
        first_line, *_ = reason.splitlines()
        warn_once(
            "picture", f"a picture could not be drawn ({first_line}): all else is as it would be"
        )


def as_text(words: str) -> str:
    """Make words that a user chose, such as a run's name, fit for a title.

    Args:
        words: any text. It may hold bytes of a path that are no UTF-8, and dollars, between which
            Matplotlib expects a formula.

    Returns:
        A title that shows these words, and such bytes as escapes.
    """
    encoded = words.encode("utf-8", "backslashreplace")
    return encoded.decode().replace("$", r"\$")
