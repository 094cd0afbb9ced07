"""How a request to stop, sent as a signal to any one process, reaches all of them after the same update."""

import signal
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from .connections import PATIENCE

# SIGHUP comes when a terminal is closed, and from a torchrun that got one. Windows has only the
# first two.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# Processes poll each other at least this often, in seconds or updates, whichever comes first. A
# poll takes half a millisecond on gloo.
MOST_SECONDS = 0.1
MOST_UPDATES = 10


def signals_heard() -> list[signal.Signals]:
    """The signals that ask this process to stop: all of them, but for SIGHUP under `nohup`, which has it ignored."""
    heard = []
    for number in SIGNALS:
        is_ignored = signal.getsignal(number) == signal.SIG_IGN
        if is_ignored and number.name == "SIGHUP":
            continue
        heard.append(number)
    return heard


class StopRequest:
    """Records stop signals, and makes them known to all processes after the same update.

    The processes poll each other after every tenth update, or more often if updates are slow,
    through a gloo group on the CPU. The result is read after the next update, so that no update
    waits for it.

    Create one on every process, and call `agreed` on all of them after the same updates.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.group: Any = None
        if dist.is_initialized():
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.asked_at = perf_counter()
        self.gap = 1  # updates between two questions
        self.updates_left = 1  # until the next question
        self.question: tuple[Any, torch.Tensor] | None = None
        for number in signals_heard():
            signal.signal(number, self.note)

    def note(self, number: int, _: Any) -> None:
        """Remember a signal; a second SIGINT ends the process at once, as Ctrl-C does elsewhere."""
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def agreed(self, *, ask_each_time: bool = False) -> bool:
        """Whether any process had been asked to stop at the last poll.

        Every process must call this once after every update.

        Args:
            ask_each_time: poll at every call, for loops in which the time between two calls may be
                long.
        """
        if self.group is None:
            return self.received is not None
        if ask_each_time:
            self.gap = 1
            self.updates_left = 1
        stop = self.read_answer() if self.question else False
        self.updates_left -= 1
        if self.updates_left <= 0:
            self.ask()
        return stop

    def read_answer(self) -> bool:
        """Wait for the answer to the last question, and choose when to ask next."""
        assert self.question is not None
        work, answer = self.question
        self.question = None
        work.wait()
        # The slowest process's pace, so that all choose the same gap.
        stop, slowest_pace = answer.tolist()
        self.gap = max(1, min(MOST_UPDATES, int(MOST_SECONDS / slowest_pace)))
        return bool(stop)

    def ask(self) -> None:
        """Put a question to all processes, without waiting for the answer."""
        now = perf_counter()
        seconds_per_update = (now - self.asked_at) / self.gap
        values = torch.tensor([float(self.received is not None), seconds_per_update])
        work = dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.question = work, values
        self.asked_at = now
        self.updates_left = self.gap
