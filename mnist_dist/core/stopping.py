"""Asked to stop: signals, and the agreement of all processes on the update after which they leave."""

import signal
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from .errors import UserError

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
OFTEN, RARELY = 0.1, 10  # seconds and updates between two questions: the shorter; one costs half a millisecond on gloo


class Stopped(UserError):
    """The run was asked to stop and can go on: with the folder `run`, or as the message says."""

    def __init__(self, message: str, run: Path | None = None) -> None:
        super().__init__(message, 75)  # EX_TEMPFAIL of sysexits.h: try again
        self.run = run


class StopRequest:
    """Notes a signal, and lets all processes learn of it after the same update.

    They ask each other with every tenth update, or more often if updates are slow, and have the answer with the next:
    through a gloo group on the CPU, so that neither the update nor a GPU waits for it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.asked, self.gap, self.left = perf_counter(), 1, 1  # when; updates between two questions, and to the next
        self.question: tuple[Any, torch.Tensor] | None = None
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, number: int, _: FrameType | None) -> None:
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
