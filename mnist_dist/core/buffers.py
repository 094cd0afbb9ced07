"""Averages model buffers, such as BatchNorm's running statistics, over the shares of an update.

Every share of an update finds the buffers as they were before the update. Afterwards each
floating-point buffer has moved by the mean of what the shares moved it by, added up along the same
tree as the gradients; the others (counters) are as any one share left them.
"""

import torch
from torch import Tensor, nn


class BufferMean:
    """Restores the models' buffers before each share, and records what each share changed.

    Args:
        models: bare, without wrappers.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        self.models = models
        buffers = [buffer for model in models for buffer in model.buffers()]
        self.floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.others = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self.all = self.floating + self.others
        self.before_update: list[Tensor] = []
        self.before_micro_batch: list[Tensor] = []
        self.shares_with_samples = 0

    @property
    def in_training(self) -> bool:
        """Whether a forward pass may change buffers now."""
        return bool(self.all) and any(model.training for model in self.models)

    def begin(self, *, opens_share: bool, empty: bool) -> None:
        """Before a micro-batch: restore the buffers to their state before the update.

        Args:
            opens_share: whether it is the first micro-batch of its share.
            empty: whether it has no samples, so that its changes to buffers are discarded.
        """
        if not self.before_update:
            self.before_update = [buffer.clone() for buffer in self.all]
        elif opens_share:
            put(self.all, self.before_update)
        self.before_micro_batch = [buffer.clone() for buffer in self.floating] if empty else []

    def changes(self, *, closes_share: bool) -> list[Tensor]:
        """After a micro-batch: its share's change to each floating-point buffer; zeros before the last piece."""
        if self.before_micro_batch:
            put(self.floating, self.before_micro_batch)
        if not self.before_update or not closes_share:
            return [torch.zeros_like(buffer) for buffer in self.floating]
        before = self.before_update[: len(self.floating)]
        return [buffer - earlier for buffer, earlier in zip(self.floating, before, strict=True)]

    def abandon(self) -> None:
        """Put the buffers back to what they were before an update that is not completed."""
        if self.before_update:
            put(self.all, self.before_update)
        self.before_update = []
        self.shares_with_samples = 0

    def finish(self, changes: list[Tensor]) -> None:
        """After the last micro-batch of an update: move the buffers by the mean over all shares.

        Args:
            changes: the sum over all shares of what `changes` gave, one tensor for each
                floating-point buffer.
        """
        if self.before_update:
            shares = max(self.shares_with_samples, 1)
            for buffer, before, change in zip(
                self.floating, self.before_update, changes, strict=False
            ):
                buffer.detach().copy_(before + change / shares)
        self.before_update = []
        self.shares_with_samples = 0


@torch.no_grad()
def put(buffers: list[Tensor], values: list[Tensor]) -> None:
    """Put values into buffers."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
