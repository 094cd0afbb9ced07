"""Watches the losses from which gradients are computed."""

from typing import Any

import torch
from torch import Tensor

from mnist_dist.tools.doctor.patches import call_around
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Epoch
from mnist_dist.tools.doctor.watch_models import ModelWatch

MEAN = 1  # torch's number for this reduction


class LossWatch:
    """Watches every backward pass.

    Args:
        recorder: of this process.
        models: are told that a backward pass is in progress.
    """

    def __init__(self, recorder: Recorder, models: ModelWatch) -> None:
        self.recorder = recorder
        self.models = models

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        call_around(torch.Tensor, "backward", quietly(self.begin), quietly(self.end))

    def begin(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Note a backward pass that begins."""
        del args, kwargs
        self.models.is_in_backward = True
        now = self.recorder.now
        now.backward += 1
        now.backward_place = place()
        self.recorder.events += 1
        if self.recorder.examines:
            now.divisor = divisor_of(loss)
            now.batch_count = count_of(loss)
        wrapper = self.models.last_wrapper
        if wrapper is not None and not wrapper.require_backward_grad_sync:
            now.last_synced = False  # Lightning decides on it behind the forward pass
        now.in_eval += self.models.is_in_eval
        self.note_batch()
        is_over_nothing = self.models.last_rows == 0  # such a mean is no number, and harms nothing
        is_cheap = loss.device.type == "cpu" or self.recorder.examines
        if is_cheap and not is_over_nothing:
            is_finite = bool(torch.isfinite(loss.detach()).all())
            now.finite_loss = is_finite and now.finite_loss is not False
        self.recorder.begins_to_wait()

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
    is_mean = getattr(operation, "_saved_reduction", None) == MEAN
    has_weights = getattr(operation, "_saved_weight", None) is not None
    if is_mean and not has_weights:
        counted = getattr(operation, "_saved_total_weight", None)
        count = float(counted) if isinstance(counted, Tensor) else 1.0
    return int(count) if count > 1 and count.is_integer() else 0
