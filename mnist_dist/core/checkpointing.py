"""The checkpoints of a run: written at intervals or when the run is asked to stop, and resumed from."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from accelerate.utils import broadcast_object_list

from . import files, state
from .agreement import all_or_none, announce
from .errors import STOPPED, Stopped, UserError, explain
from .hooks import call_hooks
from .output import warn
from .stopping import StopRequest

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator

FOLDER = "checkpoints"
NAMES = f"step-{10 * '[0-9]'}"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
KEPT = 2  # checkpoints of a run, the newest
READABLE = 40  # longer values are taken for digests, and shortened in messages
SHOWN = 12  # characters shown of a digest


class Checkpoints:
    """The checkpoints of a run, in a folder of its own; the newest two are kept.

    Create one on every process, and make the same calls on all of them. A checkpoint holds
    everything that the accelerator prepared or that `register_for_checkpointing` registered.

    Args:
        accelerator: of the training.
        run: the run's folder.
        fixed: plain values that must not change when the run is resumed, keyed by the name to use
            in error messages.
        every: updates between two checkpoints within an epoch; 0: none within an epoch.
    """

    def __init__(
        self,
        accelerator: "ExactAccelerator",
        run: Path,
        fixed: dict[str, Any] | None = None,
        every: int = 0,
    ) -> None:
        self.accelerator = accelerator
        self.run = run
        self.fixed = fixed or {}
        self.every = every
        self.request = StopRequest()
        self.stopping = False
        self.saved: int | None = None  # updates of the checkpoint that was written or read last

    def after_update(self) -> None:
        """Save if a checkpoint is due or a process was asked to stop; call it at the end of the loop body.

        Between the micro-batches of an update this does nothing. It does not save after the last
        update of an epoch either: call `save` there, ideally before a long evaluation.

        Raises:
            Stopped: on every process, if one was asked to stop.
        """
        if not self.accelerator.sync_gradients:
            return
        self.stopping = self.request.agreed() or self.stopping
        due = self.every > 0 and self.accelerator.updates % self.every == 0
        epoch_is_complete = self.accelerator.gradient_state.end_of_dataloader
        if (due or self.stopping) and not epoch_is_complete:
            self.save()

    def stop_if_asked(self) -> None:
        """Exit if a process was asked to stop; call it between the batches of an evaluation.

        Nothing is saved, so a resumed run repeats everything since the last `save`. This method
        therefore does nothing if there were updates since, or if that checkpoint was not written.

        Raises:
            Stopped: on every process, if one was asked to stop.
        """
        self.stopping = self.request.agreed(ask_each_time=True) or self.stopping
        if self.stopping and self.saved == self.accelerator.updates:
            self.stop()

    def save(self, last: bool = False) -> None:
        """Write a checkpoint.

        Args:
            last: whether all updates have been made. A request to stop is then ignored, and a
                checkpoint that cannot be written causes only a warning, because the trained weights
                can still be saved.

        Raises:
            Stopped: on every process, if one was asked to stop.
            UserError: on every process, if the checkpoint cannot be written.
        """
        # Check here as well, because `after_update` may never have been called.
        self.stopping = self.request.agreed() or self.stopping
        call_hooks("checkpoint", self.accelerator)
        payload = {"fixed": self.fixed, "state": state.collect(self.accelerator)}
        updates = self.accelerator.updates
        written = False
        with all_or_none():
            if self.accelerator.is_main_process:
                written = self.write(payload, updates, last=last)
        (written,) = broadcast_object_list([written])
        if written:
            self.saved = updates
            self.accelerator.last_checkpoint = folder_of_checkpoint(self.run, updates)
        if self.stopping and not last:
            self.stop()

    def stop(self) -> NoReturn:
        """Exit, because a process was asked to stop.

        Raises:
            Stopped: always.
        """
        raise Stopped(
            f"stopped on request at update {self.accelerator.updates}, saved in {self.run / FOLDER}",
            STOPPED,
            self.run,
        )

    def write(self, payload: dict[str, Any], updates: int, *, last: bool) -> bool:
        """Write a checkpoint, on the process that writes.

        Returns:
            Whether it was written.

        Raises:
            OSError: it cannot be written. For the run's last checkpoint this is only a warning,
                unless the disk is full, because then the trained weights cannot be written either.
        """
        try:
            write_checkpoint(self.run, payload, updates)
            return True
        except OSError as error:
            if not last or error.errno in NO_SPACE:
                raise
            warn(f"the run's last checkpoint is missing ({explain(error)})")
            return False

    def resume(self) -> bool:
        """Restore the newest intact checkpoint.

        Returns:
            Whether there was one; if not, nothing has been changed.

        Raises:
            UserError: on every process, if all checkpoints are damaged, or the newest one is of
                another training.
        """
        payload: dict[str, Any] | None = None
        with all_or_none():
            if self.accelerator.is_main_process:
                payload, warnings = newest_checkpoint(self.run)
                for warning in warnings:
                    warn(warning)
                if warnings and payload is None:
                    raise UserError(
                        f"{self.run} holds a run but no intact checkpoint: choose another, or delete it"
                    )
        (payload,) = broadcast_object_list([payload])
        if payload is None:
            announce(f"no checkpoint in {self.run / FOLDER}: starting from scratch")
            return False
        with all_or_none():
            self.restore(payload)
        self.saved = self.accelerator.updates
        self.accelerator.last_checkpoint = folder_of_checkpoint(self.run, self.saved)
        return True

    def restore(self, payload: dict[str, Any]) -> None:
        """Put the training back to where a checkpoint was taken.

        Raises:
            UserError: it is of another training.
        """
        try:
            self.refuse_other_values(payload["fixed"])
            state.restore(self.accelerator, payload["state"])
        except state.WRONG_STATE as error:
            what = f"the newest checkpoint in {self.run / FOLDER} holds another training ({type(error).__name__})"
            raise UserError(f"{what}: delete it, or start another run") from error

    def refuse_other_values(self, then: dict[str, Any]) -> None:
        """Raise if a fixed value differs from the one the run was started with.

        Raises:
            UserError: names one value that differs, preferring a readable one to a digest.
        """
        names = {**then, **self.fixed}
        different = [name for name in names if then.get(name) != self.fixed.get(name)]
        if not different:
            return
        readable = [name for name in different if len(str(self.fixed.get(name))) <= READABLE]
        name = [*readable, *different][0]
        # One side may not have the value at all: another version of the program may lack a flag.
        now = shortened(self.fixed[name]) if name in self.fixed else "not set here"
        before = f"with {shortened(then[name])}" if name in then else "without it"
        raise UserError(
            f"{name} is {now}, but the run in {self.run} was trained {before}: resume with that, or "
            "start another run"
        )


def shortened(value: Any) -> str:
    """A value as shown in messages; a digest is cut to its first few characters."""
    text = str(value)
    return text if len(text) <= READABLE else f"{text[:SHOWN]}..."


def folder_of_checkpoint(run: Path, updates: int) -> Path:
    """The folder of the checkpoint taken after a given number of updates."""
    return run / FOLDER / f"step-{updates:010d}"


def write_checkpoint(run: Path, payload: dict[str, Any], updates: int) -> Path:
    """Write a checkpoint, and remove all but the newest ones.

    Returns:
        Its folder.

    Raises:
        OSError: it cannot be written; earlier checkpoints are unchanged.
    """
    folder = run / FOLDER
    place = folder_of_checkpoint(run, updates)
    files.write_folder(place, payload, {"updates": updates})
    # Newer ones must be damaged, or the run would have resumed from them; a leading dot marks a
    # write that never finished.
    newer = [other for other in folder.glob(NAMES) if other > place]
    unfinished = list(folder.glob(f".{NAMES}*"))
    older = sorted(other for other in folder.glob(NAMES) if other <= place)
    files.remove([*newer, *unfinished, *older[:-KEPT]])
    return place


def newest_checkpoint(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint of a run that is intact, or None, and a warning for each damaged one passed over."""
    warnings: list[str] = []
    for place in sorted((run / FOLDER).glob(NAMES), reverse=True):
        try:
            return files.read_folder(place), warnings
        except UserError as error:
            warnings.append(f"{error}; looking for an older one")
    return None, warnings
