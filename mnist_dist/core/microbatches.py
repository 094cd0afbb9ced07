"""Splits the global batches of an epoch into each process's micro-batches."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .orders import EpochOrder, Orders
from .sharing import MicroBatch, Sharing, cut_in_pieces, positions_of_share


class MicroBatchSampler:
    """Splits an epoch into global batches, and yields this process's micro-batches of each of them.

    Args:
        orders: the samples of every epoch in order, and where its global batches end.
        sharing: who works on which shares.
        seed: seed for the micro-batches' random numbers.
        pieces: number of micro-batches that each share is split into, to save memory.
        number: index of the loader among its accelerator's loaders.
        device: where the micro-batches' random numbers are drawn.
    """

    def __init__(
        self,
        orders: Orders,
        sharing: Sharing,
        *,
        seed: int = 0,
        pieces: int = 1,
        number: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.orders = orders
        self.sharing = sharing
        self.seed = seed
        self.pieces = pieces
        self.number = number
        self.device = device

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return len(self.orders)

    def epoch(
        self,
        epoch: int,
        first: int = 0,
        batches_per_update: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of each global batch of an epoch.

        Args:
            epoch: its number, from 0.
            first: the number of the global batch to begin with, from 0.
            batches_per_update: global batches that the gradients of an update are accumulated over.
            device: where the samples' numbers are to be.
        """
        order = self.orders.epoch(epoch)
        numbers = order.numbers.to(device)
        for batch in range(first, order.batches):
            yield self.micro_batches(order, numbers, epoch, batch, batches_per_update)

    def micro_batches(
        self, order: EpochOrder, numbers: Tensor, epoch: int, batch: int, batches_per_update: int
    ) -> list[MicroBatch]:
        """This process's micro-batches of one global batch; every process has the same number of them.

        Args:
            order: of the epoch.
            numbers: its samples' numbers, where they are to be.
            epoch, batch: the numbers of the epoch, and of the global batch within it.
            batches_per_update: as for `epoch`.
        """
        bounds = order.bounds
        place_in_update = batch % batches_per_update
        update_start = bounds[batch - place_in_update]
        update_stop = bounds[min(batch - place_in_update + batches_per_update, order.batches)]
        ends_epoch = batch == order.batches - 1
        return self.divide(
            numbers[bounds[batch] : bounds[batch + 1]],
            epoch,
            batch,
            start=bounds[batch],
            update_size=update_stop - update_start,
            ends_update=place_in_update == batches_per_update - 1 or ends_epoch,
            ends_epoch=ends_epoch,
        )

    def divide(
        self,
        numbers: Tensor,
        epoch: int,
        batch: int,
        *,
        start: int,
        update_size: int,
        ends_update: bool,
        ends_epoch: bool,
    ) -> list[MicroBatch]:
        """Divide one global batch into micro-batches, and give those of this process.

        Args:
            numbers: (size,) int64, the numbers of its samples.
            epoch, batch: the numbers of the epoch, and of the global batch within it.
            start: the place of its first sample in the order of the epoch.
            update_size: samples in all global batches of the update.
            ends_update, ends_epoch: whether it is the last one of its update, or of the epoch.
        """
        sharing = self.sharing
        size = len(numbers)
        found = []
        drawn: dict = {}
        for round_number in range(sharing.rounds):
            share = sharing.share_in_round(sharing.rank, round_number)
            positions = positions_of_share(share, start, size, sharing.shares)
            parts = cut_in_pieces(positions, self.pieces) if self.pieces > 1 else [positions]
            for piece, part in enumerate(parts):
                closes_batch = round_number == sharing.rounds - 1 and piece == self.pieces - 1
                found.append(
                    MicroBatch(
                        seed=self.seed,
                        loader=self.number,
                        epoch=epoch,
                        batch=batch,
                        start=start,
                        size=size,
                        shares=sharing.shares,
                        share=share,
                        piece=piece,
                        pieces=self.pieces,
                        round=round_number,
                        rows=len(part),
                        index=numbers[part.start : part.stop : part.step],
                        update_size=update_size,
                        opens_batch=round_number == 0 and piece == 0,
                        closes_batch=closes_batch,
                        completes_share=ends_update and piece == self.pieces - 1,
                        closes_update=closes_batch and ends_update,
                        ends_epoch=closes_batch and ends_epoch,
                        device=self.device,
                        drawn=drawn,
                    )
                )
        return found
