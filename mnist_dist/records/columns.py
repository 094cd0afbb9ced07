"""The columns of `runs`: what each says about a run, and how a value is printed."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.printing import printable

Row = dict[str, Any]  # a run's or a group's values by column: numbers, words, None
SPLITS = ("test", "val")
FIGURES = ("accuracy", "error", "deviation", "loss")

# Columns that a training produces.
RESULTS = {
    "run",
    "state",
    "reason",
    "runs",
    "seeds",
    "epoch",
    "train_seconds",
    "samples_per_second",
    "parameters",
}
RESULTS |= {f"{split}_{figure}" for split in SPLITS for figure in FIGURES}

# Columns that decide nothing of the training: where a run is, who started it, and on what.
CHANGEABLE = [field for field in fields(TrainConfig) if field.metadata.get("may_change")]
INCIDENTAL = {field.name for field in CHANGEABLE}
INCIDENTAL |= {
    "set_up",
    "command",
    "date",
    "commit",
    "code",
    "processor",
    "threads",
    "wandb_id",
    "job",
    "launcher",  # what older runs have in place of `job`
    "normalization",
}


def column_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns, in the order in which they first appear."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def is_version(name: str) -> bool:
    """Return whether a column holds the version of a package."""
    return name.endswith("_version")


def shown(value: object) -> str:
    """Return a cell as a person reads it."""
    if isinstance(value, float):
        return f"{value:g}"
    return printable(value)
