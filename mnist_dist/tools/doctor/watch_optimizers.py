"""Watches optimizers: their steps, and weights, gradients and learning rates at each."""

import os
import signal
import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from mnist_dist.tools.doctor.digests import digest, sketch
from mnist_dist.tools.doctor.patches import call_after
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.watch_models import ModelWatch


class OptimizerWatch:
    """Watches the steps of all optimizers.

    Args:
        recorder: of this process.
        models: know the names of parameters, and the buffers.

    Attributes:
        depth: steps in progress, one within the other.
        numbers: of the optimizers, by their identities.
    """

    def __init__(self, recorder: Recorder, models: ModelWatch) -> None:
        self.recorder = recorder
        self.models = models
        self.depth = 0
        self.numbers: dict[int, int] = {}

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        register_optimizer_step_pre_hook(quietly(self.before_step))
        register_optimizer_step_post_hook(quietly(self.after_step))
        for owner in (torch.nn.utils, torch.nn.utils.clip_grad):
            call_after(owner, "clip_grad_norm_", quietly(self.clipped))
        if self.recorder.stop_after:
            register_optimizer_step_post_hook(self.stop)

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Note the weights before a step, and the gradients if no closure is still to make them."""
        self.depth += 1
        if self.depth > 1:
            return
        now = self.recorder.now
        now.place = place()
        now.optimizer = self.numbers.setdefault(id(optimizer), len(self.numbers))
        now.rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        if not self.recorder.examines:
            return
        now.examined = True
        parameters = parameters_of(optimizer)
        self.note_kind(parameters)
        now.weights = [digest([own_part(parameter)]) for parameter in parameters]
        if not args and not kwargs.get("closure"):
            self.note_gradients(parameters)

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Note a step that has been made."""
        self.depth -= 1
        if self.depth > 0:
            return
        now = self.recorder.now
        if now.examined:
            if not now.gradients:
                self.note_gradients(parameters_of(optimizer))
            now.buffers = self.models.buffers()
        if self.recorder.batches_from is not None:
            self.recorder.batches_from.updates += 1
        self.recorder.finish_update()

    def clipped(self, norm: Tensor, *args: Any, **kwargs: Any) -> None:
        """Note the norm of a gradient that is clipped."""
        del args, kwargs
        if self.recorder.examines and type(norm) is Tensor:
            self.recorder.now.clip_norm = float(norm)
            self.recorder.now.clip_place = place()

    def stop(self, optimizer: Optimizer, *_: Any) -> None:
        """Send this process SIGTERM after the update after which it is to be stopped.

        The program's own handler may raise, so this is no hook that keeps errors to itself.
        """
        record = self.recorder.record
        if (
            self.depth
            or record.made != self.recorder.stop_after
            or os.getpid() != self.recorder.pid
        ):
            return
        record.stopped_with = [digest([own_part(each)]) for each in parameters_of(optimizer)]
        self.recorder.stop_after = 0
        self.recorder.write()
        os.kill(os.getpid(), signal.SIGTERM)

    def note_kind(self, parameters: list[Tensor]) -> None:
        """Note once the names of the parameters, where they are, and whether they are shards."""
        record = self.recorder.record
        if record.names or not parameters:
            return
        names = self.models.parameter_names()
        for number, parameter in enumerate(parameters):
            record.names.append(names.get(id(parameter), f"parameter {number} of the optimizer"))
        given = self.models.wrapped_parameters
        if given:
            pairs = zip(record.names, parameters, strict=True)
            record.outside = [name for name, each in pairs if id(each) not in given]
        record.device = name_of(parameters[0].device)
        is_sharded = [hasattr(each, "_local_tensor") for each in parameters]
        if any(is_sharded) or "deepspeed" in sys.modules:
            record.is_sharded = True

    def note_gradients(self, parameters: list[Tensor]) -> None:
        """Note a digest of each gradient, 0 where there is none."""
        now = self.recorder.now
        present = [each for each in parameters if each.grad is not None]
        now.gradients = [gradient_digest(each) for each in parameters]
        now.without_gradient = sum(each.requires_grad for each in parameters) - len(present)
        if self.recorder.sketches and present and not self.recorder.record.is_sharded:
            gradients = [each.grad for each in present if each.grad is not None]
            dense = [each.to_dense() if each.is_sparse else each for each in gradients]
            now.sketch = sketch(dense)
            now.norm = float(torch.cat([each.flatten().cpu() for each in dense]).norm())


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def own_part(tensor: Tensor) -> Tensor:
    """Return what of a tensor this process holds, which is a part if it is sharded."""
    return getattr(tensor, "_local_tensor", tensor)


def gradient_digest(parameter: Tensor) -> int:
    """Return a digest of a parameter's gradient, 0 if it has none."""
    if parameter.grad is None:
        return 0
    gradient = own_part(parameter.grad)
    return digest([gradient.to_dense() if gradient.is_sparse else gradient])


def name_of(device: torch.device) -> str:
    """Return the name of a device; a GPU's tells it from every other one."""
    if device.type != "cuda":
        return device.type
    return f"cuda {torch.cuda.get_device_properties(device).uuid}"
