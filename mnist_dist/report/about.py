"""What was trained, how, and with what: the words at the top of a page and its tables."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from mnist_dist.digits.config import TrainConfig
from mnist_dist.records.columns import INCIDENTAL, Row, is_version, shown
from mnist_dist.run.command_line import as_flags, flag
from mnist_dist.scripts import command
from mnist_dist.shell import shell
from mnist_dist.task.data import DataSplits
from mnist_dist.task.datasets import SOURCES

# Where a run is and how it was started: nobody who does it again needs the same.
OWN = ("output_dir", "resume", "recipe")
DIRTY = "-dirty"  # ends the name of a commit from which some file differs


def noun_of(dataset: str) -> str:
    """Return what a sample of a data set is called, in the singular."""
    return SOURCES[dataset].noun if dataset in SOURCES else "digit"


def facts(row: Row, samples: DataSplits, parameters: int, train_seconds: float | None) -> list[Any]:
    """Say in pairs of words what was trained, on what, where and when.

    Args:
        row: what the run's files say, as `runs_files.read` gives it.
        samples: the data.
        parameters: how many weights the model has.
        train_seconds: how long the training took, or None if that is not known.

    Returns:
        Pairs of a heading and a text.
    """
    noun = noun_of(samples.name)
    data = (
        f"{samples.name}: {len(samples.train):,} {noun}s to train on, {len(samples.test):,} to test"
    )
    if samples.val:
        data += f", {len(samples.val):,} held out"
    pairs = [
        ("Data", data),
        ("Model", f"{layers(row)}, {parameters:,} parameters"),
        ("Training", training(row, noun, train_seconds)),
        ("Settings", unlike_defaults(row)),
        ("Processes", ", ".join(text_of(row, "set_up", "processor"))),
        ("Date", date(row.get("date"))),
        ("Code", code(row.get("commit"))),
    ]
    return [[heading, text] for heading, text in pairs if text]


def text_of(row: Row, *names: str) -> list[str]:
    """Return some columns of a row as a person reads them, without those that it has no value for."""
    return [shown(row[name]) for name in names if row.get(name) is not None]


def layers(row: Row) -> str:
    """Return a model in words, such as `mlp 784-128-64-10`."""
    hidden = str(row.get("hidden") or "").split()
    if row.get("model") == "cnn":
        maps = ", ".join(str(row.get("channels") or "").split())
        return f"cnn with {maps} maps, then {'-'.join([*hidden, '10'])}"
    return f"{row.get('model') or 'mlp'} {'-'.join(['784', *hidden, '10'])}"


def training(row: Row, noun: str, train_seconds: float | None) -> str:
    """Return in words how long was trained: epochs, the size of a batch, and the time."""
    epochs = row["epoch"]
    text = f"{epochs:g} epoch{'s' * (epochs != 1)}, {row.get('batch_size')} {noun}s per update, "
    text += f"learning rate {shown(row.get('lr'))}, seed {row['seed']}"
    if train_seconds is None:
        return text
    return f"{text}, {duration(train_seconds)}"


def unlike_defaults(row: Row) -> str:
    """Return the flags that decide what is trained and are not the defaults, as on a command line."""
    told_elsewhere = ("--dataset", "--model", "--hidden", "--channels", "--epochs", "--batch-size")
    decisive = {flag(field.name) for field in fields(TrainConfig)} - {
        flag(name) for name in INCIDENTAL
    }
    chosen = [
        name if value == "yes" else f"{name} {value}"
        for name, value, is_changed in settings(row)
        if is_changed and name in decisive and name not in (*told_elsewhere, "--lr", "--seed")
    ]
    return ", ".join(chosen) or "the defaults"


def date(text: object) -> str:
    """Return the time in config.json as a person reads it."""
    try:
        begun = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    return f"{begun.day} {begun:%B %Y, %H:%M} UTC"


def code(commit: object) -> str:
    """Return in words which code a run was made with."""
    if not commit:
        return ""
    text = str(commit)
    short = f"commit {text.removesuffix(DIRTY)[:12]}"
    return f"{short}, and changes that are not in it" if text.endswith(DIRTY) else short


def duration(seconds: float) -> str:
    """Return a time in words, such as `2 min 5 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def settings(row: Row) -> list[Any]:
    """List the flags of a run, those that are not the defaults first.

    Args:
        row: what the run's files say.

    Returns:
        Triples of a flag, its value as text, and whether it differs from the default.
    """
    defaults = TrainConfig()
    found = []
    for field in fields(TrainConfig):
        if field.name in OWN or field.name not in row:
            continue
        value = row[field.name]
        default = getattr(defaults, field.name)
        is_changed = as_words(value) != as_words(default)
        found.append([flag(field.name), as_words(value) or "none", is_changed])
    return sorted(found, key=lambda triple: not triple[2])


def as_words(value: object) -> str:
    """Return the value of a setting as text, the same for a flag and for what a file says of it."""
    if isinstance(value, tuple):
        return " ".join(map(as_words, value))
    if value is None or value == "no":  # mixed precision that nobody asked for
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(value)


def versions(row: Row) -> list[Any]:
    """List the software that a run was made with, as pairs of a name and a version."""
    names = [name for name in row if is_version(name)]
    pairs = [[name.removesuffix("_version"), shown(row[name])] for name in names]
    return pairs + [[name, shown(row[name])] for name in ("commit", "code") if row.get(name)]


def command_again(settings: Mapping[str, Any], num_processes: int) -> str:
    """Say how a training is done again from its beginning, into a new folder.

    What config.json calls `command` is how the run was called last, perhaps to resume the run, and without
    the launcher's own words.

    Args:
        settings: what the run's config.json holds.
        num_processes: those that it ended with.

    Returns:
        A line for a shell.
    """
    values: dict[str, Any] = {}
    for field in fields(TrainConfig):
        value = settings.get(field.name)
        # Without a flag, the precision is what the launcher asks for, which by itself is none.
        if field.name in OWN or value is None or (field.name, value) == ("mixed_precision", "no"):
            continue
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(field.default, Path):
            value = Path(str(value))
        values[field.name] = value
    words = command("train")
    if num_processes > 1:
        program = words[1:] if words[0] == "python" else ["-m", "mnist_dist", *words[1:]]
        words = ["torchrun", "--nproc-per-node", str(num_processes), *program]
    return shell(*words, *as_flags(TrainConfig(**values)))
