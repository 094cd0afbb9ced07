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
        models: unwrapped.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        self.models = models
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
        if not self.all:
            return False
        return any(model.training for model in self.models)

    def begin(self, *, opens_share: bool, empty: bool) -> None:
        """Before a micro-batch: restore the buffers to their state before the update.

        Args:
            opens_share: whether it is the first micro-batch of its share.
            empty: whether it has no samples, so that its changes to buffers are discarded.
        """
        if not self.before_update:
            self.before_update = copies_of(self.all)
        elif opens_share:
            put(self.all, self.before_update)
        self.before_micro_batch = []
        if empty:
            self.before_micro_batch = copies_of(self.floating)

    def changes(self, *, closes_share: bool) -> list[Tensor]:
        """After a micro-batch: its share's change to each floating-point buffer; zeros before the last piece."""
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
