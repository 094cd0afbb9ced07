"""Agreement between processes: blocks that fail on all or none, and values that must be equal on all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest

from accelerate import PartialState
from accelerate.utils import gather_object

from .errors import UserError, explain
from .output import say

LONGEST = 40  # characters of a value in a message


@contextmanager
def all_or_none() -> Iterator[None]:
    """A block that fails on every process if it fails on one, so that no process waits for another in vain.

    Every process must enter the block.

    Raises:
        UserError: on every process, if the block raised a `UserError` or an `OSError` on one of
            them. Any other exception is raised as it is where it occurred, and as a `UserError` on
            the other processes.
    """
    failure: tuple[str, int] | None = None
    bug: Exception | None = None
    try:
        yield
    except (UserError, OSError) as error:
        failure = explain(error), getattr(error, "status", 1)
    except Exception as error:
        bug = error
        failure = (
            f"another process failed with {type(error).__name__}: see that process's traceback",
            1,
        )
    for other in gather_object([failure]):
        if other is not None:
            raise bug or UserError(*other)


def check_same_across_processes(what: str, value: object) -> None:
    """Compare the `repr` of a value between all processes; each of them must call this.

    Args:
        what: the name of the value, a plural, for the message.
        value: this process's. If it is a mapping, the message names the first entry that differs.

    Raises:
        UserError: on every process, if two of them have different values.
    """
    own = [repr(value)]
    if isinstance(value, Mapping):
        own = [f"{name} {entry}" for name, entry in value.items()]
    first, *others = gather_object([own])
    for rank, other in enumerate(others, start=1):
        if other == first:
            continue
        pairs = zip_longest(first, other, fillvalue="nothing")
        one, another = next(pair for pair in pairs if pair[0] != pair[1])
        raise UserError(
            f"{what} differ between processes 0 and {rank} ({short(one)} against {short(another)}): "
            "start all of them with the same command on the same files"
        )


def short(value: str) -> str:
    """The beginning of a long value, such as a digest."""
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."


def announce(text: str) -> None:
    """Print a line once, on the first process; `accelerator.print` prints it once on every node.

    If the terminal has been closed, the line is silently dropped.
    """
    if PartialState().is_main_process:
        say(text)
