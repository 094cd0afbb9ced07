"""Measures training time, even if the run is stopped and resumed."""

from time import perf_counter
from typing import Any


class Stopwatch:
    """Counts the seconds that are spent on training, without evaluations and stops.

    It is a part of the run's checkpoints: register it with the accelerator.

    Attributes:
        total: seconds of all completed epochs.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.earlier = 0.0  # seconds of the epoch in progress that were spent before a stop
        self.started: float | None = None  # when this part of the epoch in progress began

    def start_epoch(self) -> None:
        """Begin an epoch, or continue one that was stopped."""
        self.started = perf_counter()

    def end_epoch(self) -> float:
        """End an epoch.

        Returns:
            The seconds that it took.
        """
        seconds = self.seconds_of_epoch()
        self.total += seconds
        self.earlier = 0.0
        self.started = None
        return seconds

    def seconds_of_epoch(self) -> float:
        """The seconds that the epoch in progress has taken so far; 0 between two epochs."""
        if self.started is None:
            return self.earlier
        return self.earlier + perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far, for a checkpoint."""
        return {"total": self.total, "epoch": self.seconds_of_epoch()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the seconds of a checkpoint."""
        self.total = state["total"]
        self.earlier = state["epoch"]
        self.started = None
