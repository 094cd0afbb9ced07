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

from mnist_dist.tools.doctor.digests import digest, own_part, sketch, tensors_in
from mnist_dist.tools.doctor.patches import call_before
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.random_states import digest_of_draws, random_states
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Epoch, Optimized
from mnist_dist.tools.doctor.watch_gradients import GradientWatch
from mnist_dist.tools.doctor.watch_models import ModelWatch


class OptimizerWatch:
    """Watches the steps of all optimizers.

    Args:
        recorder: of this process.
        models: know the names of parameters, and the buffers.
        gradients: know which passes' gradients were cleared.

    Attributes:
        depth: steps in progress, one within the other.
        numbers: of the optimizers, by their identities.
        loaded_at: the line that loaded the state of each, by their identities.
        states_before: the random states after the last step, if the next one is examined.
        epoch_before: the iteration over a loader that had given the last batch then.
    """

    def __init__(self, recorder: Recorder, models: ModelWatch, gradients: GradientWatch) -> None:
        self.recorder = recorder
        self.models = models
        self.gradients = gradients
        self.depth = 0
        self.numbers: dict[int, int] = {}
        self.loaded_at: dict[int, str] = {}
        self.states_before: list[Tensor] = []
        self.epoch_before: Epoch | None = None

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        register_optimizer_step_pre_hook(quietly(self.before_step))
        register_optimizer_step_post_hook(quietly(self.after_step))
        call_before(Optimizer, "load_state_dict", quietly(self.loaded))
        if self.recorder.stop_after:
            register_optimizer_step_post_hook(self.stop)

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Note the weights before a step, and the gradients if no closure is still to make them."""
        self.depth += 1
        if self.depth > 1:
            return
        now = self.recorder.now
        now.place = place()
        parameters = parameters_of(optimizer)
        self.gradients.note_cleared(parameters)
        if id(optimizer) not in self.numbers:
            self.numbers[id(optimizer)] = len(self.numbers)
            self.note_optimizer(optimizer, parameters)
        now.optimizer = self.numbers[id(optimizer)]
        known = self.recorder.record.optimizers[now.optimizer]
        if len(known.names) < len(parameters):
            self.note_names(known, parameters)
        now.rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        if not self.recorder.examines:
            return
        now.examined = True
        now.drawn = self.draws()
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
        self.recorder.finish_update()
        self.states_before = random_states() if self.recorder.examines else []
        self.epoch_before = self.recorder.batches_from

    def draws(self) -> int:
        """Return a digest of the random states if many numbers were drawn for this update, else 0.

        Between two epochs, an order may have been drawn, which is to be the same everywhere.
        """
        is_same_epoch = self.recorder.batches_from is self.epoch_before
        if not (self.states_before and is_same_epoch):
            return 0
        rows = self.recorder.now.rows or 0
        return digest_of_draws(self.states_before, random_states(), max(rows, 2))

    def loaded(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Note the line that loads an optimizer's state."""
        del args, kwargs
        self.loaded_at[id(optimizer)] = place()

    def stop(self, optimizer: Optimizer, *_: Any) -> None:
        """Send this process SIGTERM after the update after which it is to be stopped.

        The program's own handler may raise, so this is not a hook that keeps errors to itself.
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

    def note_optimizer(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        """Note what an optimizer has when it makes its first step.

        Args:
            optimizer: it.
            parameters: its own.
        """
        record = self.recorder.record
        found = Optimized(state_place=self.loaded_at.get(id(optimizer), ""))
        record.optimizers.append(found)
        if not parameters:
            return
        if is_whole(optimizer):
            found.state = digest_of_state(optimizer, parameters)
        record.device = record.device or name_of(parameters[0].device)
        is_sharded = [hasattr(each, "_local_tensor") for each in parameters]
        if any(is_sharded) or "deepspeed" in sys.modules:
            record.is_sharded = True

    def note_names(self, found: Optimized, parameters: list[Tensor]) -> None:
        """Note an optimizer's parameters, and which of them no wrapper exchanges.

        Args:
            found: what is known of the optimizer.
            parameters: its own, to which some may have been added since its last step.
        """
        names = self.models.parameter_names()
        found.names = [
            names.get(id(parameter), f"parameter {number} of the optimizer")
            for number, parameter in enumerate(parameters)
        ]
        given = self.models.wrapped_parameters
        if given:
            outside = [number for number, each in enumerate(parameters) if id(each) not in given]
            found.outside = [found.names[number] for number in outside]
            if outside:
                found.outside_place = self.models.place_of_call(parameters[outside[0]])
        frozen = [
            number for number, each in enumerate(parameters) if id(each) in self.models.frozen
        ]
        found.frozen = [found.names[number] for number in frozen]
        if frozen:
            found.frozen_place = self.models.frozen[id(parameters[frozen[0]])]

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


def is_whole(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has the state of all parameters, and not of a part of them."""
    return "ZeroRedundancy" not in type(optimizer).__name__


def digest_of_state(optimizer: Optimizer, parameters: list[Tensor]) -> int:
    """Return a digest of an optimizer's averages, in the order of its parameters; 0 if it has none.

    Args:
        optimizer: it.
        parameters: its own.
    """
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    tensors = [own_part(tensor) for state in states for tensor in tensors_in(state)]
    return digest(tensors) if tensors else 0


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
