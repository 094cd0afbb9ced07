"""The real `train.py`, watched: each of its updates is compared with the `Reference`'s.

It is watched through the hooks that the core and PyTorch offer, on every process, and trains as it
does without them.
"""

import copy
import io
import json
import math
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel

from mnist_dist.core import (
    ExactAccelerator,
    MicroBatch,
    Stopped,
    UserError,
    register_hook,
)
from mnist_dist.core.errors import explain
from mnist_dist.core.stopping import SIGNALS
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.run.command_line import parse
from mnist_dist.scripts import load_script
from mnist_dist.task import data
from mnist_dist.task.data import DataSet, Split
from mnist_dist.tools import reference
from mnist_dist.tools.reference import Reference
from mnist_dist.tools.watched_results import (
    KILLED,
    STOPPED,
    Figures,
    Observation,
    difference,
    norm_of,
)

TRAINING = 0  # the number of the loader of the training data, which train.py prepares first
LONGEST = 400  # letters of an error that are quoted


class Enough(Exception):
    """Raised out of a training that is to end here, as if it were killed."""


def cut(samples: DataSet, train: int, others: int) -> DataSet:
    """Return the first samples of each split.

    Args:
        samples: the whole data set.
        train: how many to train on.
        others: how many to test with, and of those held out.
    """
    return replace(
        samples,
        train=first(samples.train, train),
        test=first(samples.test, others),
        val=first(samples.val, others) if samples.val else None,
    )


def first(split: Split, count: int) -> Split:
    """Return the first samples of a split."""
    return Split(split.images[:count], split.labels[:count])


class Watch:
    """Runs `train.py` in the processes that there are, and compares.

    Args:
        settings: of the training; with an output folder.
        samples: what it trains on and is tested with.
        tolerance: the largest difference that is rounding.
        reference: as far as the training is that goes on; None for one from the beginning.
        enough: updates after which it ends, as if killed.
        ask: the update, from 0, before which this process asks itself to stop.
        keep: the updates after which the reference is kept.

    Attributes:
        observation: what it saw.
        note: told how far it is.
        figures: what metrics.jsonl should say of each epoch.
        reference: where the training is.
        kept: the reference as it was after the updates in `keep`, by their numbers.
    """

    def __init__(
        self,
        settings: TrainConfig,
        samples: DataSet,
        tolerance: float,
        *,
        reference: Reference | None = None,
        enough: int | None = None,
        ask: int | None = None,
        keep: tuple[int, ...] = (),
    ) -> None:
        self.settings = settings
        self.samples = samples
        self.tolerance = tolerance
        self.is_resumed = reference is not None
        if reference is None:
            images = samples.train.images.double()
            reference = Reference(settings, images, samples.train.labels)
        self.reference = reference
        self.enough = enough
        self.ask = ask
        self.keep = keep
        self.observation = Observation()
        self.note: Callable[[str], None] = lambda _: None
        self.figures: list[Figures] = []
        self.kept: dict[int, Reference] = {}
        per_epoch = math.ceil(len(samples.train) / settings.batch_size)
        self.updates = settings.epochs * per_epoch  # in all
        self.has_begun = False
        self.gradient: dict[str, Tensor] = {}  # the reference's, of the update in progress
        self.used: dict[int, tuple[Tensor, float]] = {}  # gradient and rate by parameters' identity

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.settings.output_dir or Path()

    def train(self) -> Observation:
        """Run the training; never raises what a training may."""
        hooks = [
            register_hook("micro_batch", self.before_micro_batch),
            register_hook("update", self.after_update),
            register_hook("checkpoint", self.before_checkpoint),
            register_optimizer_step_pre_hook(self.before_step),
        ]
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                load_script("train").main(self.settings, self.samples)
        except Enough:
            self.observation.end = KILLED
        except Stopped:
            self.observation.end = STOPPED
        except Exception as error:
            self.observation.end = in_words(error)
        finally:
            for hook in hooks:
                hook.remove()
        return self.observation

    def compare(self, kind: str, size: float, update: int) -> None:
        """Note a difference at an update, from 1."""
        self.observation.note(kind, size, update, self.tolerance)

    # --------------------------------------------------------------------------------- the hooks

    def before_micro_batch(self, accelerator: ExactAccelerator) -> None:
        """Compare what an update begins with, and note the samples that it is made of."""
        micro_batch = accelerator.micro_batch
        if micro_batch.loader != TRAINING:
            self.observation.line = "evaluation"
            return
        if micro_batch.opens_batch:
            self.before_update(accelerator, micro_batch)
        self.observation.samples[-1] += micro_batch.index.tolist()

    def before_update(self, accelerator: ExactAccelerator, micro_batch: MicroBatch) -> None:
        """Compare the weights, and compute the reference's gradient."""
        observation = self.observation
        updates = accelerator.updates
        observation.updates = updates
        if updates == self.enough:
            raise Enough
        if updates == self.ask:
            ask_to_stop()
        if self.has_begun:
            observation.line = "gradient"
        self.note(f"in update {updates + 1}")
        observation.samples.append([])
        observation.batches.append((micro_batch.epoch, micro_batch.batch))
        kind = "update"
        if not self.has_begun:
            kind = "resumed weights" if self.is_resumed else "initial weights"
        weights = weights_of(accelerator)
        self.compare(kind, difference(self.reference.weights, weights), updates + 1)
        self.take_over(weights)
        self.has_begun = True
        observation.line = "gradient"
        self.gradient = self.reference.gradient(micro_batch.epoch, micro_batch.batch)
        self.used.clear()

    def before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Keep what the weights are about to be changed by, and at which rate."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad.detach().clone()
                    self.used[id(parameter)] = gradient, group["lr"]

    def after_update(self, accelerator: ExactAccelerator) -> None:
        """Compare what an update was made of, and what it made."""
        observation = self.observation
        observation.updates = accelerator.updates
        gradient, rate = self.compare_gradient(accelerator)
        self.reference.update(gradient, rate)
        weights = weights_of(accelerator)
        found = difference(self.reference.weights, weights)
        self.compare("update", found, accelerator.updates)
        self.take_over(weights)
        self.reference.follow()
        is_last_of_epoch = accelerator.gradient_state.end_of_dataloader
        observation.line = "evaluation" if is_last_of_epoch else "checkpoint"
        if self.reference.updates in self.keep:
            self.kept[self.reference.updates] = copy.deepcopy(self.reference)

    def compare_gradient(self, accelerator: ExactAccelerator) -> tuple[dict[str, Tensor], float]:
        """Compare gradient and rate of an update that was made.

        Returns:
            Those from which the reference is to make it.
        """
        gradient = {}
        rates = []
        for name, parameter in accelerator.bare_models[0].named_parameters():
            if id(parameter) in self.used:
                used, rate = self.used[id(parameter)]
                gradient[name] = used.double()
                rates.append(rate)
        right_rate = reference.rate(self.settings, self.reference.updates, self.updates)
        self.compare("gradient", difference(self.gradient, gradient), accelerator.updates)
        if gradient.keys() != self.gradient.keys():
            return self.gradient, right_rate
        self.measure_rounding(gradient)
        furthest = max(abs(rate - right_rate) for rate in rates)
        self.compare("schedule", furthest / self.settings.lr, accelerator.updates)
        return gradient, rates[0]

    def measure_rounding(self, gradient: dict[str, Tensor]) -> None:
        """Note how far a gradient is from the reference's, as a share of it."""
        apart = {name: self.gradient[name] - tensor for name, tensor in gradient.items()}
        whole = norm_of(self.gradient)
        share = norm_of(apart) / whole if whole else 0.0
        if not math.isfinite(share):
            share = math.inf
        self.observation.rounding = max(self.observation.rounding, share)

    def take_over(self, weights: dict[str, Tensor]) -> None:
        """Let the reference go on from the training's weights, so that rounding does not add up."""
        self.reference.weights = {name: each.double().clone() for name, each in weights.items()}

    def before_checkpoint(self, accelerator: ExactAccelerator) -> None:
        """Compare the moving average, and note the figures of an epoch that ends here."""
        updates = accelerator.updates
        self.observation.line = "checkpoint"
        self.note(f"at a checkpoint after update {updates}")
        if self.settings.ema:
            found = difference(self.reference.averaged, averages_of(accelerator))
            self.compare("moving average", found, updates)
        position = accelerator._dataloaders[TRAINING].state_dict()
        is_at_end_of_epoch = position["batch"] == 0
        is_new = not self.figures or self.figures[-1]["epoch"] < position["epoch"]
        if is_at_end_of_epoch and is_new:  # there is another one at the run's end
            self.figures.append(self.figures_of(position["epoch"], updates))

    def figures_of(self, epoch: int, updates: int) -> Figures:
        """Return what metrics.jsonl should say of an epoch, by its number from 1."""
        loss = self.reference.loss / len(self.samples.train)
        figures = {
            "epoch": epoch,
            "global_step": updates,
            "train_loss": loss,
        }
        splits = {
            "test": self.samples.test,
            "val": self.samples.val,
        }
        for name, split in splits.items():
            if split:
                loss, correct = self.reference.evaluate(split.images.double(), split.labels)
                figures[f"{name}_loss"] = loss
                figures[f"{name}_correct"] = correct
                figures[f"{name}_total"] = len(split)
        return figures


def weights_of(accelerator: ExactAccelerator) -> dict[str, Tensor]:
    """Return the weights in training, by name."""
    network = accelerator.bare_models[0]
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def averages_of(accelerator: ExactAccelerator) -> dict[str, Tensor]:
    """Return the moving average of the weights, by name; nothing if there is none."""
    found: dict[str, Tensor] = {}
    for part in accelerator._custom_objects:
        if isinstance(part, AveragedModel):
            found = dict(part.module.named_parameters())
    return found


def in_words(error: Exception) -> str:
    """Return what went wrong, on one line; if nobody foresaw it, with its place."""
    words = explain(error).split()
    text = f"{type(error).__name__}: {' '.join(words)}"[:LONGEST]
    if isinstance(error, UserError):
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    file = Path(last.filename).name
    return f"{text} ({file}:{last.lineno})"


def ask_to_stop() -> None:
    """Ask this process to stop, as a user or a cluster does."""
    if hasattr(signal, "SIGUSR1"):
        signal.raise_signal(signal.SIGUSR1)
        return
    # On Windows, where any other signal would reach the supervisor, too.
    answer = signal.getsignal(SIGNALS[-1])
    assert callable(answer)
    answer(SIGNALS[-1], None)


def alone() -> None:
    """Train on one process of its own, `python -c "...alone()" JSON`.

    The JSON has `flags`, those of train.py, `samples`, how many to train on, and `others`, how many
    to test with.
    """
    asked = json.loads(sys.argv[1])

    def train() -> None:
        config = parse(TrainConfig, asked["flags"], "train.py")
        accelerator = launch.start(config.cpu, "no", torch.float64)
        samples = data.obtain(
            accelerator,
            config.dataset,
            config.data_dir,
            config.val_size,
            config.seed,
            torch.float64,
        )
        load_script("train").main(config, cut(samples, asked["samples"], asked["others"]))

    launch.run(train, "train.py")
