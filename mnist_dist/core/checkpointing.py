"""The checkpoints of a run: written when it is time or somebody asks the run to stop, and gone on from."""

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
READABLE = 40  # characters of a value that is no digest
SHOWN = 12  # characters of a digest


class Checkpoints:
    """The checkpoints of a run, in a folder of its own; the newest two are kept.

    Create one on every process, and make the same calls on all of them. What was prepared by the
    accelerator or registered by `register_for_checkpointing` is in a checkpoint.

    Args:
        accelerator: of the training.
        run: the run's folder.
        fixed: plain values that may not differ when the run goes on, by the name that messages give
            them.
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
        """At the end of the loop's body: save if it is time, or a process was asked to stop.

        Between the micro-batches of an update there is nothing to do. After an epoch's last update
        `save` is to be called, best before its evaluation, which may take long.

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
        """Between the batches of an evaluation: leave if a process was asked to stop.

        Nothing is saved: a run that goes on repeats what has been done since the last `save`. So
        this does nothing if there were updates since, or that checkpoint could not be written.

        Raises:
            Stopped: on every process, if one was asked to stop.
        """
        self.stopping = self.request.agreed(ask_each_time=True) or self.stopping
        if self.stopping and self.saved == self.accelerator.updates:
            self.stop()

    def save(self, last: bool = False) -> None:
        """Write a checkpoint.

        Args:
            last: all updates are made, so a request to stop is no reason to leave at once. Nor is a
                checkpoint that cannot be written, of which there is a warning: the trained weights
                can be written yet.

        Raises:
            Stopped: on every process, if one was asked to stop.
            UserError: on every process, if the checkpoint cannot be written.
        """
        # Ask here, too, for nobody may have asked after the updates.
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
            self.accelerator.last_checkpoint = place_of(self.run, updates)
        if self.stopping and not last:
            self.stop()

    def stop(self) -> NoReturn:
        """Leave, for a process was asked to stop.

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
            OSError: it cannot be written. Of the run's last one there is only a warning, unless the
                disk is full, and the trained weights cannot be written either.
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
        """Go back to where the newest intact checkpoint was taken.

        Returns:
            Whether there is one; False also means that nothing was changed.

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
        self.accelerator.last_checkpoint = place_of(self.run, self.saved)
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
        """Refuse to go on with other values than the run was begun with.

        Raises:
            UserError: names one that differs, if possible one that says something to a reader,
                unlike a digest.
        """
        names = {**then, **self.fixed}
        different = [name for name in names if then.get(name) != self.fixed.get(name)]
        if not different:
            return
        readable = [name for name in different if len(str(self.fixed.get(name))) <= READABLE]
        name = [*readable, *different][0]
        before = shortened(then.get(name))
        now = shortened(self.fixed.get(name))
        raise UserError(
            f"{name} is {now}, but the run in {self.run} was trained with {before}: resume with that, or "
            "start another run"
        )


def shortened(value: Any) -> str:
    """A value in a message: of a digest its first characters, by which two can be told apart."""
    text = str(value)
    return text if len(text) <= READABLE else f"{text[:SHOWN]}..."


def place_of(run: Path, updates: int) -> Path:
    """The folder of the checkpoint that was taken after so many updates."""
    return run / FOLDER / f"step-{updates:010d}"


def write_checkpoint(run: Path, payload: dict[str, Any], updates: int) -> Path:
    """Write a checkpoint, and remove all but the newest ones.

    Returns:
        Its folder.

    Raises:
        OSError: it cannot be written; those of before are as they were.
    """
    folder = run / FOLDER
    place = place_of(run, updates)
    files.write_folder(place, payload, {"updates": updates})
    # Newer ones are damaged, or the run would have gone on from them; what begins with a dot was
    # never finished.
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
