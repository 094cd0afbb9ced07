"""Averages model buffers, such as BatchNorm's running statistics, over the shares of an update.

Every share of an update finds the buffers as they were before the update. Afterwards each
floating-point buffer has moved by the mean of what the shares moved it by, added up along the same
tree as the gradients; the others (counters) are as any one share left them.
"""

import torch
from torch import Tensor, nn

from .digests import same_bits
from .errors import SingleProcessError


class BufferMean:
    """Restores the models' buffers before each share, and records what each share changed.

    Args:
        models: unwrapped.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        self.models = models
        modules = [module for model in models for module in model.modules()]
        self.owners = [module for module in modules if module._buffers]
        # As they were when this was made; `keep_tensors` sees to it that they stay the models'.
        self.known = [dict(module._buffers) for module in self.owners]
        buffers = [buffer for model in models for buffer in model.buffers()]
        self.floating: list[Tensor] = []
        self.others: list[Tensor] = []
        for buffer in buffers:
            kind = self.floating if buffer.is_floating_point() else self.others
            kind.append(buffer)
        self.all = self.floating + self.others
        self.before_update: list[Tensor] = []
        self.before_micro_batch: list[Tensor] = []
        self.shares_with_samples = 0

    @property
    def in_training(self) -> bool:
        """Whether a forward pass may change buffers now."""
        return any(module.training for module in self.owners)

    @torch.no_grad()
    def keep_tensors(self) -> None:
        """Copy buffers that a forward pass has replaced by new tensors into the tensors that are known here.

        Raises:
            SingleProcessError: a new tensor has another shape.
        """
        for module, known in zip(self.owners, self.known, strict=True):
            for name, tensor in known.items():
                new = module._buffers.get(name)
                if new is tensor or new is None or tensor is None:
                    continue
                if new.shape != tensor.shape:
                    raise SingleProcessError(
                        f"{type(module).__name__} replaces its buffer {name} of shape {tuple(tensor.shape)} by one of "
                        f"shape {tuple(new.shape)}, so the buffers of several shares cannot be averaged: keep its shape"
                    )
                tensor.copy_(new)
                module._buffers[name] = tensor

    def changed_without_backward(self) -> str:
        """The name of a buffer that was changed since the last update; empty if there is none."""
        if not self.before_update:
            return ""
        self.keep_tensors()
        before = {
            id(buffer): value for buffer, value in zip(self.all, self.before_update, strict=True)
        }
        for model in self.models:
            for name, buffer in model.named_buffers():
                if not same_bits(buffer, before[id(buffer)]):
                    return name
        return ""

    def begin(self, *, opens_share: bool, empty: bool) -> None:
        """Before a micro-batch: restore the buffers to their state before the update.

        Args:
            opens_share: whether it is the first micro-batch of its share.
            empty: whether it has no samples, so that its changes to buffers are discarded.
        """
        self.keep_tensors()
        if not self.before_update:
            self.before_update = copies_of(self.all)
        elif opens_share:
            put(self.all, self.before_update)
        self.before_micro_batch = []
        if empty:
            self.before_micro_batch = copies_of(self.floating)

    def changes(self, *, closes_share: bool) -> list[Tensor]:
        """After a micro-batch: its share's change to each floating-point buffer; zeros before the last piece."""
        self.keep_tensors()
        if self.before_micro_batch:
            put(self.floating, self.before_micro_batch)
        if not self.before_update or not closes_share:
            return [torch.zeros_like(buffer) for buffer in self.floating]
        floating_before = self.before_update[: len(self.floating)]
        pairs = zip(self.floating, floating_before, strict=True)
        return [buffer - before for buffer, before in pairs]

    def abandon(self) -> None:
        """Put the buffers back to what they were before an update that is not completed."""
        if self.before_update:
            self.keep_tensors()
            put(self.all, self.before_update)
        self.before_update = []
        self.shares_with_samples = 0

    def state_before_update(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's buffers, by name, as they were before an update that is not complete yet."""
        if not self.before_update:
            return {}
        self.keep_tensors()
        before = dict(zip(map(id, self.all), self.before_update, strict=True))
        return {
            name: before[id(buffer)]
            for name, buffer in model.named_buffers()
            if id(buffer) in before
        }

    def finish(self, changes: list[Tensor]) -> None:
        """After the last micro-batch of an update: move the buffers by the mean over all shares.

        Args:
            changes: the sum over all shares of what `changes` gave, one tensor for each
                floating-point buffer.
        """
        if self.before_update:
            shares = max(self.shares_with_samples, 1)
            floating_before = self.before_update[: len(self.floating)]
            moves = zip(self.floating, floating_before, changes, strict=True)
            for buffer, before, change in moves:
                mean_change = change / shares
                buffer.detach().copy_(before + mean_change)
        self.before_update = []
        self.shares_with_samples = 0


def copies_of(buffers: list[Tensor]) -> list[Tensor]:
    """Copies of what buffers hold now."""
    return [buffer.clone() for buffer in buffers]


@torch.no_grad()
def put(buffers: list[Tensor], values: list[Tensor]) -> None:
    """Put values into buffers."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
