"""The record of a run: metrics.jsonl, which is kept, and Weights & Biases, which shows it."""

import contextlib
import math
from typing import Any

from accelerate import Accelerator

from mnist_dist.core.agreement import all_or_none
from mnist_dist.core.errors import Stopped
from mnist_dist.run.files import append_json, write_json, write_json_lines
from mnist_dist.run.folder import CONFIG, ENDED, METRICS, REPORT, SUMMARY, Run
from mnist_dist.run.wandb_run import AtEnd, WandB, first_line, mode_of


class Tracker:
    """Records a run. Every process holds one and calls it alike, and only the main process writes.

    It is a context manager: enter it once it is known whether the run is resumed, and leave it when
    the run ends, for whatever reason. It is also part of the run's checkpoints, so its history
    survives a stop.

    Args:
        accelerator: the processes.
        run: the run's folder and identifiers.
        settings: JSON values, written to config.json and W&B. `wandb` and `wandb_project` configure
            W&B; without `wandb` it is not used.

    Attributes:
        history: all figures so far, in order: points of the curves and epochs, each with its
            `global_step`.
        pending: training metrics of an epoch that has not been evaluated yet.
    """

    def __init__(self, accelerator: Accelerator, run: Run, settings: dict[str, Any]) -> None:
        self.accelerator = accelerator
        self.folder = run.folder
        self.settings = settings | {"wandb_id": run.wandb_id, "job": run.job}
        self.history: list[dict[str, Any]] = []
        self.pending: dict[str, Any] = {}
        self.wandb: WandB | None = None

    def state_dict(self) -> dict[str, Any]:
        """The history, for a checkpoint."""
        return {"history": self.history, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the history of a checkpoint."""
        self.history = state["history"]
        self.pending = state["pending"]

    def __enter__(self) -> "Tracker":
        is_writer = self.accelerator.is_main_process
        with all_or_none():
            if is_writer:
                self.begin_files()
        if is_writer and mode_of(self.settings) != "disabled":
            self.wandb = WandB(self.accelerator, self.folder, self.settings, self.history)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: object,
    ) -> None:
        if error and self.accelerator.is_main_process:
            self.note_end(error)
        # A user who presses Ctrl-C twice does not want to wait for W&B.
        if self.wandb and kind is not KeyboardInterrupt:
            self.wandb.close(failed=kind is not None, to_go_on=kind is Stopped)

    def begin_files(self) -> None:
        """Write the files known so far, and remove outdated ones left by an earlier part of the run.

        Raises:
            OSError: a file cannot be written.
        """
        (self.folder / ENDED).unlink(missing_ok=True)
        write_json(self.folder / CONFIG, self.settings)
        # A run that was killed may have written more lines than its last checkpoint holds. Their
        # epochs are trained again.
        write_json_lines(self.folder / METRICS, self.lines)
        epochs = self.settings.get("epochs", math.inf)
        if len(self.lines) < epochs:  # a finished run that is given more epochs is not finished
            for name in (SUMMARY, REPORT):
                (self.folder / name).unlink(missing_ok=True)

    def note_end(self, error: BaseException) -> None:
        """Write why the run ended before it was finished.

        Args:
            error: what ended it.
        """
        was_stopped = isinstance(error, Stopped | KeyboardInterrupt)
        state = "stopped" if was_stopped else "failed"
        with contextlib.suppress(OSError):  # it may be a full disk that has ended it
            write_json(self.folder / ENDED, {"state": state, "reason": first_line(error)})

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: the epochs."""
        return [figures for figures in self.history if "epoch" in figures]

    def log(self, values: dict[str, Any], step: int) -> None:
        """Add a point to the curves over updates, as `Accelerator.log`.

        Args:
            values: values by name.
            step: number of updates made so far; recorded as `global_step`.
        """
        point = {"global_step": step} | values
        self.history.append(point)
        if self.wandb:
            self.wandb.put(point)

    def log_epoch(self, line: dict[str, Any]) -> None:
        """Add the metrics of an epoch, together with those in `pending`.

        Args:
            line: values by name; together with `pending` they must include `epoch` and
                `global_step`.

        Raises:
            UserError: on every process, if metrics.jsonl could not be written.
        """
        line = self.pending | line
        self.pending = {}
        self.history.append(line)
        with all_or_none():
            if self.accelerator.is_main_process:
                append_json(self.folder / METRICS, line)
        if self.wandb:
            self.wandb.put(line)

    def show_at_end(self, at_end: AtEnd) -> None:
        """Add to W&B what belongs to the end of a run.

        Args:
            at_end: called in W&B's thread, and only if W&B is used.
        """
        if self.wandb:
            self.wandb.put_at_end(at_end)
