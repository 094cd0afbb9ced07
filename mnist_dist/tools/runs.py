"""Runs side by side: what differs between them, how far they are, and how they did; seeds as mean and spread."""

import csv
import io
import json
import math
import operator
import os
import re
import shutil
import statistics
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from mnist_dist.core import UserError
from mnist_dist.run import plots
from mnist_dist.run.files import write_file
from mnist_dist.run.folder import CONFIG, ENDED, JOURNAL, METRICS, ROOT, SUMMARY, is_running
from mnist_dist.run.settings import TrainConfig
from mnist_dist.usage import UsageError, require

Row = dict[str, Any]  # a run's or a group's values by column: numbers, words, None
SPLITS = ("test", "val")
RESULTS = {"run", "state", "reason", "runs", "seeds", "epoch", "train_seconds", "samples_per_second", "parameters"} | {
    f"{split}_{figure}" for split in SPLITS for figure in ("accuracy", "error", "deviation", "loss")
}
# What decides nothing of the training: where a run is, and what it was begun with.
INCIDENTAL = {field.name for field in fields(TrainConfig) if field.metadata.get("may_change")} | set(
    "set_up command date commit code processor threads wandb_id launcher normalization".split()
)
CONDITION = re.compile(r"([\w-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", re.DOTALL)
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare runs: a table of what differs between them, how far they are, and how they did."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (ROOT,)
    """Runs' folders, or folders of runs."""
    where: tuple[str, ...] = ()
    """Conditions on columns, all of which hold, such as model=cnn 'test_accuracy>0.99' (also !=, <, <=, >=)."""
    sort: str = "run"
    """The column to sort by, such as test_accuracy, ascending. --json shows all columns."""
    reverse: bool = False
    """Sort descending."""
    group: bool = False
    """A row for each group of finished runs that differ in nothing but the seed: mean and standard deviation."""
    json: bool = False
    """Print all columns as JSON, a list of objects."""
    csv: bool = False
    """Print all columns as CSV."""
    output: Path | None = None
    """Write to this file what would be printed."""
    plot: Path | None = None
    """Draw the learning curves into this .png, .pdf or .svg, seeds as a band."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        if not self.folders:
            raise UsageError("no folder was given: name runs' folders, or folders of runs")
        for condition in self.where:
            require(bool(CONDITION.fullmatch(condition)), "--where", condition, "a condition such as model=cnn")
        require(not (self.json and self.csv), "--json", "with --csv", "one of them")
        require(self.plot is None or self.plot.suffix in plots.SUFFIXES, "--plot", self.plot, plots.EXPECTED)


def main(config: Config) -> None:
    """Print, write and draw what the runs say."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # folders' names may hold what it cannot print
    rows, curves = [], {}
    for folder in find(config.folders):
        try:
            row, curve = read(folder)
        except (OSError, ValueError, RecursionError) as error:  # whatever a foreign file makes the parser do
            print(f"warning: {printable(folder)} is passed over: {reason(error)}", file=sys.stderr)
            continue
        rows.append(row)
        curves[row["run"]] = curve
    if not rows:
        where = " ".join(map(printable, config.folders))
        raise UserError(f"there is no run in {where}: train one with `python train.py`, or name the folder of one")
    known = columns(rows)
    for condition in config.where:
        rows = [row for row in rows if holds(condition, row, known)]
    chosen = groups(rows) if config.group else rows
    if config.sort not in (known := columns([*rows, *chosen])) and chosen:
        raise UsageError(f"--sort {config.sort} is not possible: give one of {', '.join(known)}")
    chosen = in_order(chosen, config.sort, config.reverse)
    if config.json:
        text = json.dumps(chosen, indent=2) + "\n"
    elif config.csv:
        text = as_csv(chosen)
    else:
        wide = not config.output and sys.stdout.isatty()
        text = table(chosen, shutil.get_terminal_size().columns if wide else None)
    if config.output:
        write_file(config.output, text.encode(errors="replace"))
    else:
        print(text, end="")
    if config.plot:
        draw(config.plot, rows, curves)


# ------------------------------------------------------------------------------------- reading


def find(folders: Sequence[Path]) -> Iterator[Path]:
    """The folders of runs among these folders, in them, or one deeper; a warning names what holds no run, nor a search.

    Raises:
        UserError: one of the folders is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {printable(folder)}: name a run's folder, or a folder of runs")
        if (folder / CONFIG).exists():
            yield folder
            continue
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            runs = [inner] if (inner / CONFIG).exists() else sorted(file.parent for file in inner.glob(f"*/{CONFIG}"))
            yield from runs
            if not runs and not (inner / JOURNAL).exists():
                print(f"warning: {printable(inner)} is passed over: there is no {CONFIG} in it", file=sys.stderr)


def read(folder: Path) -> tuple[Row, list[Row]]:
    """What a run's folder says of it, and the lines of its metrics.jsonl.

    Raises:
        ValueError: these are not the files of a run, or they are damaged.
        RecursionError: so are they.
        OSError: they cannot be read.
    """
    settings, summary, ended = (document(folder / name) for name in (CONFIG, SUMMARY, ENDED))
    if not {"epochs", "seed", "wandb_id"} <= settings.keys():
        raise ValueError(f"its {CONFIG} is not that of a run")
    lines = [line for line in metrics(folder / METRICS) if "epoch" in line]
    last = lines[-1] if lines else {}
    versions = settings.pop("versions", {})
    if not isinstance(versions, dict):
        raise ValueError(f"the versions in its {CONFIG} are not named")
    row: Row = {"run": os.fspath(folder), "state": "done", "reason": None}
    if not summary:
        row["state"] = "running" if is_running(folder) else "stopped" if ended.get("state") == "stopped" else "failed"
        row["reason"] = cell(ended.get("reason")) if row["state"] != "running" else None
    row |= {"dataset": None, "model": None, "epoch": number(last, "epoch") or 0}
    for split in SPLITS:
        accuracy, total = number(last, f"{split}_accuracy"), number(last, f"{split}_total")
        if accuracy is not None and total:
            row[f"{split}_accuracy"] = accuracy
            row[f"{split}_error"] = math.sqrt(max(accuracy * (1 - accuracy), 0) / abs(total))
            row[f"{split}_loss"] = number(last, f"{split}_loss")
    row |= {name: number(summary, name) for name in ("train_seconds", "samples_per_second", "parameters")}
    row |= {name: cell(value) for name, value in settings.items() if name not in RESULTS}
    row["num_processes"] = number(summary, "num_processes") or number(settings, "num_processes")
    return row | {f"{cell(package)}_version": cell(version) for package, version in versions.items()}, lines


def document(path: Path) -> Row:
    """The JSON object in a file; empty if there is no such file."""
    if not path.exists():
        return {}
    if not path.is_file():  # a pipe would never end
        raise ValueError(f"its {path.name} is not a file")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"its {path.name} is damaged") from error
    if not isinstance(value, dict):
        raise ValueError(f"its {path.name} is not a JSON object")
    return value


def metrics(path: Path) -> list[Row]:
    """The lines of a metrics.jsonl, without a last one that is being written."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"its {path.name} is damaged") from error
    for line in lines:
        if not isinstance(line, dict):
            raise ValueError(f"its {path.name} is damaged")
        for name in line:
            number(line, name)
    return lines


def number(values: Row, name: str) -> float | None:
    """A number by its name, None if it is not there; a `ValueError` if it is none that a run would write."""
    value = values.get(name)
    possible = isinstance(value, int | float) and abs(value) < 1e18 and math.isfinite(value)
    if value is not None and not (possible and (value <= 1 or not name.endswith("accuracy"))):
        raise ValueError(f"its {name} is not a possible number")
    return value


def cell(value: object) -> Any:
    """A value from elsewhere as a number or words: lists as flags take them."""
    if isinstance(value, list):
        return " ".join(str(cell(one)) for one in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, int | str) else json.dumps(value)


def reason(error: BaseException) -> str:
    """Why a folder is passed over, in words."""
    if isinstance(error, RecursionError):
        return "its files are nested too deep"
    return printable(getattr(error, "strerror", None) or error)


# ------------------------------------------------------------------------------------- choosing


def columns(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def holds(condition: str, row: Row, known: Sequence[str]) -> bool:
    """Whether a condition is true for a row; an empty cell is smaller and greater than nothing.

    Raises:
        UsageError: there is no such column.
    """
    name, relation, wanted = re.fullmatch(CONDITION, condition).groups()  # type: ignore[union-attr]  # `check` saw to it
    name = name.replace("-", "_") if name not in known else name
    if name not in known:
        raise UsageError(f"--where {condition} is not possible: give a condition on one of {', '.join(known)}")
    value: Any = row.get(name)
    if isinstance(value, int | float):
        with suppress(ValueError):
            wanted = float(wanted)
        if isinstance(wanted, str) and relation in COMPARE:
            raise UsageError(f"--where {condition} is not possible: {name} is a number, so give one")
    if isinstance(wanted, str):
        value, wanted = None if value is None else str(value).lower(), wanted.lower()
    if relation in ("=", "!="):
        return ((value == wanted) or (value is None and wanted == "none")) == (relation == "=")
    return value is not None and COMPARE[relation](value, wanted)


def in_order(rows: Sequence[Row], name: str, reverse: bool) -> list[Row]:
    """Rows sorted by a column: numbers by size, words by letters, and those without a value last."""
    there = [row for row in rows if row.get(name) is not None]

    def key(row: Row) -> tuple[bool, Any]:
        value = row[name]
        return (True, value) if isinstance(value, str) else (False, value)

    return sorted(there, key=key, reverse=reverse) + [row for row in rows if row.get(name) is None]


def same_but_seed(row: Row) -> tuple[tuple[str, Any], ...]:
    """What runs have in common that differ in their seed alone; processes and versions may differ."""
    return tuple(
        (name, value)
        for name, value in sorted(row.items())
        if name not in RESULTS | INCIDENTAL | {"seed", "num_processes"} and not name.endswith("_version")
    )


def groups(rows: Sequence[Row]) -> list[Row]:
    """A row for each group of finished runs that differ in their seed alone."""
    together: dict[Any, list[Row]] = {}
    for row in rows:
        if row["state"] == "done":
            together.setdefault(same_but_seed(row), []).append(row)
    found = []
    for common, members in together.items():
        seeds = sorted({row["seed"] for row in members}, key=str)
        group: Row = {"seeds": " ".join(map(str, seeds)), "runs": len(members), "dataset": None, "model": None}
        for split in SPLITS:
            values = [row[f"{split}_accuracy"] for row in members if f"{split}_accuracy" in row]
            if values:
                group[f"{split}_accuracy"] = statistics.mean(values)
                group[f"{split}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        seconds = [row["train_seconds"] for row in members if row["train_seconds"] is not None]
        group["train_seconds"] = statistics.mean(seconds) if seconds else None
        found.append(group | dict(common))
    return found


# ------------------------------------------------------------------------------------- showing


def as_csv(rows: Sequence[Row]) -> str:
    """All columns, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def printable(value: object) -> str:
    """Text for a terminal: nothing in it can move the cursor, and it is not long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= 200 else f"{text[:199]}…"


def shown(value: object) -> str:
    """A cell as a person reads it."""
    return f"{value:g}" if isinstance(value, float) else printable(value)


def differing(rows: Sequence[Row]) -> list[str]:
    """The columns that tell rows apart by what was trained, on what, with what."""
    names = [
        name
        for name in columns(rows)
        if name not in RESULTS | (INCIDENTAL - {"teacher"}) | {"data_digest", "teachers_digest"}
    ]
    return [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]


def described(row: Row, names: Sequence[str]) -> str:
    """Some of a row's settings, each by name and value."""
    parts = []
    for name in names:
        if (value := row.get(name)) is None:
            continue
        if name == "num_processes":
            parts.append(f"{value} process{'es' * (value != 1)}")
        else:
            parts.append(
                f"{'' if name in ('dataset', 'model') else name.removesuffix('_version')} {shown(value)}".strip()
            )
    return ", ".join(parts)


def table(rows: Sequence[Row], width: int | None) -> str:
    """What a person reads: what all rows share, then a line for each with what differs.

    Args:
        width: columns of the terminal, into which the settings are folded; None: a line a row.
    """
    if not rows:
        return "no run is left\n"
    grouped = "runs" in rows[0]
    parent = Path(os.path.commonpath([Path(row["run"]).parent for row in rows])) if not grouped else Path()
    different = differing(rows)
    shared = [name for name in ("dataset", "model", "num_processes", "torch_version") if name not in different]
    lines: list[list[str]] = []
    splits = [split for split in SPLITS if any(f"{split}_accuracy" in row for row in rows)]
    for row in rows:
        if grouped:
            line = [row["seeds"], str(row["runs"])]
        else:
            name = os.path.relpath(row["run"], parent) if parent != Path() else row["run"]
            line = [printable(name), row["state"], f"{row['epoch']:g}/{shown(row['epochs'])}"]
        for split in splits:
            accuracy = row.get(f"{split}_accuracy")
            spread = row.get(f"{split}_deviation" if grouped else f"{split}_error")
            spread = "" if spread is None else f"±{100 * spread:.2f}"
            line.append("" if accuracy is None else f"{100 * accuracy:.2f}{spread}")
        seconds = row["train_seconds"]
        lines.append(
            [
                *line,
                "" if seconds is None else f"{seconds:,.0f}",
                described(row, [name for name in different if name != "epochs"]),
            ]
        )
    head = ["seeds", "runs"] if grouped else ["run", "state", "epochs"]
    head += [f"{split} %" for split in splits] + ["s", "what differs"]
    what = (
        f"{len(rows)} group{'s' * (len(rows) > 1)} of seeds" if grouped else f"{len(rows)} run{'s' * (len(rows) > 1)}"
    )
    place = f" in {printable(parent)}" if parent != Path() else ""
    common = described(rows[0], shared)
    spread = "standard deviation of the seeds" if grouped else "standard error"
    return f"{what}{place}{': ' * bool(common)}{common} (± {spread})\n\n" + aligned([head, *lines], width)


def aligned(lines: Sequence[Sequence[str]], width: int | None) -> str:
    """Columns of text, numbers to the right; what the last one says is folded below where there is no room beside."""
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    indent = sum(sizes) + 2 * len(sizes)
    beside = width is None or width - indent >= min(30, max(len(line[-1]) for line in lines))
    indent, text = (indent if beside else 4), ""
    for number, line in enumerate(lines):
        cells = [
            word.ljust(size) if head in ("run", "state", "seeds") else word.rjust(size)
            for word, size, head in zip(line, sizes, lines[0], strict=False)
        ]
        folded = textwrap.wrap(line[-1], width - indent if width else 10**6, break_on_hyphens=False)
        if beside:
            cells.append(folded.pop(0) if folded else "")
        text += "  ".join(cells).rstrip() + "\n"
        text += "".join(" " * indent + more + "\n" for more in folded if beside or number)
    return text


def draw(path: Path, rows: Sequence[Row], curves: Mapping[str, list[Row]]) -> None:
    """Draw the learning curves of runs, those that differ in their seed alone as one.

    Raises:
        UserError: none of them has finished an epoch.
    """
    drawn = [row for row in rows if curves[row["run"]]]
    if not drawn:
        raise UserError("--plot: none of the runs has finished an epoch")
    names = [
        name for name in differing(drawn) if name not in ("seed", "num_processes") and not name.endswith("_version")
    ]
    together: dict[Any, list[Row]] = {}
    for row in drawn:
        together.setdefault(same_but_seed(row), []).append(row)
    parts = []
    for members in together.values():
        label = described(members[0], names) or printable(Path(members[0]["run"]).name)
        label += f" ({len(members)} seeds)" if len(members) > 1 else ""
        parts.append((label, [curves[row["run"]] for row in members]))
    plots.compared(path, parts, described(drawn[0], [name for name in ("dataset", "model") if name not in names]))
