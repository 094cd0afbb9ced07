"""The planted faults by name, and what they are planted with."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mnist_dist.core import ExactAccelerator, register_hook

Fault = Callable[[], AbstractContextManager]

FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    """Enter a fault under the name of its function, which gives a context in which it is there."""
    FAULTS[function.__name__] = function
    return function


def rank() -> int:
    """The number of this process; asked for late, for processes may be forked after the import."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_last() -> bool:
    """Whether this is the process that faults of one process befall."""
    return rank() == world() - 1


def all_of(*contexts: AbstractContextManager) -> ExitStack:
    """Several contexts in one."""
    together = ExitStack()
    for context in contexts:
        together.enter_context(context)
    return together


@contextlib.contextmanager
def at_every_step(change: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Something that happens between an update's gradient and its step, to an optimizer."""
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: change(optimizer))
    yield
    hook.remove()


@contextlib.contextmanager
def at_every_micro_batch(change: Callable[[ExactAccelerator], None]) -> Iterator[None]:
    """Something that happens to a micro-batch before a loader gives it."""
    hook = register_hook("micro_batch", change)
    yield
    hook.remove()


@contextlib.contextmanager
def before_backward(happen: Callable[[ExactAccelerator], None]) -> Iterator[None]:
    """Something that happens before the gradients of a micro-batch are computed."""
    backward = ExactAccelerator.backward

    def changed(self: ExactAccelerator, *arguments: Any, **options: Any) -> None:
        happen(self)
        backward(self, *arguments, **options)

    with patch.object(ExactAccelerator, "backward", changed):
        yield


def on_the_last_process(
    where: Any, name: str, change: Callable[[Any], None]
) -> AbstractContextManager:
    """Something that happens there to the first argument of a function, after a call of it."""
    function = getattr(where, name)

    def changed(first: Any, *arguments: Any, **options: Any) -> Any:
        found = function(first, *arguments, **options)
        if is_last():
            change(first)
        return found

    return patch.object(where, name, changed)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """All of an optimizer's."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def overflow(accelerator: ExactAccelerator) -> None:
    """Let the gradient of this micro-batch, and of no other, be infinite."""
    parameter = next(accelerator.unwrapped_models[0].parameters())

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient * torch.inf

    handle = parameter.register_hook(spoil)
