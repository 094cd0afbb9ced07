"""The folders of runs: finding them, and reading what their files say."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.core import UserError
from mnist_dist.records.columns import RESULTS, SPLITS, Row
from mnist_dist.run.folder import CONFIG, ENDED, JOURNAL, METRICS, SUMMARY
from mnist_dist.run.locks import is_running
from mnist_dist.run.printing import printable

REQUIRED = {"epochs", "seed", "wandb_id"}  # what the config.json of every run has
LARGEST = 1e18  # no run writes a number beyond it


def find(folders: Sequence[Path]) -> Iterator[Path]:
    """Find the folders of runs among these folders, in them, or one deeper.

    A warning names each folder in them that holds neither a run nor a search.

    Args:
        folders: runs' folders, or folders of runs.

    Returns:
        The folders of the runs, in the order of their names.

    Raises:
        UserError: one of the folders is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(why_not_there(folder))
        if is_run(folder):
            yield folder
            continue
        for inner in sorted(folder.iterdir()):
            yield from runs_in(inner)


def why_not_there(folder: Path) -> str:
    """Return a sentence about a folder that was named and does not exist."""
    if is_broken_link(folder):
        return f"{broken_link(folder)}: restore it, or remove the link"
    return f"there is not a folder {printable(folder)}: name a run's folder, or a folder of runs"


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of runs at this place, which itself is in a folder of runs.

    A warning says why there are none, also if this user may not look into it.
    """
    try:
        if is_broken_link(folder):
            pass_over(folder, broken_link(folder))
            return []
        if not folder.is_dir():
            return []
        if is_run(folder):
            return [folder]
        runs = [inner for inner in sorted(folder.iterdir()) if is_readable_run(inner)]
        is_search = (folder / JOURNAL).exists()
    except OSError as error:
        pass_over(folder, why_unreadable(error))
        return []
    if not runs and not is_search:
        pass_over(folder, f"there is no {CONFIG} in it")
    return runs


def is_readable_run(folder: Path) -> bool:
    """Return whether a folder holds a run; a warning says so if this user may not look into it."""
    try:
        return folder.is_dir() and is_run(folder)
    except OSError as error:
        pass_over(folder, why_unreadable(error))
        return False


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run.

    Raises:
        OSError: this user may not look into the folder. From Python 3.14 on, `Path.exists` does not
            say so.
    """
    try:
        (folder / CONFIG).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_broken_link(path: Path) -> bool:
    """Return whether a path is a symbolic link to something that is not there."""
    return path.is_symlink() and not path.exists()


def broken_link(path: Path) -> str:
    """Return words that name a symbolic link and its missing target."""
    target = path.readlink()
    return f"{printable(path)} is a symbolic link to {printable(target)}, which is not there"


def pass_over(folder: Path, reason: str) -> None:
    """Warn that a folder is left out, and why."""
    print(f"warning: {printable(folder)} is passed over: {reason}", file=sys.stderr)


def why_unreadable(error: BaseException) -> str:
    """Return why the files of a run could not be read, in words."""
    if isinstance(error, RecursionError):
        return "its files are nested too deep"
    return printable(getattr(error, "strerror", None) or error)


def read(folder: Path) -> tuple[Row, list[Row]]:
    """Read what the files in a run's folder say.

    Args:
        folder: the run's folder.

    Returns:
        The run as a row of the table, and the lines of its metrics.jsonl.

    Raises:
        ValueError: these are not the files of a run, or they are damaged.
        RecursionError: they are nested so deep that they cannot be parsed.
        OSError: they cannot be read.
    """
    settings = read_object(folder / CONFIG)
    summary = read_object(folder / SUMMARY)
    if not settings.keys() >= REQUIRED:
        raise ValueError(f"its {CONFIG} is not that of a run")
    epochs = [line for line in read_lines(folder / METRICS) if "epoch" in line]
    last_epoch = epochs[-1] if epochs else {}
    versions = settings.pop("versions", {})
    if not isinstance(versions, dict):
        raise ValueError(f"the versions in its {CONFIG} are not named")

    row: Row = {"run": os.fspath(folder)}
    row |= state_of(folder, finished=bool(summary))
    row["dataset"] = None
    row["model"] = None
    row["epoch"] = number(last_epoch, "epoch") or 0
    for split in SPLITS:
        row |= results_of(split, last_epoch)
    for name in ("train_seconds", "samples_per_second", "parameters"):
        row[name] = number(summary, name)
    for name, value in settings.items():
        if name not in RESULTS:
            row[name] = cell(value)
    row["num_processes"] = number(summary, "num_processes") or number(settings, "num_processes")
    for package, version in versions.items():
        row[f"{cell(package)}_version"] = cell(version)
    return row, epochs


def state_of(folder: Path, finished: bool) -> Row:
    """Return the state of a run and, if it ended before its time, the reason."""
    ended = read_object(folder / ENDED)
    if finished:
        return {"state": "done", "reason": None}
    if is_running(folder):
        return {"state": "running", "reason": None}
    state = "stopped" if ended.get("state") == "stopped" else "failed"
    return {"state": state, "reason": cell(ended.get("reason"))}


def results_of(split: str, line: Row) -> Row:
    """Return the columns of one split after an epoch; none if that epoch has no accuracy on it.

    Args:
        split: the name of the split.
        line: the epoch's line of metrics.jsonl.

    Returns:
        Accuracy and its standard error, both in [0, 1], and the loss in nats.
    """
    accuracy = number(line, f"{split}_accuracy")
    total = number(line, f"{split}_total")
    if accuracy is None or not total:
        return {}
    variance = max(accuracy * (1 - accuracy), 0)
    return {
        f"{split}_accuracy": accuracy,
        f"{split}_error": math.sqrt(variance / abs(total)),
        f"{split}_loss": number(line, f"{split}_loss"),
    }


def read_object(path: Path) -> Row:
    """Read the JSON object in a file.

    Returns:
        The object; an empty one if there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return {}
    if not path.is_file():  # reading a pipe would never end
        raise ValueError(f"its {path.name} is not a file")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"its {path.name} is damaged") from error
    if not isinstance(value, dict):
        raise ValueError(f"its {path.name} is not a JSON object")
    return value


def read_lines(path: Path) -> list[Row]:
    """Read the lines of a metrics.jsonl, without a last one that is still being written.

    Returns:
        The lines; none if there is no such file.

    Raises:
        ValueError: a line is not a JSON object, or holds a number that no run writes.
    """
    if not path.is_file():
        return []
    texts = path.read_text().splitlines(keepends=True)
    try:
        lines = [json.loads(text) for text in texts if text.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"its {path.name} is damaged") from error
    for line in lines:
        if not isinstance(line, dict):
            raise ValueError(f"its {path.name} is damaged")
        for name in line:
            number(line, name)
    return lines


def number(values: Row, name: str) -> float | None:
    """Return a number by its name, None if it is not there.

    Raises:
        ValueError: the value is not a number that a run would write.
    """
    value = values.get(name)
    if value is None:
        return None
    # Compared with the bound first: an integer of thousands of digits does not become a float.
    is_number = isinstance(value, int | float) and abs(value) < LARGEST
    is_share = name.endswith("accuracy")
    if not is_number or (is_share and value > 1):
        raise ValueError(f"its {name} is not a possible number")
    return value


def cell(value: object) -> Any:
    """Return a foreign value as a number or words; lists become words as flags take them."""
    if isinstance(value, list):
        words = [str(cell(item)) for item in value]
        return " ".join(words)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, int | float | str):
        return value
    return json.dumps(value)
