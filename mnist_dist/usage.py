"""How the settings of a program describe and check their values.

This module knows neither the task nor the run, so that the settings of both can use it.
"""

from typing import Any

import tyro

from mnist_dist.core.errors import UserError

# Metadata for the dataclass field of a setting that does not decide what is trained. A run that is
# resumed may be given another value for it.
MAY_CHANGE = {"may_change": True}

# A model of this size needs 1.6 GB for weights, gradients and Adam's state. A larger one is most
# likely a typing mistake.
MAX_PARAMETERS = 100_000_000


class UsageError(UserError):
    """A command line that makes no sense. Its exit status is 2, as in every Unix tool."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=2)


def unset(what: str) -> Any:
    """Describe, for --help, what happens if a setting with the default None is left out.

    Args:
        what: the words that replace "None", which means nothing to a reader.

    Returns:
        An object to annotate the setting's type with, by `typing.Annotated`.
    """
    return tyro.conf.arg(help_behavior_hint=f"(default: {what})")


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Refuse a value, in the one form that every message about a flag has.

    Args:
        condition: whether the value is possible.
        flag: the name of the flag, with its hyphens.
        value: what was given.
        expected: what to give instead.

    Raises:
        UsageError: the condition is false.
    """
    if not condition:
        raise UsageError(f"{flag} {value} is not possible: give {expected}")
