"""Parses command-line arguments into settings, and formats settings as arguments."""

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import tyro

from mnist_dist.run.help_texts import complaint_in_a_sentence, page_in_groups
from mnist_dist.usage import UsageError

TYRO_OPTIONS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


def parse(config_type: Any, args: Sequence[str] | None = None, prog: str | None = None) -> Any:
    """Read the settings from a command line, and check them.

    Args:
        config_type: a dataclass with a field for each flag. Its optional method `check` validates
            the settings. Its optional `GROUPS` arrange the flags in --help. If it has a field
            `recipe`, its `RECIPES` are named presets, which explicit flags override. If it has a
            field `flags_given`, the names of the flags on the command line are stored there.
        args: the arguments after the program's name. The default is those of this process.
        prog: the program's name in help and messages. The default is this process's.

    Returns:
        The settings, a `config_type`.

    Raises:
        UsageError: the words are not understood, or ask for what cannot be.
        SystemExit: with status 0, after the help that was asked for has been printed.
    """
    words = sys.argv[1:] if args is None else args
    refuse_empty_values(words)
    config = parse_words(config_type, args, prog)
    recipe = getattr(config, "recipe", None)
    if recipe:
        settings = config_type.RECIPES[recipe]
        defaults = config_type(**settings, recipe=recipe)
        config = parse_words(config_type, args, prog, default=defaults)
    if hasattr(config, "flags_given"):
        config = replace(config, flags_given=flags_in(words))
    if hasattr(config, "check"):
        config.check()
    return config


def parse_words(
    config_type: Any,
    args: Sequence[str] | None,
    prog: str | None,
    **options: Any,
) -> Any:
    """Let tyro read a command line, and print its help and its complaints in our own form.

    Args:
        config_type, args, prog: as for `parse`.
        **options: more for `tyro.cli`.

    Returns:
        The settings, unchecked.

    Raises:
        UsageError: the words are not understood.
        SystemExit: with status 0, after the help that was asked for has been printed.
    """
    said = io.StringIO()
    complaint = io.StringIO()
    try:
        # tyro neither colours nor frames what does not go to a terminal.
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
            return tyro.cli(config_type, args=args, prog=prog, config=TYRO_OPTIONS, **options)
    except SystemExit as stop:
        if stop.code:
            known = [flag(field.name) for field in fields(config_type)]
            message = complaint_in_a_sentence(complaint.getvalue(), known)
            raise UsageError(message) from None
        groups = getattr(config_type, "GROUPS", {})
        print(page_in_groups(said.getvalue(), groups), end="")
        raise


def flags_in(words: Sequence[str]) -> frozenset[str]:
    """Return the flags on a command line, with their hyphens and without their values.

    Args:
        words: the words after the program's name.
    """
    names = [word.partition("=")[0] for word in words if word.startswith("--")]
    return frozenset(name.replace("_", "-") for name in names)


def refuse_empty_values(words: Sequence[str]) -> None:
    """Reject empty arguments: as a path, an empty string would mean the current folder.

    Args:
        words: the words after the program's name.

    Raises:
        UsageError: some value is empty or blank.
    """
    for before, word in itertools.pairwise(["", *words]):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            has_value = bool(equals)
        else:
            name = before
            value = word
            has_value = True
        if has_value and not value.strip():
            named = name if name.startswith("--") else "one of the arguments"
            what_to_do = "give one, or leave it out (is a shell variable not set?)"
            raise UsageError(f"{named} has an empty value: {what_to_do}")


def as_json(config: Any) -> dict[str, Any]:
    """Write settings as plain JSON values.

    Args:
        config: a dataclass.

    Returns:
        The values by field. Paths are strings.
    """
    return {name: as_plain(value) for name, value in asdict(config).items()}


def as_plain(value: Any) -> Any:
    """Replace paths by strings, also within tuples."""
    if isinstance(value, tuple):
        return tuple(as_plain(each) for each in value)
    if isinstance(value, Path):
        return os.fspath(value)
    return value


def as_flags(config: Any) -> list[str]:
    """Write settings as the words of a command line.

    Args:
        config: a dataclass with a default for each field.

    Returns:
        The words that stand for the settings that are not the defaults.
    """
    words: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if value is False:
            words.append(flag(f"no_{field.name}"))
            continue
        words.append(flag(field.name))
        if isinstance(value, tuple):
            words += [str(each) for each in value]
        elif value is not True:  # the name of a flag says alone that it is set
            words.append(str(value))
    return words


def flag(field: str) -> str:
    """Say what a field is called on the command line, with its hyphens."""
    return f"--{field.replace('_', '-')}"
