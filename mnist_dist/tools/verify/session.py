"""What the checks of `verify` share: processes, data, and what was seen of each training."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mnist_dist.core import ExactAccelerator
from mnist_dist.digits.config import TrainConfig
from mnist_dist.task.data import DataSplits
from mnist_dist.task.settings import DataConfig
from mnist_dist.tools.verify.answer import Answer, Check
from mnist_dist.tools.verify.config import Config
from mnist_dist.tools.verify.supervisor import LOOK_THERE, NOT_ALL, Supervisor, is_lost_connection
from mnist_dist.tools.verify.watched.results import Observation
from mnist_dist.tools.verify.watched.training import Watch

FIRST_LINE = "initial weights"  # of those about a training, which then say themselves where it is


class Over(Exception):
    """The processes can no longer work with each other, as the last line says."""


@dataclass(frozen=True)
class Trial:
    """A small training.

    Attributes:
        settings: of the training.
        samples: what it trains on and is tested with.
    """

    settings: TrainConfig
    samples: DataSplits

    @property
    def updates_per_epoch(self) -> int:
        """Updates in an epoch."""
        return math.ceil(len(self.samples.train) / self.settings.batch_size)

    @property
    def updates(self) -> int:
        """Updates in all."""
        return self.settings.epochs * self.updates_per_epoch


@dataclass
class Session:
    """What the checks share; every process has one.

    Attributes:
        accelerator: the processes.
        config: the flags of `verify`.
        answer: the lines of the table.
        supervisor: by which processes gather values, and which ends them if one is lost.
        choice: which data were asked for.
        samples: the data; set as soon as all processes have read them.
        folder: where trials go; set as soon as all processes see it.
        observations: of all processes, by the training's title.
    """

    accelerator: ExactAccelerator
    config: Config
    answer: Answer
    supervisor: Supervisor
    choice: DataConfig
    samples: DataSplits = field(init=False)
    folder: Path = field(init=False)
    observations: dict[str, list[Observation]] = field(default_factory=dict)

    def on(self, rank: int) -> str:
        """Return a process by its number and its node, in words."""
        return f"process {rank} on {self.answer.processes[rank].node}"

    def on_this(self) -> str:
        """Return this process by its number and its node, in words."""
        return self.on(self.supervisor.rank)

    def watch(
        self,
        line: str,
        title: str,
        trial: Trial,
        advice: str = LOOK_THERE,
        **options: Any,
    ) -> Watch:
        """Watch a training on all processes.

        Args:
            line: the line of the table in which its trouble is to be told.
            title: its name, for people.
            trial: the training.
            advice: what to do if all wait for each other for ever.
            options: for `Watch`.

        Returns:
            How it was watched; what all processes saw is in `observations` then.

        Raises:
            Over: it failed, but not on all processes alike, and the table says so.
        """
        self.answer.say(f"....  {title}: train.py, {trial.updates} updates at most")
        self.supervisor.begin(line, title, advice)
        settings = trial.settings
        if settings.output_dir is None:
            settings = replace(settings, output_dir=self.folder / title.replace(" ", "-"))
        watch = Watch(settings, trial.samples, reads=self.supervisor.rank == 0, **options)

        def note(text: str) -> None:
            self.supervisor.note = f"{title}, {text}"
            if line == FIRST_LINE:
                self.supervisor.line = watch.observation.line

        watch.note = note
        with arithmetic_unchanged():
            seen = watch.train()
        self.supervisor.catch_signals()
        everywhere = self.supervisor.gather(asdict(seen), error=seen.error)
        self.observations[title] = [Observation(**found) for found in everywhere]
        self.end_if_not_all_alike(line, title)
        return watch

    def end_if_not_all_alike(self, line: str, title: str) -> None:
        """End the work if a training has failed on some processes, or otherwise on some.

        Raises:
            Over: it has, and the table says so.
        """
        observations = self.observations[title]
        errors = {rank: each.error for rank, each in enumerate(observations) if each.error}
        own = {rank: text for rank, text in errors.items() if not is_lost_connection(text)}
        are_alike = len(errors) in (0, self.supervisor.world)
        if are_alike and own == errors:
            return
        rank, error = first_item(own or errors)
        if line == FIRST_LINE:
            line = observations[rank].line
        self.answer.add(Check(line, False, f"{title}: {self.on(rank)}: {error}", NOT_ALL))
        raise Over


@contextmanager
def arithmetic_unchanged() -> Iterator[None]:
    """A block after which PyTorch calculates as before: virtual processes fix how it does."""
    threads = torch.get_num_threads()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_deterministic)


def first_item(errors: Mapping[int, str]) -> tuple[int, str]:
    """Return the error of the first process that has one."""
    rank = min(errors)
    return rank, errors[rank]
