"""How processes agree: all or none, one value for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from .errors import UserError, explain


@contextmanager
def all_or_none() -> Iterator[None]:
    """A block that fails on all processes, by a `UserError`, if it fails on one, for which the others would wait."""
    failure, bug = None, None
    try:
        yield
    except (UserError, OSError) as error:
        failure = (explain(error), getattr(error, "status", 1))
    except Exception as error:
        failure, bug = (f"another process failed with {type(error).__name__}: its own message says where", 1), error
    failures = [failure for failure in gather_object([failure]) if failure]
    if bug:
        raise bug
    if failures:
        raise UserError(*failures[0])


def same_everywhere(what: str, value: object) -> None:
    """Refuse, by a `UserError` that names them, processes that differ in the `repr` of a value that they must share."""
    with all_or_none():
        values = gather_object([repr(value)])
        for rank, other in enumerate(values):
            if other != values[0]:
                differ = f"{what} differ between processes 0 and {rank} ({values[0]} against {other})"
                raise UserError(f"{differ}: start all of them with the same command on the same files")


def broadcast(value: Any) -> Any:
    """The first process's value, on every process."""
    return broadcast_object_list([value], from_process=0)[0]


def announce(text: str) -> None:
    """Print a line once; `accelerator.print` would do so once a node."""
    if PartialState().is_main_process:
        print(text, flush=True)
