"""Errors for the user, each one sentence that names the value, the reason and the remedy."""

from typing import Any

STOPPED = 75  # exit status of a run that stopped on request: EX_TEMPFAIL of sysexits.h, "try again"


class UserError(Exception):
    """A request that cannot be met.

    Args:
        message: one sentence that names the value, the reason and the way out.
        status: the exit status of the process.
        run: the run that it is about, for messages that say how to resume it.
    """

    def __init__(self, message: str, status: int = 1, run: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.run = run


class SingleProcessError(UserError):
    """An error on one process only: that process reports it, and the others notice that it has exited."""


class Stopped(UserError):
    """The run was asked to stop, has saved a checkpoint, and can be resumed from it."""


def explain(error: Exception) -> str:
    """The sentence for an error; an `OSError` becomes its reason and its file, without the errno."""
    if isinstance(error, OSError) and error.strerror:
        where = f" {str(error.filename)!r}" if error.filename else ""
        advice = "check the path, its permissions and the free space"
        return f"the system refused{where}: {error.strerror}; {advice}"
    return str(error)
