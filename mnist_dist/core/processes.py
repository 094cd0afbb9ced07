"""How processes agree: all or none, one value for all, when to stop; and what goes wrong, said in one sentence."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
OFTEN, RARELY = 0.1, 10  # seconds and updates between two questions: the shorter; one costs half a millisecond on gloo
STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again
PATIENCE = timedelta(minutes=15)  # with a process that says nothing


class UserError(Exception):
    """A request that cannot be met: a sentence that names the value, the reason and the way out; an exit status."""

    def __init__(self, message: str, status: int = 1, run: Any = None) -> None:
        super().__init__(message)
        self.status, self.run = status, run


def explain(error: Exception) -> str:
    """The sentence for an error; an `OSError` becomes its reason and its file, without the errno."""
    if isinstance(error, OSError) and error.strerror:
        where = f" {str(error.filename)!r}" if error.filename else ""
        return f"the system refused{where}: {error.strerror}; check the path, its permissions and the free space"
    return str(error)


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
    for each in filter(None, gather_object([failure])):
        raise bug or UserError(*each)


def same_everywhere(what: str, value: object) -> None:
    """Refuse, by a `UserError` that names them, processes that differ in the `repr` of a value that they must share."""
    for rank, other in enumerate(values := gather_object([repr(value)])):
        if other != values[0]:
            differ = f"{what} differ between processes 0 and {rank} ({values[0]} against {other})"
            raise UserError(f"{differ}: start all of them with the same command on the same files")


def announce(text: str) -> None:
    """Print a line once; `accelerator.print` would do so once a node."""
    if PartialState().is_main_process:
        print(text, flush=True)


class Stopped(UserError):
    """The run was asked to stop and can go on: with the folder `run`, or as the message says; its status is STATUS."""


class StopRequest:
    """Notes a signal, and lets all processes learn of it after the same update. They ask with every tenth, or more
    often if these are slow, through a gloo group on the CPU, and have the answer with the next: no update waits."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None
        self.asked, self.gap, self.left = perf_counter(), 1, 1  # when; updates between two questions, and to the next
        self.question: tuple[Any, torch.Tensor] | None = None
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, number: int, _: Any) -> None:
        """Remember a signal; a second SIGINT ends the process at once, as Ctrl-C does elsewhere."""
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def agreed(self) -> bool:
        """Whether a process had been asked to stop when the question was put; to be called once after every update."""
        if self.group is None:
            return self.received is not None
        answer = False
        if self.question:
            work, asked = self.question
            work.wait()
            stop, pace = asked.tolist()  # the slowest process's, so all choose the same gap
            answer, self.question, self.gap = bool(stop), None, max(1, min(RARELY, int(OFTEN / pace)))
        self.left -= 1
        if self.left <= 0:
            now = perf_counter()
            values = torch.tensor([float(self.received is not None), (now - self.asked) / self.gap])
            self.question = (dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group, async_op=True), values)
            self.asked, self.left = now, self.gap
        return answer
