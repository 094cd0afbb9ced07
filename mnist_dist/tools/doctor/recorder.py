"""What the hooks of one process write into: its record, and the update in the making."""

import functools
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mnist_dist.tools.doctor.record_files import write
from mnist_dist.tools.doctor.records import Epoch, Record
from mnist_dist.tools.doctor.updates import Update

FIRST = 3  # updates that are examined in any case
ITERATIONS = 16  # over loaders, the first update from each of which is examined, too
KEPT = 2000  # updates; of later ones only those that are examined


class Recorder:
    """Holds what the hooks of this process have seen.

    Args:
        folder: where records and signs of life go.
        every: one update in so many is examined; if it is 1, sketches are taken of all gradients.
        stop_after: updates after which the process is to be sent SIGTERM; 0: it is not.

    Attributes:
        record: what has been seen.
        now: the update in the making.
        batches_from: the iteration over a loader that gave the last batch.
        trainings: iterations from which updates were made.
        events: how many things the process has done, for its sign of life.
        call: the operation between processes in which it is, if any.
        waits: calls in progress, one within the other, in which the process may wait for others.
        free_since: when the last one ended.
        pid: of the process; the hooks are silent in those that it forks.
    """

    def __init__(self, folder: Path, every: int, stop_after: int = 0) -> None:
        self.folder = folder
        self.every = every
        self.stop_after = stop_after
        self.record = Record(
            rank=int(os.environ.get("RANK", 0)),
            pid=os.getpid(),
            asked=int(os.environ.get("WORLD_SIZE", 1)),
            node=platform.node(),
        )
        self.now = Update(number=1)
        self.batches_from: Epoch | None = None
        self.trainings = 0
        self.events = 0
        self.call = ""
        self.pid = os.getpid()
        self.begun = time.monotonic()
        self.waits = 0
        self.free_since = self.begun
        self.lock = threading.RLock()  # a signal may come while it is held

    @property
    def examines(self) -> bool:
        """Whether digests are taken of the update in the making.

        Where several optimizers make their steps in turn, each of them is looked at. What begins
        with another epoch, such as the training of more layers, is seen in its first update.
        """
        number = self.now.number
        optimizers = max(1, len(self.record.optimizers))
        is_regular = number <= FIRST * optimizers or number % self.every < optimizers
        return is_regular or self.is_first_of_epoch(optimizers)

    def is_first_of_epoch(self, optimizers: int) -> bool:
        """Return whether the update in the making is the first from an iteration over a loader.

        Args:
            optimizers: how many make their steps in turn.
        """
        epoch = self.batches_from
        is_early = self.trainings < ITERATIONS
        return is_early and epoch is not None and epoch.updates < optimizers

    @property
    def sketches(self) -> bool:
        """Whether a sketch of the gradient is taken of the update in the making."""
        return self.now.number == 1 or self.every == 1

    def begins_to_wait(self) -> None:
        """Note that from now on the process may wait for others."""
        if self.waits == 0:
            self.now.working += time.monotonic() - self.free_since
        self.waits += 1

    def has_waited(self) -> None:
        """Note that such a call has ended."""
        self.waits -= 1
        self.free_since = time.monotonic()

    def quietly(self, note: Callable[..., Any]) -> Callable[..., None]:
        """Let a hook neither disturb the program, nor work in a process that was forked.

        Args:
            note: the hook. What it returns is ignored.
        """

        @functools.wraps(note)
        def hook(*args: Any, **kwargs: Any) -> None:
            if os.getpid() != self.pid:
                return
            try:
                note(*args, **kwargs)
            except Exception as error:
                words = f"{note.__qualname__}: {type(error).__name__}: {error}"
                self.record.trouble = self.record.trouble or words

        return hook

    def finish_update(self) -> None:
        """Put the update in the making into the record, and begin the next one."""
        record = self.record
        update = self.now
        record.made = update.number
        if update.number <= KEPT or update.examined:
            record.updates.append(update)
        record.world = dist.get_world_size() if dist.is_initialized() else 1
        if self.batches_from is not None:
            self.batches_from.updates += 1
            self.trainings += self.batches_from.updates == 1
        self.now = Update(number=update.number + 1)
        self.events += 1

    def write(self) -> None:
        """Write the record."""
        if os.getpid() != self.pid:
            return
        with self.lock, suppress(OSError):  # the folder is removed when all has been judged
            self.record.seconds = time.monotonic() - self.begun
            write(self.folder / f"record-{self.record.rank}.json", self.record)

    def write_if_still(self) -> None:
        """Write the record from another thread than the program's, unless it changes just now."""
        try:
            self.write()
        except (RuntimeError, json.JSONDecodeError):
            return
