"""Watches the losses from which gradients are computed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_dist.tools.doctor.digests import digest
from mnist_dist.tools.doctor.patches import call_around, call_before
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Epoch
from mnist_dist.tools.doctor.watch_gradients import GradientWatch
from mnist_dist.tools.doctor.watch_models import ModelWatch

MEAN, SUM = 1, 2  # torch's numbers for these reductions
CLOSE = 1e-3  # of a count of which only the reciprocal is known


class LossWatch:
    """Watches every backward pass.

    Args:
        recorder: of this process.
        models: are told that a backward pass is in progress.
        gradients: are told its line.
    """

    def __init__(self, recorder: Recorder, models: ModelWatch, gradients: GradientWatch) -> None:
        self.recorder = recorder
        self.models = models
        self.gradients = gradients

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        call_around(torch.Tensor, "backward", quietly(self.begin), quietly(self.end))
        for name in ("cross_entropy", "nll_loss"):
            call_before(F, name, quietly(self.classes))
        call_before(F, "binary_cross_entropy_with_logits", quietly(self.positive_class))

    def begin(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Note a backward pass that begins."""
        del args, kwargs
        self.models.is_in_backward = True
        now = self.recorder.now
        now.backward += 1
        now.backward_place = place()
        self.gradients.passed(now.backward_place)
        self.recorder.events += 1
        if self.recorder.examines:
            now.divisor = divisor_of(loss)
            now.batch_count = count_of(loss)
        wrapper = self.models.last_wrapper
        if wrapper is not None and not wrapper.require_backward_grad_sync:
            now.last_synced = False  # Lightning decides on it behind the forward pass
        now.in_eval += self.models.is_in_eval
        self.note_batch()
        is_over_nothing = (
            self.models.last_rows == 0
        )  # such a mean is not a number, and harms nothing
        is_cheap = loss.device.type == "cpu" or self.recorder.examines
        if is_cheap and not is_over_nothing:
            is_finite = bool(torch.isfinite(loss.detach()).all())
            now.finite_loss = is_finite and now.finite_loss is not False
        self.recorder.begins_to_wait()

    def classes(self, *args: Any, weight: Tensor | None = None, **kwargs: Any) -> None:
        """Note the weights of the classes in a loss, its third argument."""
        del kwargs
        self.note_class_weights(args[2] if len(args) > 2 else weight)

    def positive_class(self, *args: Any, pos_weight: Tensor | None = None, **kwargs: Any) -> None:
        """Note the weight of the positive class in a loss."""
        del args, kwargs
        self.note_class_weights(pos_weight)

    def note_class_weights(self, weights: Tensor | None) -> None:
        """Note the weights of the classes in the first loss of an update."""
        now = self.recorder.now
        is_first = self.recorder.examines and not now.class_weights
        if weights is None or not is_first or not torch.is_grad_enabled():
            return
        now.class_weights = digest([weights])
        now.class_weights_place = place()

    def note_batch(self) -> None:
        """Note from which batch of which loader a gradient is computed."""
        epoch = self.recorder.batches_from
        if epoch is None:
            return
        epoch.position = position_in(epoch)
        self.recorder.now.batches.append([epoch.number, epoch.position - 1])

    def end(self) -> None:
        """Note that the backward pass has ended."""
        self.models.is_in_backward = False
        self.recorder.has_waited()


def position_in(epoch: Epoch) -> int:
    """Return how many batches of an iteration the program has been handed, the present one too.

    Accelerate fetches a batch ahead, but for the last one, when there is none left to fetch.
    """
    if not epoch.is_ahead:
        return epoch.given
    if epoch.given < epoch.length or epoch.length < 0:
        return max(1, epoch.given - 1)
    return min(epoch.length, max(epoch.position + 1, epoch.length - 1))


def divisor_of(loss: Tensor) -> float:
    """Return the number by which a loss was divided as the last thing; 1 if none can be seen."""
    operation = loss.grad_fn
    if operation is None or operation.name() != "DivBackward0":
        return 1.0
    divisor = getattr(operation, "_saved_other", None)
    if isinstance(divisor, Tensor) and divisor.numel() == 1:
        return float(divisor)
    return 1.0


def count_of(loss: Tensor) -> int:
    """Return the count, such as of tokens, over which a loss is a mean; 0 if none can be seen.

    It is the number by which the loss was divided, or what cross entropy has counted itself.
    """
    operation = loss.grad_fn
    count = divisor_of(loss)
    factor = factor_of_sum(loss)
    if 0 < factor < 1 and abs(1 / factor - round(1 / factor)) < CLOSE:
        count = float(round(1 / factor))
    is_mean = getattr(operation, "_saved_reduction", None) == MEAN
    has_weights = getattr(operation, "_saved_weight", None) is not None
    if is_mean and not has_weights:
        counted = getattr(operation, "_saved_total_weight", None)
        count = float(counted) if isinstance(counted, Tensor) else 1.0
    return int(count) if count > 1 and count.is_integer() else 0


def factor_of_sum(loss: Tensor) -> float:
    """Return the number by which a sum was multiplied to make it a loss; 1 if none can be seen."""
    operation = loss.grad_fn
    if operation is None or operation.name() != "MulBackward0":
        return 1.0
    before = operation.next_functions[0][0]
    is_sum = before is not None and (
        before.name() == "SumBackward0" or getattr(before, "_saved_reduction", None) == SUM
    )
    factor = getattr(operation, "_saved_other", None)
    if is_sum and isinstance(factor, Tensor) and factor.numel() == 1:
        return float(factor)
    return 1.0
