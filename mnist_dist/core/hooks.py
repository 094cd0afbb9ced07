"""Hooks that watch every `ExactAccelerator` of this process, as PyTorch's global hooks watch every module.

A tool registers one to see what a training does without a change to its loop. A hook must not
change anything.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator

Event = Literal["micro_batch", "gradients", "update", "checkpoint"]
Hook = Callable[["ExactAccelerator"], None]

HOOKS: dict[Event, "OrderedDict[int, Hook]"] = {
    "micro_batch": OrderedDict(),
    "gradients": OrderedDict(),
    "update": OrderedDict(),
    "checkpoint": OrderedDict(),
}


def register_hook(event: Event, hook: Hook) -> RemovableHandle:
    """Have a function called with the accelerator whenever something happens.

    Args:
        event: `micro_batch`: a loader is about to give one, which is `accelerator.micro_batch`.
            `gradients`: those of an update are complete, and in the parameters' `grad`. `update`:
            the optimizer has made a step. `checkpoint`: one is about to be written.
        hook: the function.

    Returns:
        A handle whose `remove()` ends it.
    """
    handle = RemovableHandle(HOOKS[event])
    HOOKS[event][handle.id] = hook
    return handle


def call_hooks(event: Event, accelerator: "ExactAccelerator") -> None:
    """Call all hooks of an event, in the order in which they were registered."""
    for hook in list(HOOKS[event].values()):
        hook(accelerator)
