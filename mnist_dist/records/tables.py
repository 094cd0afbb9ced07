"""Runs side by side: as CSV, as a table for people, and as learning curves."""

import csv
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnist_dist import plots
from mnist_dist.core import UserError
from mnist_dist.records.columns import (
    INCIDENTAL,
    RESULTS,
    SPLITS,
    Row,
    column_names,
    is_version,
    shown,
)
from mnist_dist.records.selection import same_but_seed
from mnist_dist.run.printing import printable

# Columns that tell runs apart and mean nothing to a person: their files' paths are shown instead.
DIGESTS = {"data_digest", "teachers_digest"}
LEFT_ALIGNED = ("run", "state", "seeds")
NARROWEST = 30  # columns of the terminal below which settings are folded under the other cells
UNLIMITED = 10**6  # columns of what is not a terminal


def as_csv(rows: Sequence[Row]) -> str:
    """Return all columns as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, column_names(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def differing(rows: Sequence[Row]) -> list[str]:
    """Return the columns that tell rows apart by what was trained, on what, with what."""
    hidden = RESULTS | (INCIDENTAL - {"teacher"}) | DIGESTS
    names = []
    for name in column_names(rows):
        values = {repr(row.get(name)) for row in rows}
        if name not in hidden and len(values) > 1:
            names.append(name)
    return names


def described(row: Row, names: Sequence[str]) -> str:
    """Return some of a row's settings in words, without those that it has no value for."""
    known = [name for name in names if row.get(name) is not None]
    return ", ".join(setting(name, row[name]) for name in known)


def setting(name: str, value: object) -> str:
    """Return one setting in words, such as `lr 0.001`."""
    if name == "num_processes":
        return f"{value} process" if value == 1 else f"{value} processes"
    if name in ("dataset", "model"):
        return shown(value).strip()
    return f"{name.removesuffix('_version')} {shown(value)}".strip()


def percent(row: Row, split: str, spread_name: str) -> str:
    """Return an accuracy and its spread in percent; nothing if there is none."""
    accuracy = row.get(f"{split}_accuracy")
    if accuracy is None:
        return ""
    spread = row.get(f"{split}_{spread_name}")
    text = f"{100 * accuracy:.2f}"
    return text if spread is None else f"{text}±{100 * spread:.2f}"


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, such as `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(rows: Sequence[Row], width: int | None) -> str:
    """Return what a person reads: what all rows share, then a line for each with what differs.

    Args:
        rows: runs, or groups of seeds.
        width: columns of the terminal, into which the settings are folded; None: a line a row.
    """
    if not rows:
        return "no run is left\n"
    if "runs" in rows[0]:
        return groups_table(rows, width)
    return runs_table(rows, width)


def runs_table(rows: Sequence[Row], width: int | None) -> str:
    """Return the table of runs."""
    parent = common_parent(rows)
    splits = splits_of(rows)
    names = differing(rows)
    lines = [["run", "state", "epochs", *result_heading(splits)]]
    for row in rows:
        name = row["run"]
        if parent != Path():
            name = os.path.relpath(name, parent)
        epochs = f"{row['epoch']:g}/{shown(row['epochs'])}"
        results = result_cells(row, splits, "error", names)
        lines.append([printable(name), row["state"], epochs, *results])
    place = "" if parent == Path() else f" in {printable(parent)}"
    title = f"{counted(len(rows), 'run')}{place}{shared(rows)} (± standard error)"
    return f"{title}\n\n{aligned(lines, width)}"


def common_parent(rows: Sequence[Row]) -> Path:
    """Return the innermost folder that all runs are in; an empty path if their names share none."""
    parents = [Path(row["run"]).parent for row in rows]
    if any(parent.is_absolute() for parent in parents):
        parents = [Path.cwd() / parent for parent in parents]
    try:
        common = Path(os.path.commonpath(parents))
    except ValueError:  # on Windows they may be on several drives
        return Path()
    return Path() if common == Path(common.anchor) else common


def groups_table(rows: Sequence[Row], width: int | None) -> str:
    """Return the table of groups of seeds."""
    splits = splits_of(rows)
    names = differing(rows)
    lines = [["seeds", "runs", *result_heading(splits)]]
    for row in rows:
        results = result_cells(row, splits, "deviation", names)
        lines.append([row["seeds"], str(row["runs"]), *results])
    groups = counted(len(rows), "group")
    title = f"{groups} of seeds{shared(rows)} (± standard deviation of the seeds)"
    return f"{title}\n\n{aligned(lines, width)}"


def result_heading(splits: Sequence[str]) -> list[str]:
    """Return the heading of the cells that `result_cells` makes."""
    accuracies = [f"{split} %" for split in splits]
    return [*accuracies, "s", "what differs"]


def result_cells(row: Row, splits: Sequence[str], spread: str, names: Sequence[str]) -> list[str]:
    """Return a row's accuracies in percent, its seconds, and what tells it from others.

    Args:
        row: the row.
        splits: those of the accuracies.
        spread: what stands behind each ±, "error" or "deviation".
        names: the columns that tell rows apart.
    """
    cells = [percent(row, split, spread) for split in splits]
    seconds = row["train_seconds"]
    cells.append("" if seconds is None else f"{seconds:,.0f}")
    settings = [name for name in names if name != "epochs"]
    cells.append(described(row, settings))
    return cells


def splits_of(rows: Sequence[Row]) -> list[str]:
    """Return the splits on which some row has an accuracy."""
    columns = column_names(rows)
    return [split for split in SPLITS if f"{split}_accuracy" in columns]


def shared(rows: Sequence[Row]) -> str:
    """Return what is always worth saying of all rows, behind a colon; nothing if they differ."""
    different = differing(rows)
    candidates = ("dataset", "model", "num_processes", "torch_version")
    names = [name for name in candidates if name not in different]
    common = described(rows[0], names)
    return f": {common}" if common else ""


def aligned(lines: Sequence[Sequence[str]], width: int | None) -> str:
    """Return columns of text, with numbers to the right.

    Args:
        lines: the cells, the heading first.
        width: columns of the terminal; None: no limit. What the last cell of a line says is folded
            below the others where there is no room beside them.
    """
    heading = lines[0]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    *sizes, longest = widths
    before = sum(sizes) + 2 * len(sizes)
    is_beside = width is None or width - before >= min(NARROWEST, longest)
    indent = before if is_beside else 4
    room = UNLIMITED if width is None else width - indent
    text = []
    for line in lines:
        cells = padded(line, heading, sizes)
        folded = textwrap.wrap(line[-1], room, break_on_hyphens=False)
        if is_beside:
            cells += folded[:1]
            del folded[:1]
        elif line is heading:
            folded = []  # there is no column that it would be the heading of
        text.append("  ".join(cells).rstrip())
        text += [" " * indent + part for part in folded]
    return "\n".join(text) + "\n"


def padded(line: Sequence[str], heading: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Return all cells of a line but the last, made as wide as their columns."""
    cells = []
    for text, name, size in zip(line, heading, sizes, strict=False):
        is_left = name in LEFT_ALIGNED
        cells.append(text.ljust(size) if is_left else text.rjust(size))
    return cells


def draw(path: Path, rows: Sequence[Row], curves: Mapping[str, list[Row]]) -> None:
    """Draw the learning curves of runs, those that differ in nothing but the seed as one.

    Args:
        path: the .png, .pdf or .svg file.
        rows: the runs.
        curves: the lines of each run's metrics.jsonl, by the run's folder.

    Raises:
        UserError: none of them has finished an epoch.
    """
    drawn = [row for row in rows if curves[row["run"]]]
    if not drawn:
        raise UserError("--plot: none of the runs has finished an epoch")
    names = [name for name in differing(drawn) if tells_groups_apart(name)]
    groups = []
    for members in same_but_seed(drawn):
        first = members[0]
        label = described(first, names) or printable(Path(first["run"]).name)
        if len(members) > 1:
            label += f" ({len(members)} seeds)"
        group_curves = [curves[row["run"]] for row in members]
        groups.append((label, group_curves))
    common = [name for name in ("dataset", "model") if name not in names]
    heading = described(drawn[0], common)
    plots.compared(path, groups, heading)


def tells_groups_apart(name: str) -> bool:
    """Return whether runs that differ in a column are drawn apart."""
    return name not in ("seed", "num_processes") and not is_version(name)
