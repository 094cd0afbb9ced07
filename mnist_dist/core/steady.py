"""Checks that a loop changes nothing once per micro-batch that it should change once per update.

With virtual processes, or `micro_batches`, the body of a loop runs once for each share or piece of a
batch, and the number of these on a process depends on the number of processes. So does the trained
model if the body changes weights or learning rates itself each time.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .errors import SingleProcessError
from .output import warn

ONCE = "do it once for each update, under `if accelerator.sync_gradients:`"


class SteadyUpdate:
    """Compares weights and learning rates between the micro-batches of an update."""

    def __init__(self) -> None:
        self.changes_of_weights = 0
        self.rates: list[Any] = []
        self.has_warned_of_name = False

    def begin_micro_batch(
        self,
        parameters: Iterable[torch.nn.Parameter],
        optimizers: Iterable[torch.optim.Optimizer],
        *,
        in_progress: bool,
    ) -> None:
        """Before a micro-batch.

        Args:
            parameters: all that are trained.
            optimizers: that train them.
            in_progress: whether another micro-batch of the same update has come before.

        Raises:
            SingleProcessError: something was changed since that one.
        """
        changes_of_weights = sum(parameter._version for parameter in parameters)
        rates = [group.get("lr") for each in optimizers for group in each.param_groups]
        if in_progress:
            self.refuse_changes(changes_of_weights, rates)
        self.changes_of_weights = changes_of_weights
        self.rates = rates

    def refuse_changes(self, changes_of_weights: int, rates: list[Any]) -> None:
        """Raise if weights or learning rates are not those of the micro-batch before.

        Raises:
            SingleProcessError: says what was changed. A process with one share does not see it.
        """
        if changes_of_weights != self.changes_of_weights:
            raise SingleProcessError(
                "the loop changes weights between two micro-batches of one update, whose number depends on the "
                f"number of processes: {ONCE}"
            )
        if rates != self.rates:
            raise SingleProcessError(
                "the loop changes a learning rate between two micro-batches of one update, whose number depends on "
                f"the number of processes: pass the scheduler to accelerator.prepare, or {ONCE}"
            )

    def warn_of_counted_name(
        self, folder: str | os.PathLike[str], given: int, *, updates: int
    ) -> None:
        """Say once that a checkpoint is named after a number of micro-batches.

        A loop that computes from such a name where it resumes would go on in a later epoch, or end
        at once.

        Args:
            folder: the checkpoint's.
            given: micro-batches that the loader of the training has given so far.
            updates: made so far.
        """
        number = re.search(r"(\d+)$", Path(folder).name)
        is_counted = number is not None and int(number[1]) == given != updates
        if is_counted and not self.has_warned_of_name:
            self.has_warned_of_name = True
            warn(
                f"the checkpoint {Path(folder).name} is named after the micro-batches so far, whose number depends "
                "on the number of processes: name it after accelerator.updates, and let a resumed loop begin at the "
                "loader's next_epoch, not at one computed from the name"
            )


def warn_of_counted_batches(given: int, length: int, updates: int) -> None:
    """Say that a loop took as many micro-batches as there are global batches, in one or several epochs.

    Args:
        given: the micro-batches that it took.
        length: the global batches in an epoch.
        updates: made so far.
    """
    times = "" if given == length else f"{given // length} times "
    warn(
        f"a loop was left after {given} micro-batches, {times}as many as len(loader), which counts global batches, "
        f"and {updates} updates: to train on all of them, iterate over the loader itself, and count by "
        "accelerator.updates"
    )


def warn_of_a_resumed_loop_without_training(batch: int) -> None:
    """Say that a loop went through the rest of a resumed epoch, and trained on none of it.

    Args:
        batch: the one with which the rest begins.
    """
    warn(
        f"a resumed loop has gone through the rest of its epoch, from batch {batch} on, without accelerator.backward: "
        "skip nothing after load_state, which has already set the loader's position"
    )


def warn_of_discarded_micro_batches() -> None:
    """Say that a loop was left within an update."""
    warn(
        "a loop was left within an update, and the gradients of its micro-batches so far are discarded: with several "
        "micro-batches a batch, leave the loop only if accelerator.sync_gradients is true"
    )
