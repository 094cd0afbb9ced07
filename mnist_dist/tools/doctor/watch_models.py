"""Watches models: what they are given, by which wrapper they are called, and their layers."""

import sys
import weakref
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parallel import DistributedDataParallel

from mnist_dist.tools.doctor.digests import digest, own_part, tensors_in
from mnist_dist.tools.doctor.patches import call_after, call_before
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Epoch

LINES = 4  # that use a model without training, in an epoch, whose weights are noted
FRAMES = 10  # of the stack, in which the call of a module is looked for
DROPOUTS = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
)


class ModelWatch:
    """Watches the forward passes of all modules.

    Args:
        recorder: of this process.

    Attributes:
        depth: modules whose forward pass is in progress, one within the other.
        inner: identities of the models that a wrapper holds.
        root: the model of the last training pass, without a wrapper.
        called_at: of each model that was trained, by its identity: the model, and the line.
        last_wrapper: by which a model was called last.
        last_rows: rows that a model was given last, None if that cannot be seen.
        first_root: the number of the update in the making, and the identity of its first model.
        is_in_eval: whether the last forward pass with gradients was of a model in evaluation mode.
        wrapped_parameters: identities of those that wrappers were given.
        frozen: of those of them that required no gradient then, the line that wrapped them.
        is_in_backward: whether a backward pass is in progress, which may repeat forward passes.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.depth = 0
        self.inner: set[int] = set()
        self.root: nn.Module | None = None
        self.called_at: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self.first_root = (0, 0)
        self.last_wrapper: DistributedDataParallel | None = None
        self.last_rows: int | None = None
        self.is_in_eval = False
        self.wrapped_parameters: set[int] = set()
        self.frozen: dict[int, str] = {}
        self.is_in_backward = False

    def install(self) -> None:
        """Set the hooks."""
        quietly = self.recorder.quietly
        register_module_forward_pre_hook(quietly(self.before_forward))
        register_module_forward_hook(quietly(self.after_forward), always_call=True)
        call_after(DistributedDataParallel, "__init__", quietly(self.wrapped))
        for name in DROPOUTS:
            call_before(F, name, quietly(self.dropout))

    def wrapped(self, _: None, wrapper: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        """Note that a model was wrapped."""
        del args, kwargs
        record = self.recorder.record
        record.wrapper = type(wrapper).__name__
        record.broadcasts_buffers = wrapper.broadcast_buffers
        self.inner.add(id(wrapper.module))
        for parameter in wrapper.module.parameters():
            self.wrapped_parameters.add(id(parameter))
            self.frozen.pop(id(parameter), None)
            if not parameter.requires_grad:
                self.frozen[id(parameter)] = place()

    def before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note a forward pass that begins."""
        self.depth += 1
        if self.depth == 1 and not self.is_in_backward:
            self.note_root(module, args)
        if isinstance(module, _BatchNorm) and module.training:
            self.note_batch_norm(module)

    def after_forward(self, *_: Any) -> None:
        """Note that a forward pass ends."""
        self.depth -= 1

    def note_root(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note the forward pass of a whole model."""
        bare = getattr(module, "module", module)
        if next(bare.parameters(), None) is None:
            return  # a loss
        self.recorder.events += 1
        is_training = torch.is_grad_enabled() and bare.training
        if torch.is_grad_enabled():
            self.is_in_eval = not bare.training
        if is_training:
            self.note_training(module, bare, args)
        elif self.recorder.batches_from is not None:
            self.note_evaluation(self.recorder.batches_from, bare)

    def note_evaluation(self, epoch: Epoch, bare: nn.Module) -> None:
        """Note a forward pass without training, and once an epoch with which weights.

        Args:
            epoch: the iteration over a loader that gave the last batch.
            bare: the model, without a wrapper.
        """
        epoch.evaluated += 1
        line = place()
        if line not in epoch.used and len(epoch.used) < LINES:
            epoch.used[line] = digest(own_part(each) for each in bare.parameters())
            if id(bare) in self.called_at and self.called_at[id(bare)][0]() is bare:
                epoch.trained.append(line)

    def note_training(self, module: nn.Module, bare: nn.Module, args: tuple[Any, ...]) -> None:
        """Note a forward pass from which gradients follow."""
        now = self.recorder.now
        self.root = bare
        now.forward_place = place()
        if id(bare) not in self.called_at:
            self.called_at[id(bare)] = (weakref.ref(bare), now.forward_place)
        device = next(bare.parameters()).device.type
        now.is_rounded |= torch.is_autocast_enabled(device) or holds_few_bits(bare)
        if isinstance(module, DistributedDataParallel):
            now.wrapped += 1
            self.last_wrapper = module
            now.last_synced = module.require_backward_grad_sync
            now.synced += int(module.require_backward_grad_sync)
        elif id(module) in self.inner:
            now.bare += 1
            now.bare_place = now.forward_place
        if self.first_root[0] != now.number:
            self.first_root = (now.number, id(bare))
        if self.first_root[1] == id(bare):
            self.note_inputs(tensors_in([*args, *arguments_by_name(module)]))
        if type(module).__name__ == "FullyShardedDataParallel":
            self.recorder.record.is_sharded = True

    def note_inputs(self, inputs: list[Tensor]) -> None:
        """Note what the first model of an update is given."""
        now = self.recorder.now
        batches = [tensor for tensor in inputs if tensor.ndim]
        if not batches:
            return
        self.last_rows = len(batches[0])
        now.rows = (now.rows or 0) + self.last_rows
        if self.recorder.examines and not now.inputs:
            now.inputs = digest(batches)

    def note_batch_norm(self, module: nn.Module) -> None:
        """Note a layer that normalises over the rows of this process."""
        record = self.recorder.record
        if record.batch_norm or isinstance(module, nn.SyncBatchNorm):
            return
        record.batch_norm = type(module).__name__
        record.batch_norm_place = place()

    def dropout(self, inputs: Tensor, p: float = 0.5, training: bool = True, *_: Any) -> None:
        """Note the random state at the first dropout of an update."""
        now = self.recorder.now
        is_first = self.recorder.examines and not now.random_state
        if not (is_first and training and p > 0 and torch.is_grad_enabled()):
            return
        if inputs.device.type == "cuda":
            state = torch.cuda.get_rng_state(inputs.device)
        else:
            state = torch.get_rng_state()
        now.random_state = digest([state])

    def buffers(self) -> dict[str, int]:
        """Return a digest of each buffer of the last model, but for batch normalisation's."""
        found: dict[str, int] = {}
        if self.root is None:
            return found
        for prefix, module in self.root.named_modules():
            if isinstance(module, _BatchNorm):
                continue
            for name, buffer in module.named_buffers(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                found[full] = digest([buffer])
        return found

    def parameter_names(self) -> dict[int, str]:
        """Return the names of the trained models' parameters, by their identities.

        Where several models are trained, the name of its class precedes a parameter's name.
        """
        roots = [root for root in (find() for find, _ in self.called_at.values()) if root]
        found: dict[int, str] = {}
        for root in roots:
            prefix = f"{type(root).__name__}." if len(roots) > 1 else ""
            for name, parameter in root.named_parameters():
                found.setdefault(id(parameter), prefix + name)
        return found

    def place_of_call(self, wanted: Tensor) -> str:
        """Return the line that called the model that has a parameter; empty if that is unknown."""
        for find, line in self.called_at.values():
            root = find()
            if root is not None and any(each is wanted for each in root.parameters()):
                return line
        return ""


def holds_few_bits(module: nn.Module) -> bool:
    """Return whether a model's first parameter is of a type with fewer bits than float32."""
    return next(module.parameters()).dtype.itemsize < torch.float32.itemsize


def arguments_by_name(module: nn.Module) -> list[Any]:
    """Return what a module is being called with by name, which torch does not tell global hooks.

    Args:
        module: the one whose forward pass begins; its call is a few frames above the hook.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(FRAMES):
        if frame is None:
            break
        values = frame.f_locals
        if values.get("self") is module and isinstance(values.get("kwargs"), dict):
            return list(values["kwargs"].values())
        frame = frame.f_back
    return []
