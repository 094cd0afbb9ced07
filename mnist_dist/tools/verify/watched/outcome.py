"""What a watched training leaves: its figures, its trained weights and its checkpoints."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.core import ExactAccelerator
from mnist_dist.digits.config import TrainConfig
from mnist_dist.task.data import DataSplits
from mnist_dist.tools.verify import reference
from mnist_dist.tools.verify.reference import Reference
from mnist_dist.tools.verify.watched.files import (
    KEEP,
    Figures,
    wrong_checkpoint,
    wrong_curve,
    wrong_figures,
    wrong_summary,
    wrong_weights,
)
from mnist_dist.tools.verify.watched.networks import history_of
from mnist_dist.tools.verify.watched.results import Observation

TRAINING = 0  # the number of the loader of the training data, which train.py prepares first


class Outcome:
    """Compares what a training leaves with what it should leave.

    Args:
        settings: of the training.
        samples: what it trains on and is tested with.
        observation: where faults are noted.
        reads: whether this process reads what the first one writes.
    """

    def __init__(
        self,
        settings: TrainConfig,
        samples: DataSplits,
        observation: Observation,
        *,
        reads: bool,
    ) -> None:
        self.settings = settings
        self.samples = samples
        self.observation = observation
        self.reads = reads
        self.per_epoch = math.ceil(len(samples.train) / settings.batch_size)
        self.updates = settings.epochs * self.per_epoch  # in all
        self.folder = settings.output_dir or Path()
        self.figures: list[Figures] = []  # what metrics.jsonl should say of each epoch
        self.facts: Figures = {}  # what summary.json should say of the whole training
        self.history: Sequence[Mapping[str, Any]] = ()  # the figures that the training has noted
        self.written: Reference | None = None  # at a checkpoint that has not been read back

    def before_checkpoint(self, accelerator: ExactAccelerator, one: Reference) -> None:
        """Note what is to be in a checkpoint, and the figures of an epoch that ends with it.

        Args:
            accelerator: of the training.
            one: the reference, as far as the training is.
        """
        self.history = history_of(accelerator)
        self.facts = {
            "parameters": sum(tensor.numel() for tensor in one.weights.values()),
            "train_samples": len(self.samples.train),
            "num_processes": accelerator.num_processes,
        }
        position = accelerator._dataloaders[TRAINING].state_dict()
        is_at_end_of_epoch = position["batch"] == 0
        is_new = not self.figures or self.figures[-1]["epoch"] < position["epoch"]
        if is_at_end_of_epoch and is_new:  # there is another one at the run's end
            self.figures.append(self.figures_of(one, position["epoch"], accelerator.updates))
        if self.reads:
            self.written = one.snapshot()

    def read_back(self) -> None:
        """Compare the last checkpoint with what the training was when it was written."""
        expected, self.written = self.written, None
        if expected is None:
            return
        wrong = wrong_checkpoint(expected, self.folder, self.per_epoch)
        update = expected.updates
        if wrong:
            text = f"that of update {update}: {'; '.join(wrong)}"
            self.observation.faults.append(("checkpoint", update, text, KEEP))

    def compare(self, one: Reference) -> None:
        """Compare what a finished training has recorded with the reference at its end."""
        updates = range(self.updates)
        rates = [reference.rate(self.settings, update, self.updates) for update in updates]
        every = self.settings.log_every
        steps = [step for step in range(1, self.updates + 1) if step % self.per_epoch % every == 0]
        found = {"results": wrong_curve(one, self.history, rates, steps)}
        if self.reads and self.figures:
            found["evaluation"] = wrong_figures(self.figures, self.folder)
            found["results"] += wrong_summary(self.figures[-1] | self.facts, self.folder)
            found["results"] += wrong_weights(one, self.folder)
        for line, wrong in found.items():
            self.observation.faults += [(line, *each) for each in wrong]

    def figures_of(self, one: Reference, epoch: int, updates: int) -> Figures:
        """Return what metrics.jsonl should say of an epoch, by its number from 1."""
        loss = one.loss / len(self.samples.train)
        figures = {
            "epoch": epoch,
            "global_step": updates,
            "train_loss": loss,
            "learning_rate": reference.rate(self.settings, updates - 1, self.updates),
        }
        splits = {
            "test": self.samples.test,
            "val": self.samples.val,
        }
        for name, split in splits.items():
            if split:
                loss, correct = one.evaluate(split.images.double(), split.labels)
                figures[f"{name}_loss"] = loss
                figures[f"{name}_correct"] = correct
                figures[f"{name}_total"] = len(split)
                figures[f"{name}_accuracy"] = correct / len(split)
        return figures
