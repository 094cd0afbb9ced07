"""Watches the losses from which gradients are computed."""

from typing import Any

import torch
from torch import Tensor

from mnist_dist.tools.doctor.patches import call_around
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.watch_models import ModelWatch


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
        is_over_nothing = self.models.last_rows == 0  # such a mean is no number, and harms nothing
        is_cheap = loss.device.type == "cpu" or self.recorder.examines
        if is_cheap and not is_over_nothing:
            is_finite = bool(torch.isfinite(loss.detach()).all())
            now.finite_loss = is_finite and now.finite_loss is not False

    def end(self) -> None:
        """Note that the backward pass has ended."""
        self.models.is_in_backward = False
