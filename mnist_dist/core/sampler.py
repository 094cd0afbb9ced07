"""The order of the samples in an epoch, and which of them each process has."""

from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from .errors import UserError
from .randomness import generator_for
from .sharing import Sharing


class ExactSampler(DistributedSampler):
    """Deals each epoch's samples out to the processes in turn: process r of W gets P[r::W].

    Unlike its base class it neither repeats samples nor drops any to make the processes' parts
    equal. The order is a function of seed and epoch alone, drawn on the CPU, so it is the same on
    any device.

    Args:
        dataset: has a length.
        sharing: the shares and the processes that they are dealt to.
        shuffle: draw a new order for every epoch; otherwise it is that of the data set.
        seed: of the order.

    Raises:
        UserError: there are more processes than samples.
    """

    def __init__(self, dataset: Sized, sharing: Sharing, *, shuffle: bool, seed: int) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]  # it needs no more than a length
            num_replicas=sharing.world,
            rank=sharing.rank,
            shuffle=shuffle,
            seed=seed,
        )
        self.sharing = sharing
        self.samples = len(dataset)
        if sharing.world > self.samples:
            raise UserError(
                f"{sharing.world} processes cannot share {self.samples} samples: start at most "
                f"{self.samples}"
            )

    def order(self, epoch: int) -> Tensor:
        """P, the order of an epoch: the indices of all samples, (N,) int64 on the CPU."""
        if not self.shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=generator_for("order", self.seed, epoch))

    def __iter__(self) -> Iterator[int]:
        """The numbers of this process's samples in the epoch that `set_epoch` chose, in order."""
        order = self.order(self.epoch)
        mine = set(self.sharing.own_shares)
        for position, number in enumerate(order.tolist()):
            if position % self.sharing.shares in mine:
                yield number

    def __len__(self) -> int:
        """How many samples this process has in an epoch."""
        shares = self.sharing.shares
        return sum(len(range(share, self.samples, shares)) for share in self.sharing.own_shares)
