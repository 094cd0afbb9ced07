"""The command `runs`: what differs between runs, how far they are, and how they did."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from mnist_dist import plots
from mnist_dist.core import UserError
from mnist_dist.records.columns import Row, column_names
from mnist_dist.records.files import find, pass_over, read, why_unreadable
from mnist_dist.records.selection import holds, in_order, is_condition, seed_groups
from mnist_dist.records.tables import as_csv, draw, table
from mnist_dist.run.files import write_file
from mnist_dist.run.folder import ROOT
from mnist_dist.run.printing import allow_any_name, printable
from mnist_dist.scripts import command
from mnist_dist.shell import shell
from mnist_dist.usage import UsageError, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare runs: a table of what differs between them, how far they are, and how they did."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (ROOT,)
    """Runs' folders, or folders of runs."""
    where: tuple[str, ...] = ()
    """Conditions on columns, all of which hold, such as model=cnn 'test_accuracy>0.99'
    (also !=, <, <=, >=)."""
    sort: str = "run"
    """The column to sort by, such as test_accuracy, ascending. --json shows all columns."""
    reverse: bool = False
    """Sort descending."""
    group: bool = False
    """A row for each group of finished runs that differ in nothing but the seed:
    mean and standard deviation."""
    json: bool = False
    """Print all columns as JSON, a list of objects."""
    csv: bool = False
    """Print all columns as CSV."""
    output: Path | None = None
    """Write to this file what would be printed."""
    plot: Path | None = None
    """Draw the learning curves into this .png, .pdf or .svg, seeds as a band."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        if not self.folders:
            raise UsageError("no folder was given: name runs' folders, or folders of runs")
        for condition in self.where:
            require(is_condition(condition), "--where", condition, "a condition such as model=cnn")
        require(not (self.json and self.csv), "--json", "with --csv", "one of them")
        if self.plot:
            require(self.plot.suffix in plots.SUFFIXES, "--plot", self.plot, plots.EXPECTED)


def main(config: Config) -> None:
    """Print, write and draw what the runs say.

    Args:
        config: the flags.

    Raises:
        UserError: there is no such folder, or no run in it.
        UsageError: there is no such column.
    """
    allow_any_name()
    rows, curves = read_all(config.folders)
    names = column_names(rows)
    for condition in config.where:
        rows = [row for row in rows if holds(condition, row, names)]
    chosen = seed_groups(rows) if config.group else rows
    sortable = column_names([*rows, *chosen])
    if chosen and config.sort not in sortable:
        known = ", ".join(sortable)
        raise UsageError(f"--sort {config.sort} is not possible: give one of {known}")
    text = as_text(config, in_order(chosen, config.sort, config.reverse))
    if config.output:
        write_file(config.output, text.encode(errors="replace"))
    else:
        print(text, end="")
    if config.plot:
        draw(config.plot, rows, curves)


def read_all(folders: Sequence[Path]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Read all runs in some folders; a warning names each that cannot be read.

    Args:
        folders: runs' folders, or folders of runs.

    Returns:
        A row for each run, and the lines of its metrics.jsonl by the run's folder.

    Raises:
        UserError: there is no run.
    """
    rows: list[Row] = []
    curves: dict[str, list[Row]] = {}
    for folder in find(folders):
        try:
            row, curve = read(folder)
        # These are what a foreign file can make the parser do.
        except (OSError, ValueError, RecursionError) as error:
            pass_over(folder, why_unreadable(error))
            continue
        rows.append(row)
        curves[row["run"]] = curve
    if not rows:
        places = " ".join(map(printable, folders))
        train = shell(*command("train"))
        advice = f"train one with `{train}`, or name the folder of one"
        raise UserError(f"there is no run in {places}: {advice}")
    return rows, curves


def as_text(config: Config, rows: Sequence[Row]) -> str:
    """Return rows in the form that the flags ask for."""
    if config.json:
        return json.dumps(rows, indent=2) + "\n"
    if config.csv:
        return as_csv(rows)
    is_for_terminal = sys.stdout.isatty() and not config.output
    width = shutil.get_terminal_size().columns if is_for_terminal else None
    return table(rows, width)
