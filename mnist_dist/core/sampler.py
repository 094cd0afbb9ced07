"""The order of the samples in an epoch, the global batches it is cut into, and what each process has of them."""

import math
from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from .errors import UserError
from .randomness import stream
from .sharing import MicroBatch, Sharing, cut_in_pieces, positions_of_share


class ExactSampler(DistributedSampler):
    """Deals each epoch's samples to the processes: to process r of W every W-th from the r-th on, P[r::W].

    Unlike its base class it neither repeats samples nor drops any to make the processes' parts equal. The order is a
    function of seed and epoch alone, drawn on the CPU, so it is the same on any device.

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
                f"{sharing.world} processes are more than the {self.samples} samples they share: start fewer"
            )

    def order(self, epoch: int) -> Tensor:
        """P: (N,) int64 on the CPU, the numbers of all samples in the order of an epoch."""
        if not self.shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=stream("order", self.seed, epoch))

    def __iter__(self) -> Iterator[int]:
        """The numbers of this process's samples in the epoch that `set_epoch` chose, in order."""
        order = self.order(self.epoch)
        mine = set(self.sharing.mine)
        for position, number in enumerate(order.tolist()):
            if position % self.sharing.shares in mine:
                yield number

    def __len__(self) -> int:
        """How many samples this process has in an epoch."""
        shares = self.sharing.shares
        return sum(len(range(share, self.samples, shares)) for share in self.sharing.mine)


class MicroBatchSampler:
    """Cuts the order of an epoch where global batches end, and gives what this process has of each.

    Args:
        sampler: the order, and how it is dealt out.
        batch_size: B, the samples of a global batch.
        drop_last: leave out the last global batch of an epoch if it has fewer.
        pieces: micro-batches that every share is given in, to save memory.
        number: the loader's number among those of its accelerator.
        device: where the micro-batches' random numbers are drawn.
    """

    def __init__(
        self,
        sampler: ExactSampler,
        batch_size: int,
        *,
        drop_last: bool = False,
        pieces: int = 1,
        number: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.pieces = pieces
        self.number = number
        self.device = device
        whole_batches = sampler.samples // batch_size
        self.samples = whole_batches * batch_size if drop_last else sampler.samples

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return math.ceil(self.samples / self.batch_size)

    def epoch(
        self, epoch: int, first: int = 0, batches_per_update: int = 1, device: torch.device | str = "cpu"
    ) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of each global batch of an epoch.

        Args:
            epoch: its number, from 0.
            first: the number of the global batch to begin with, from 0.
            batches_per_update: global batches that the gradients of an update are accumulated over.
            device: where the samples' numbers are to be.
        """
        order = self.sampler.order(epoch).to(device)
        for number in range(first, len(self)):
            yield self.micro_batches(order, epoch, number, batches_per_update)

    def micro_batches(self, order: Tensor, epoch: int, number: int, batches_per_update: int) -> list[MicroBatch]:
        """This process's micro-batches of one global batch, of which every process has equally many."""
        sharing = self.sampler.sharing
        start = number * self.batch_size
        stop = min(start + self.batch_size, self.samples)
        whole = order[start:stop]
        place_in_update = number % batches_per_update
        update_start = (number - place_in_update) * self.batch_size
        update_stop = min(update_start + batches_per_update * self.batch_size, self.samples)
        ends_update = place_in_update == batches_per_update - 1 or number == len(self) - 1
        found = []
        drawn: dict = {}
        for round_number in range(sharing.rounds):
            share = sharing.share_in_round(sharing.rank, round_number)
            positions = positions_of_share(share, start, stop - start, sharing.shares)
            parts = cut_in_pieces(positions, self.pieces) if self.pieces > 1 else [positions]
            for piece, part in enumerate(parts):
                opens_batch = round_number == 0 and piece == 0
                closes_batch = round_number == sharing.rounds - 1 and piece == self.pieces - 1
                found.append(
                    MicroBatch(
                        seed=self.sampler.seed,
                        loader=self.number,
                        epoch=epoch,
                        batch=number,
                        start=start,
                        size=stop - start,
                        shares=sharing.shares,
                        share=share,
                        piece=piece,
                        pieces=self.pieces,
                        round=round_number,
                        rows=len(part),
                        index=whole[part.start : part.stop : part.step],
                        update_size=update_stop - update_start,
                        opens_batch=opens_batch,
                        closes_batch=closes_batch,
                        completes_share=ends_update and piece == self.pieces - 1,
                        closes_update=closes_batch and ends_update,
                        device=self.device,
                        drawn=drawn,
                    )
                )
        return found
