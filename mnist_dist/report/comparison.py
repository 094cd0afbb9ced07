"""The page that shows several runs beside each other."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mnist_dist import __version__
from mnist_dist.records.columns import SPLITS, Row, shown
from mnist_dist.records.selection import same_but_seed, seed_groups
from mnist_dist.records.tables import counted, described, differing, tells_groups_apart
from mnist_dist.report.curves import FIGURES, curves
from mnist_dist.report.document import as_text, document
from mnist_dist.run.files import write_file
from mnist_dist.run.folder import REPORT


def write(path: Path, rows: Sequence[Row], epochs: Mapping[str, list[Row]]) -> None:
    """Write a page about several runs.

    Args:
        path: the HTML file.
        rows: the runs, as `runs_files.read` gives them.
        epochs: the lines of each run's metrics.jsonl, by the run's folder.

    Raises:
        OSError: the file cannot be written.
    """
    names = differing(rows)
    common = [name for name in ("dataset", "model") if name not in names]
    content = {
        "version": __version__,
        "heading": counted(len(rows), "run"),
        "common": described(rows[0], common),
        "columns": names,
        "runs": [about_run(row, names, path.parent) for row in rows],
        "groups": groups(rows, epochs, names),
    }
    write_file(path, document("comparison", f"{counted(len(rows), 'run')} compared", content))


def about_run(row: Row, names: Sequence[str], place: Path) -> dict[str, Any]:
    """Collect what the table says of a run.

    Args:
        row: the run.
        names: the columns that tell runs apart.
        place: the folder of the page, from which links start.

    Returns:
        JSON values by name.
    """
    folder = Path(row["run"])
    page = folder / REPORT
    link = os.path.relpath(page.resolve(), place.resolve()) if page.exists() else None
    return {
        "name": as_text(folder.resolve().name),
        # A path may hold anything: quoted, it is a path and never a scheme such as javascript.
        "link": f"./{quote(os.fsencode(link))}" if link else None,
        "state": row["state"],
        "epoch": row["epoch"],
        "seconds": row["train_seconds"],
        "cells": ["" if row.get(name) is None else shown(row[name]) for name in names],
        **{
            f"{split}_{figure}": row.get(f"{split}_{figure}")
            for split in SPLITS
            for figure in ("accuracy", "error")
        },
    }


def groups(
    rows: Sequence[Row], epochs: Mapping[str, list[Row]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Divide runs into those that differ in nothing but the seed, each group a curve with a band.

    Args:
        rows: the runs.
        epochs: the lines of each run's metrics.jsonl, by the run's folder.
        names: the columns that tell runs apart.

    Returns:
        For each group its `label`, and for each figure that it has points of an epoch and the mean,
        least and greatest value; the mean accuracy over its finished runs, and its deviation.
    """
    apart = [name for name in names if tells_groups_apart(name)]
    found = []
    for members in same_but_seed([row for row in rows if epochs[row["run"]]]):
        first = members[0]
        label = described(first, apart).replace("_", " ") or as_text(
            Path(first["run"]).resolve().name
        )
        done = seed_groups(members)
        found.append(
            {
                "label": label,
                "runs": len(members),
                "accuracy": done[0].get("test_accuracy") if done else None,
                "deviation": done[0].get("test_deviation") if done else None,
                "curves": bands([curves(epochs[row["run"]], []) for row in members]),
            }
        )
    return found


def bands(runs: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Summarise the curves of runs, epoch by epoch.

    Args:
        runs: the curves of each, as `curves` gives them.

    Returns:
        By figure, points of an epoch and the mean, least and greatest value.
    """
    found = {}
    for name in FIGURES:
        values: dict[float, list[float]] = {}
        for run in runs:
            for epoch, value in run.get(name, []):
                values.setdefault(epoch, []).append(value)
        if values:
            found[name] = [
                [epoch, sum(some) / len(some), min(some), max(some)]
                for epoch, some in sorted(values.items())
            ]
    return found
