"""Optimizers and schedulers that step once per update, however many micro-batches it consists of."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from torch.optim.lr_scheduler import LRScheduler

from .errors import UserError

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator


class ExactOptimizer(AcceleratedOptimizer):
    """Accelerate's optimizer, which steps only when the gradients of an update are complete.

    Without fp16's scaler it calls the optimizer itself: Accelerate's `step` looks for a package and
    its `zero_grad` reads a signature at every call, together a fifth of a small network's update
    (accelerate 1.15).

    Args:
        optimizer: the one to step.
        accelerator: decides when to step, and counts the updates.
        device_placement: move the optimizer's state to the device.
    """

    _is_accelerate_prepared = True

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accelerator: "ExactAccelerator",
        *,
        device_placement: bool,
    ) -> None:
        super().__init__(optimizer, device_placement=device_placement, scaler=accelerator.scaler)
        self.accelerator = accelerator

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Make a step if this micro-batch completes the gradients of an update; otherwise do nothing.

        Raises:
            UserError: a closure was given, which would compute the loss several times from one
                batch; or the gradients are not from `accelerator.backward`; or somebody else has
                set `sync_gradients`.
        """
        if closure is not None:
            raise UserError(
                f"{type(self.optimizer).__name__}.step was given a closure, which computes the loss several times from "
                "one batch: compute it once, and choose an optimizer that needs no closure"
            )
        if not self.gradient_state.sync_gradients:
            return
        if not self.accelerator.gradients_are_complete:
            raise UserError(
                "sync_gradients was set to True before an update's last micro-batch, as transformers' Trainer does: "
                "leave it to the loader, or start as many processes as there are virtual ones"
            )
        self.accelerator.check_step()
        if self.scaler is None:
            self.optimizer.step()
        else:
            super().step()
        self.accelerator.count_update()

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Clear the gradients, unless an update is in progress.

        Args:
            set_to_none: let them be None, and not zeros; None means True, as in PyTorch.
        """
        if self.accelerator.update_is_in_progress:
            return
        if set_to_none is False:
            self.optimizer.zero_grad(set_to_none=False)
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


class ExactScheduler(AcceleratedScheduler):
    """Accelerate's scheduler, except that it steps once per update instead of once per process."""

    _is_accelerate_prepared = True

    def __init__(
        self, scheduler: LRScheduler, optimizers: list[ExactOptimizer], *, step_with_optimizer: bool
    ) -> None:
        super().__init__(
            scheduler, optimizers, step_with_optimizer=step_with_optimizer, split_batches=True
        )

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Move on if the optimizer has just made a step."""
        if not self.step_with_optimizer:
            self.scheduler.step(*args, **kwargs)
            return
        if not self.gradient_state.sync_gradients:
            return
        skipped = any(optimizer.step_was_skipped for optimizer in self.optimizers)
        if not skipped:
            self.scheduler.step(*args, **kwargs)
