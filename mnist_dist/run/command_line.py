"""Command lines: words into settings, and settings into words."""

import contextlib
import difflib
import io
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tyro

from mnist_dist.task.recipes import RECIPES
from mnist_dist.usage import UsageError


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
        options |= {"args": args, "prog": prog, "config": (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)}
        said, complaint = io.StringIO(), io.StringIO()
        try:
            # So that tyro neither colours nor frames what is to be read here.
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
                return tyro.cli(config_type, **options)
        except SystemExit as stop:
            if stop.code:
                known = [flag(field.name) for field in fields(config_type)]
                raise UsageError(sentence(complaint.getvalue(), known)) from None
            print(grouped(said.getvalue(), getattr(config_type, "GROUPS", {})), end="")
            raise

    for before, word in itertools.pairwise(["", *(sys.argv[1:] if args is None else args)]):
        name, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value.strip():  # an empty path would mean the current folder
            named = name if name.startswith("--") else "one of the words"
            raise UsageError(f"{named} has an empty value: give one, or leave it out (is a shell variable not set?)")
    config = understand()
    if getattr(config, "recipe", None):
        config = understand(default=config_type(**RECIPES[config.recipe], recipe=config.recipe))
    if hasattr(config, "check"):
        config.check()
    return config


def sentence(box: str, known: Sequence[str]) -> str:
    """What tyro complains of in one sentence, without heading and ruler, and what was probably meant.

    Args:
        known: the flags that there are.
    """
    _, _, *body = map(str.strip, box.splitlines())
    message = " ".join(itertools.takewhile(lambda line: not line.startswith("---"), body)).strip().rstrip(".")
    message = re.sub(r"'None', |, 'None'", "", message)  # it offers what it refuses
    if unknown := re.match(r"Unrecognized options: (--[\w-]+)", message):
        near = difflib.get_close_matches(unknown[1].replace("_", "-"), known, n=1)
        message += "".join(f": did you mean {name}?" for name in near)
    elif other := re.match(
        r"Error parsing (--[\w-]+): no type matching (.*) could be instantiated from \['(.*?)'\]", message
    ):
        name, possible, word = other.groups()
        choices = re.sub(r",\s*", ", ", possible.strip("{}"))
        message = f"{name} {word} is not possible: give {'one of ' if '{' in possible else ''}{choices}"
    elif several := re.match(r"Error parsing (--[\w-]+).*: \['(.*[, ].*)'\]$", message):
        name, words = several.groups()
        apart = " ".join(re.findall(r"[\w.+-]+", words))
        given = words.replace("', '", " ")
        message = f"{name} {given} is not possible: put spaces between the values, as in {name} {apart}"
    return f"{message} (--help lists what there is)"


def grouped(page: str, groups: Mapping[str, str]) -> str:
    """tyro's page of help without rulers, its one list of options divided into several.

    Args:
        groups: by title the flags of each, without hyphens before them, the usual ones first. Others come last.
    """
    page = re.sub(r"^ (\S.*?) *\n -+ *\n", r"\1:\n", page, flags=re.MULTILINE)
    page = re.sub(r"\s+\(default:\s*(None)?\)", "", page)  # the words before it say what happens then
    before, _, box = page.partition("options:\n")
    entries = re.split(r"^(?=  -)", box.rstrip() + "\n", flags=re.MULTILINE)
    by_flag = {entry.partition("--")[2].split()[0]: entry for entry in entries if "--" in entry}
    text = "\n".join(textwrap.fill(line, 79, subsequent_indent="  ") for line in before.split("\n"))
    for title, names in (*groups.items(), ("options", " ".join(by_flag))):
        if part := "".join(by_flag.pop(name, "") for name in names.split()):
            text += f"{title}:\n{part}\n"
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def as_json(config: Any) -> dict[str, Any]:
    """The settings as plain JSON values, paths as strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return os.fspath(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in asdict(config).items()}


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
