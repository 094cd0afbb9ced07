"""The real `train.py`, watched: each of its updates is compared with the `Reference`'s.

It is watched through the hooks that the core and PyTorch offer, on every process, and trains as it
does without them.
"""

import io
import math
import signal
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

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
from mnist_dist.scripts import load_script
from mnist_dist.task.data import DataSplits
from mnist_dist.tools.verify import reference
from mnist_dist.tools.verify.reference import Reference
from mnist_dist.tools.verify.watched.differences import (
    TOLERANCE,
    GradientSizes,
    difference,
    norm_of,
)
from mnist_dist.tools.verify.watched.gradient import Wrong
from mnist_dist.tools.verify.watched.gradient import explain as explain_gradient
from mnist_dist.tools.verify.watched.networks import FirstWeights, averages_of, weights_of
from mnist_dist.tools.verify.watched.outcome import TRAINING, Outcome
from mnist_dist.tools.verify.watched.results import (
    DONE,
    KILLED,
    STOPPED,
    Observation,
)

LONGEST = 400  # letters of an error that are quoted


class Enough(Exception):
    """Raised out of a training that is to end here, as if it were killed."""


class Watch:
    """Runs `train.py` in the processes that there are, and compares.

    Args:
        settings: of the training; with an output folder.
        samples: what it trains on and is tested with.
        reference: at the point that the training is resumed from; None for one from the beginning.
        enough: updates after which it ends, as if killed.
        ask: the update, from 0, before which this process asks itself to stop.
        keep: the updates after which the reference is kept.
        reads: whether this process reads what the first one writes.
        tolerance: the largest difference that is rounding.

    Attributes:
        observation: what it saw.
        note: told how far it is.
        reference: where the training is.
        kept: the reference as it was after the updates in `keep`, by their numbers.
    """

    def __init__(
        self,
        settings: TrainConfig,
        samples: DataSplits,
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
        self.observation = Observation()
        self.outcome = Outcome(settings, samples, self.observation, reads=reads)
        self.first_weights = FirstWeights()
        self.note: Callable[[str], None] = lambda _: None
        self.kept: dict[int, Reference] = {}
        self.has_begun = False
        self.sizes = GradientSizes()
        self.gradient: dict[str, Tensor] = {}  # the reference's, of the update in progress
        self.used: dict[int, tuple[Tensor, float]] = {}  # gradient and rate by parameters' identity

    def train(self) -> Observation:
        """Run the training; never raises what a training may."""
        hooks = [
            register_hook("micro_batch", self.before_micro_batch),
            register_hook("update", self.after_update),
            register_hook("checkpoint", self.before_checkpoint),
            register_optimizer_step_pre_hook(self.before_step),
            register_module_parameter_registration_hook(self.first_weights.note),
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
        if not self.has_begun:
            self.note_first_weights()
        if self.observation.end in (DONE, STOPPED):
            self.outcome.read_back()
        if self.observation.end == DONE:
            self.outcome.compare(self.reference)
        return self.observation

    def note_first_weights(self) -> None:
        """Note of which dtype the first weights are, and their digest."""
        self.observation.dtypes, self.observation.digest = self.first_weights.describe()

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
        self.outcome.read_back()
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
            self.note_first_weights()
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
        for name, parameter in accelerator.unwrapped_models[0].named_parameters():
            if id(parameter) in self.used:
                used, rate = self.used[id(parameter)]
                gradient[name] = used.double()
                rates.append(rate)
        right_rate = reference.rate(self.settings, self.reference.updates, self.outcome.updates)
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
        """Compare the moving average, and note what is about to be written."""
        self.outcome.read_back()
        updates = accelerator.updates
        self.observation.line = "checkpoint"
        self.note(f"at a checkpoint after update {updates}")
        if self.settings.ema:
            found = difference(self.reference.averaged, averages_of(accelerator))
            self.compare("moving average", found, updates)
        self.outcome.before_checkpoint(accelerator, self.reference)


def rounding(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return how far a gradient is from what it should be, as a share of it."""
    gap = {name: expected[name] - tensor for name, tensor in found.items()}
    whole = norm_of(expected)
    share = norm_of(gap) / whole if whole else 0.0
    return share if math.isfinite(share) else math.inf


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
