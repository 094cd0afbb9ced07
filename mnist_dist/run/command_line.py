"""Command lines: words into settings, and settings into words."""

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tyro

from mnist_dist.task.recipes import RECIPES
from mnist_dist.task.settings import UsageError


def parse(config_type: Any, args: Sequence[str] | None = None, prog: str | None = None) -> Any:
    """The settings on a command line, checked.

    Args:
        config_type: a dataclass; its `check`, if it has one, refuses what cannot be.
        args: the words after the program's name; default those of this process.
        prog: the program's name in help and messages; default this process's.

    Raises:
        UsageError: the words are not understood or ask for what cannot be.
        SystemExit: status 0, after printing the help that was asked for.
    """

    def understand(**options: Any) -> Any:
        message = io.StringIO()
        try:
            with contextlib.redirect_stderr(message):
                return tyro.cli(config_type, args=args, prog=prog, config=(tyro.conf.FlagCreatePairsOff,), **options)
        except SystemExit as stop:
            if stop.code:
                raise UsageError(sentence(message.getvalue())) from None
            raise

    for before, word in itertools.pairwise(["", *(sys.argv[1:] if args is None else args)]):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value.strip():  # an empty path would mean the current folder
            named = flag if flag.startswith("--") else "one of the words"
            raise UsageError(f"{named} has an empty value: give one, or leave it out (is a shell variable not set?)")
    config = understand()
    if getattr(config, "recipe", None):
        config = understand(default=config_type(**RECIPES[config.recipe], recipe=config.recipe))
    if hasattr(config, "check"):
        config.check()
    return config


def sentence(box: str) -> str:
    """The message of tyro's error box as one sentence: its first paragraph, without the frame."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    body = [line for line in lines if line and not line.startswith("╭")]
    paragraph = " ".join(itertools.takewhile(lambda line: not line.startswith(("─", "╰")), body))
    return f"{paragraph.rstrip('.')} (--help lists what there is)"


def as_json(config: Any) -> dict[str, Any]:
    """The settings as plain JSON values, paths as strings."""
    return {key: os.fspath(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


def as_flags(config: Any) -> list[str]:
    """The words after `train.py` that stand for these settings: those that are not the defaults."""
    words: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [flag(field.name), *map(str, values)]
    return words


def flag(field: str) -> str:
    """What a field is called on the command line."""
    return f"--{field.replace('_', '-')}"
