"""Watches the operations between processes: which, how often, and by which line."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from mnist_dist.tools.doctor.patches import call_around, call_before
from mnist_dist.tools.doctor.places import cuts_to_a_length, place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Epoch

OPERATIONS = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
)
# Those that give each process the rows of all.
GATHERS = {name for name in OPERATIONS if "gather" in name}
# By the name of an operation, which of its arguments holds what this process gives.
FIRST_ARGUMENT = {"all_reduce": 0, "reduce": 0, "all_gather": 1, "all_gather_into_tensor": 1}
FIGURES = 64  # of an evaluation, after which no more are kept
SHORT = 8  # figures in a tensor
SAVE_STATE = "save_state"  # of Accelerate: no operation between processes by itself


class ProcessWatch:
    """Watches the functions of `torch.distributed`, and what Accelerate makes of them.

    Args:
        recorder: of this process.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.calls: Counter[str] = Counter()

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        for name in OPERATIONS:
            call_around(dist, name, quietly(self.begin_of(name)), quietly(self.end))
        from accelerate import Accelerator

        from mnist_dist.core.accelerator import ExactAccelerator

        call_before(Accelerator, "__init__", quietly(self.accelerator))
        for kind in (Accelerator, ExactAccelerator):
            call_before(kind, "gather_for_metrics", quietly(self.gathered))
        call_before(Accelerator, "save_state", quietly(self.state_saved))

    def begin_of(self, name: str) -> Any:
        """Return the hook for the beginning of an operation."""

        def begin(*args: Any, **kwargs: Any) -> None:
            recorder = self.recorder
            recorder.events += 1
            recorder.begins_to_wait()
            line = place()
            recorder.call = f"{name} at {line}"
            if not is_of_some([*args, *kwargs.values()]):
                self.calls[recorder.call] += 1
            recorder.record.collectives = dict(self.calls)
            if self.calls[recorder.call] == 1:
                recorder.write()  # the process may die in it
            if recorder.batches_from is not None:
                counts = recorder.batches_from.collectives
                counts[name] = counts.get(name, 0) + 1
                note_figures(recorder.batches_from, name, args)
            if name in GATHERS:
                recorder.record.cuts_gathered |= cuts_to_a_length()
            if recorder.now.forward_place and name.startswith("all_gather"):
                recorder.now.gathers_rows |= is_of_rows(given_to(name, args))

        return begin

    def end(self) -> None:
        """Note that the operation has ended."""
        self.recorder.call = ""
        self.recorder.events += 1
        self.recorder.has_waited()

    def accelerator(self, accelerator: Any, *args: Any, **kwargs: Any) -> None:
        """Note that Accelerate is used, and which class of it."""
        del args, kwargs
        from mnist_dist.core.accelerator import ExactAccelerator

        self.recorder.record.accelerate = True
        self.recorder.record.exact = isinstance(accelerator, ExactAccelerator)

    def state_saved(self, *args: Any, **kwargs: Any) -> None:
        """Note that Accelerate saves a state, of which each process has a part."""
        del args, kwargs
        self.calls[f"{SAVE_STATE} at {place()}"] += 1
        self.recorder.record.collectives = dict(self.calls)

    def gathered(self, *args: Any, **kwargs: Any) -> None:
        """Note that Accelerate was asked to leave padding out."""
        del args, kwargs
        self.recorder.record.gathered_for_metrics = True


def note_figures(epoch: Epoch, name: str, arguments: tuple[Any, ...]) -> None:
    """Note the figures of an evaluation that are added up or gathered.

    Args:
        epoch: the iteration that gave the last batch.
        name: of the operation.
        arguments: its own.
    """
    if not epoch.evaluated or epoch.updates:
        return
    tensor = given_to(name, arguments)
    is_short = tensor is not None and tensor.numel() <= SHORT
    if tensor is not None and is_short and len(epoch.figures) < FIGURES:
        epoch.figures += tensor.detach().flatten().double().tolist()


def given_to(name: str, arguments: tuple[Any, ...]) -> Tensor | None:
    """Return the tensor that an operation is given, if it is one of those that are looked at."""
    number = FIRST_ARGUMENT.get(name, len(arguments))
    tensor = arguments[number] if len(arguments) > number else None
    return tensor if isinstance(tensor, Tensor) else None


def is_of_rows(tensor: Tensor | None) -> bool:
    """Return whether a tensor may be a model's answer to each row, and not a loss for a log."""
    return tensor is not None and tensor.ndim > 1 and tensor.is_floating_point()


def is_of_some(arguments: Iterable[Any]) -> bool:
    """Return whether an operation is one of some processes only, by the group that it is given."""
    groups = [each for each in arguments if isinstance(each, dist.ProcessGroup)]
    return any(group.size() < dist.get_world_size() for group in groups)
