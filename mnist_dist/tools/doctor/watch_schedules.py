"""Watches the schedulers of learning rates: how often they are stepped, and by which line."""

from typing import Any

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from mnist_dist.tools.doctor.patches import call_around
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Schedule

PLANS = ("total_steps", "T_max")  # attributes that say after how many steps a schedule ends


class ScheduleWatch:
    """Watches the steps of all schedulers.

    Args:
        recorder: of this process.

    Attributes:
        depth: steps in progress: some schedulers consist of others.
        schedules: what is known of each, by its identity.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.depth = 0
        self.schedules: dict[int, Schedule] = {}

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        for kind in vars(lr_scheduler).values():
            if isinstance(kind, type) and issubclass(kind, LRScheduler) and "step" in vars(kind):
                call_around(kind, "step", quietly(self.begin), quietly(self.end))

    def begin(self, scheduler: LRScheduler, *args: Any, **kwargs: Any) -> None:
        """Note a step, unless it is the one that a scheduler makes when it is made itself."""
        del args, kwargs
        self.depth += 1
        if self.depth > 1 or self.recorder.record.made == 0:
            return
        if id(scheduler) not in self.schedules:
            planned = [getattr(scheduler, name, 0) for name in PLANS]
            found = Schedule(type(scheduler).__name__, planned=int(max(planned)))
            self.schedules[id(scheduler)] = found
            self.recorder.record.schedules.append(found)
        self.schedules[id(scheduler)].steps += 1
        self.schedules[id(scheduler)].place = place()

    def end(self) -> None:
        """Note that a step has ended."""
        self.depth -= 1
