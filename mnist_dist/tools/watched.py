"""The real `train.py`, watched: each of its updates is compared with the `Reference`'s.

It is watched through the hooks that the core and PyTorch offer, on every process, and trains as it
does without them.
"""

import io
import math
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
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
from mnist_dist.run.weights import fingerprint
from mnist_dist.scripts import load_script
from mnist_dist.task.data import DataSet, Split
from mnist_dist.tools import reference
from mnist_dist.tools.reference import Reference
from mnist_dist.tools.watched_differences import (
    TOLERANCE,
    GradientSizes,
    difference,
    norm_of,
)
from mnist_dist.tools.watched_files import (
    KEEP,
    Figures,
    wrong_checkpoint,
    wrong_curve,
    wrong_figures,
    wrong_summary,
    wrong_weights,
)
from mnist_dist.tools.watched_gradient import Wrong
from mnist_dist.tools.watched_gradient import explain as explain_gradient
from mnist_dist.tools.watched_results import (
    DONE,
    KILLED,
    STOPPED,
    Observation,
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
        reference: as far as the training is that goes on; None for one from the beginning.
        enough: updates after which it ends, as if killed.
        ask: the update, from 0, before which this process asks itself to stop.
        keep: the updates after which the reference is kept.
        reads: whether this process reads what the first one writes.
        tolerance: the largest difference that is rounding.

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
        *,
        reference: Reference | None = None,
        enough: int | None = None,
        ask: int | None = None,
        keep: tuple[int, ...] = (),
        reads: bool = True,
        tolerance: float = TOLERANCE,
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
        self.reads = reads
        self.observation = Observation()
        self.note: Callable[[str], None] = lambda _: None
        self.figures: list[Figures] = []
        self.kept: dict[int, Reference] = {}
        self.per_epoch = math.ceil(len(samples.train) / settings.batch_size)
        self.updates = settings.epochs * self.per_epoch  # in all
        self.has_begun = False
        self.modules: dict[nn.Module, None] = {}  # those with parameters, in order
        self.sizes = GradientSizes()
        self.gradient: dict[str, Tensor] = {}  # the reference's, of the update in progress
        self.used: dict[int, tuple[Tensor, float]] = {}  # gradient and rate by parameters' identity
        self.written: Reference | None = None  # at a checkpoint that has not been read back
        self.history: Sequence[Mapping[str, Any]] = ()  # the figures that the training has noted
        self.facts: Figures = {}  # what summary.json should say of the whole training

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
            register_module_parameter_registration_hook(self.note_module),
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
        self.note_weights()
        if self.observation.end in (DONE, STOPPED):
            self.read_back()
        if self.observation.end == DONE:
            self.compare_results()
        return self.observation

    def compare(self, kind: str, size: float, update: int) -> None:
        """Note a difference at an update, from 1."""
        self.observation.note(kind, size, update, self.tolerance)

    def is_first_wrong(self, kind: str, size: float) -> bool:
        """Return whether a difference is the first of its kind that is no rounding."""
        before, _ = self.observation.difference_of(kind)
        return before <= self.tolerance and not size <= self.tolerance

    # --------------------------------------------------------------------------------- the hooks

    def before_micro_batch(self, accelerator: ExactAccelerator) -> None:
        """Compare what an update begins with, and note the samples that it is made of."""
        micro_batch = accelerator.micro_batch
        self.read_back()
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
        self.note_weights()
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
            self.kept[self.reference.updates] = self.reference.snapshot()

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
        size = difference(self.gradient, gradient, self.sizes.include(self.gradient))
        if self.is_first_wrong("gradient", size):
            self.observation.gradient_is = self.explain(accelerator, gradient)
        self.compare("gradient", size, accelerator.updates)
        if gradient.keys() != self.gradient.keys():
            return self.gradient, right_rate
        self.observation.roundings.append(rounding(self.gradient, gradient))
        furthest = max(rates, key=lambda rate: abs(rate - right_rate))
        size = abs(furthest - right_rate) / self.settings.lr
        if self.is_first_wrong("schedule", size):
            self.observation.rate = furthest
        self.compare("schedule", size, accelerator.updates)
        return gradient, rates[0]

    def explain(self, accelerator: ExactAccelerator, gradient: dict[str, Tensor]) -> str:
        """Return what a wrong gradient is instead, in words."""
        epoch, batch = self.observation.batches[-1]
        sharing = accelerator.sharing
        return explain_gradient(
            Wrong(
                reference=self.reference,
                expected=self.gradient,
                found=gradient,
                epoch=epoch,
                number=batch,
                shares=sharing.shares,
                world=sharing.world,
                pieces=self.settings.gradient_accumulation_steps,
            )
        )

    def take_over(self, weights: dict[str, Tensor]) -> None:
        """Let the reference go on from the training's weights, so that rounding does not add up."""
        self.reference.weights = {name: each.double().clone() for name, each in weights.items()}

    def before_checkpoint(self, accelerator: ExactAccelerator) -> None:
        """Compare the moving average, and note the figures of an epoch that ends here."""
        self.read_back()
        updates = accelerator.updates
        self.observation.line = "checkpoint"
        self.note(f"at a checkpoint after update {updates}")
        if self.settings.ema:
            found = difference(self.reference.averaged, averages_of(accelerator))
            self.compare("moving average", found, updates)
        self.history = history_of(accelerator)
        self.facts = {
            "parameters": sum(tensor.numel() for tensor in self.reference.weights.values()),
            "train_samples": len(self.samples.train),
            "num_processes": accelerator.num_processes,
        }
        position = accelerator._dataloaders[TRAINING].state_dict()
        is_at_end_of_epoch = position["batch"] == 0
        is_new = not self.figures or self.figures[-1]["epoch"] < position["epoch"]
        if is_at_end_of_epoch and is_new:  # there is another one at the run's end
            self.figures.append(self.figures_of(position["epoch"], updates))
        if self.reads:
            self.written = self.reference.snapshot()

    # -------------------------------------------------------------------------------- what is left

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

    def compare_results(self) -> None:
        """Compare what a finished training has recorded with what it should have."""
        updates = range(self.updates)
        rates = [reference.rate(self.settings, update, self.updates) for update in updates]
        every = self.settings.log_every
        steps = [step for step in range(1, self.updates + 1) if step % self.per_epoch % every == 0]
        found = {"results": wrong_curve(self.reference, self.history, rates, steps)}
        if self.reads and self.figures:
            found["evaluation"] = wrong_figures(self.figures, self.folder)
            found["results"] += wrong_summary(self.figures[-1] | self.facts, self.folder)
            found["results"] += wrong_weights(self.reference, self.folder)
        for line, wrong in found.items():
            self.observation.faults += [(line, *each) for each in wrong]

    def figures_of(self, epoch: int, updates: int) -> Figures:
        """Return what metrics.jsonl should say of an epoch, by its number from 1."""
        loss = self.reference.loss / len(self.samples.train)
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
                loss, correct = self.reference.evaluate(split.images.double(), split.labels)
                figures[f"{name}_loss"] = loss
                figures[f"{name}_correct"] = correct
                figures[f"{name}_total"] = len(split)
                figures[f"{name}_accuracy"] = correct / len(split)
        return figures

    # ---------------------------------------------------------------------------- the first weights

    def note_module(self, module: nn.Module, *_: object) -> None:
        """Remember a module that is being made, with a parameter."""
        if not self.has_begun:
            self.modules[module] = None

    def note_weights(self) -> None:
        """Note of which dtype the weights are, and their digest, before the first update."""
        if self.has_begun or self.observation.digest:
            return
        weights = {}
        for number, module in enumerate(self.modules):
            for name, parameter in module.named_parameters(recurse=False):
                weights[f"{number}.{name}"] = parameter.detach()
        self.modules.clear()
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
        self.observation.dtypes = " and ".join(sorted(dtypes))
        self.observation.digest = fingerprint(weights)


def rounding(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return how far a gradient is from what it should be, as a share of it."""
    gap = {name: expected[name] - tensor for name, tensor in found.items()}
    whole = norm_of(expected)
    share = norm_of(gap) / whole if whole else 0.0
    return share if math.isfinite(share) else math.inf


def history_of(accelerator: ExactAccelerator) -> Sequence[Mapping[str, Any]]:
    """Return the figures that a training has noted; nothing if it notes none."""
    for part in accelerator._custom_objects:
        history = getattr(part, "history", None)
        if history is not None:
            return history
    return ()


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
