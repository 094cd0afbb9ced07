"""Watches what becomes of gradients between a backward pass and the step: they are cleared, or clipped."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from mnist_dist.tools.doctor.digests import own_part
from mnist_dist.tools.doctor.patches import call_after, call_before
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder

TINY = 1e-6  # which torch adds to a norm before it divides by it


@dataclass
class Clearing:
    """Gradients that were cleared before a step used them.

    Attributes:
        passes: the lines of the backward passes that they came from.
        place: the line that cleared them.
        parameters: identities of those whose gradients they were, and what they held then.
    """

    passes: list[str]
    place: str
    parameters: dict[int, tuple[int, int]]


class GradientWatch:
    """Watches `zero_grad`, the scaling of losses, and clipping.

    Args:
        recorder: of this process.

    Attributes:
        update: the number of the update that the attributes below belong to.
        passes: the lines of its backward passes since gradients were cleared last.
        cleared: what was cleared before the step.
        scale: by which the loss was scaled, until gradients are divided by it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.update = 0
        self.passes: list[str] = []
        self.cleared: list[Clearing] = []
        self.scale = 1.0

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        call_before(Optimizer, "zero_grad", quietly(self.clear_of_optimizer))
        call_before(nn.Module, "zero_grad", quietly(self.clear_of_model))
        call_after(GradScaler, "scale", quietly(self.scaled))
        call_before(GradScaler, "unscale_", quietly(self.unscaled))
        for owner in (torch.nn.utils, torch.nn.utils.clip_grad):
            call_after(owner, "clip_grad_norm_", quietly(self.clipped))

    def passed(self, line: str) -> None:
        """Note the line of a backward pass."""
        if self.update != self.recorder.now.number:
            self.update = self.recorder.now.number
            self.passes = []
            self.cleared = []
        self.passes.append(line)

    def clear_of_optimizer(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Note that an optimizer clears its gradients."""
        del args, kwargs
        groups = optimizer.param_groups
        self.clear(parameter for group in groups for parameter in group["params"])

    def clear_of_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Note that a model clears its gradients."""
        del args, kwargs
        self.clear(model.parameters())

    def clear(self, parameters: Iterable[Tensor]) -> None:
        """Note gradients that are cleared, if a step has not used them yet."""
        if self.update != self.recorder.now.number or not self.passes:
            return
        with_gradient = {id(each): content(each) for each in parameters if each.grad is not None}
        self.cleared.append(Clearing(self.passes, place(), with_gradient))
        self.passes = []

    def note_cleared(self, parameters: list[Tensor]) -> None:
        """Note which passes' gradients a step lacks.

        Only passes of the same line as the last one count: gradients for something else, such as
        those of an adversarial example or of another model's loss, are cleared by intent. So are
        those by which weights were changed meanwhile, as by a sharpness-aware optimizer.

        Args:
            parameters: those that the step changes.
        """
        now = self.recorder.now
        if self.update != now.number or not self.cleared:
            return
        unchanged = {(id(parameter), content(parameter)) for parameter in parameters}
        for each in self.cleared:
            if unchanged & each.parameters.items():
                now.cleared += each.passes.count(now.backward_place)
                now.cleared_place = each.place

    def scaled(self, result: Any, scaler: GradScaler, *args: Any, **kwargs: Any) -> None:
        """Note by how much a loss is scaled."""
        del result, args, kwargs
        if self.recorder.examines and scaler.is_enabled():
            self.scale = scaler.get_scale()

    def unscaled(self, *args: Any, **kwargs: Any) -> None:
        """Note that gradients are divided by the scale again."""
        del args, kwargs
        self.scale = 1.0

    def clipped(
        self,
        norm: Tensor,
        parameters: Any,
        max_norm: float = 1.0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Note the norm of a gradient that is clipped."""
        del parameters, args, kwargs
        now = self.recorder.now
        if self.recorder.examines and type(norm) is Tensor:
            now.clip_norm = float(norm)
            now.clip_place = place()
            now.clip_scale = self.scale
            if math.isfinite(now.clip_norm) and max_norm > 0:
                now.clip_factor *= min(1.0, max_norm / (now.clip_norm + TINY))


def content(tensor: Tensor) -> tuple[int, int]:
    """Return what is another pair of numbers after a tensor's values were changed."""
    own = own_part(tensor)
    return own.data_ptr(), own._version
