"""Who works on which samples of a global batch.

Let P be an epoch's order of the samples, B the size of a global batch and V the number of shares.
Global batch k is P[kB:(k+1)B], and position p of P is in share p mod V: nothing is padded, repeated
or dropped, and two shares of a batch differ by at most one sample. A process has one share; or V is
fixed (virtual processes) and it works through several of them one by one, so that no tensor's
shape, and so no bit, depends on the number of processes.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .randomness import generator_for


@dataclass(frozen=True)
class Sharing:
    """How the shares of every global batch are dealt to the processes.

    Attributes:
        shares: V, the shares of a global batch.
        world: W, the number of processes.
        rank: the number of this process, from 0.
        virtual: whether V was set by the user (virtual processes); otherwise V equals W.
    """

    shares: int
    world: int
    rank: int
    virtual: bool = False

    def shares_of(self, rank: int) -> range:
        """The shares that a process works on."""
        first = rank * self.shares // self.world
        behind_last = (rank + 1) * self.shares // self.world
        return range(first, behind_last)

    @property
    def own_shares(self) -> range:
        """The shares that this process works on."""
        return self.shares_of(self.rank)

    @property
    def rounds(self) -> int:
        """The largest number of shares on a process; one with fewer joins the last round without samples."""
        return -(-self.shares // self.world)

    def share_in_round(self, rank: int, number: int) -> int | None:
        """The share that a process works on in a round, from 0; None if it has no more."""
        shares = self.shares_of(rank)
        return shares[number] if number < len(shares) else None


def positions_of_share(share: int | None, start: int, size: int, shares: int) -> range:
    """The places within a global batch of the samples of one share.

    Args:
        share: its number; None for the empty share of a process that has no more.
        start: the place of the batch's first sample in the epoch's order.
        size: samples in the global batch.
        shares: V.
    """
    if share is None:
        return range(0)
    return range((share - start) % shares, size, shares)


def cut_in_pieces(positions: range, pieces: int) -> list[range]:
    """Cut positions into pieces whose lengths differ by at most one, the longer ones first."""
    length, longer = divmod(len(positions), pieces)
    cuts = [number * length + min(number, longer) for number in range(pieces + 1)]
    return [positions[cuts[number] : cuts[number + 1]] for number in range(pieces)]


@dataclass(eq=False)
class MicroBatch:
    """The rows a process handles in one step: a share of a global batch, or a piece of one; n may be 0.

    Attributes:
        seed, loader, epoch, batch: the seed of the training, the loader's number, the epoch and the
            number of the global batch within it, all from 0. The batch's random numbers depend on
            these alone, and those of `rand` not on the loader.
        start: the place of the global batch's first sample in the order of the epoch.
        size: samples in the global batch.
        shares: V, the shares that the global batch is divided into.
        share: the index of the share; None if this process has no shares left in this batch and
            only takes part in communication.
        piece, pieces: the number of the piece of the share, and how many there are.
        round: the number of the share among those of this process.
        rows: n.
        index: (n,) int64, the samples' numbers in the data set.
        update_size: samples in all global batches of the update.
        opens_batch, closes_batch: whether it is this process's first or last micro-batch of the
            global batch.
        completes_share: whether it is the last of its share in the update.
        closes_update: whether it is this process's last micro-batch of the update; the optimizer
            steps after it.
        ends_epoch: whether it is this process's last micro-batch of the epoch.
        device: where random numbers are drawn.
        drawn: random numbers for the whole global batch, shared by its micro-batches.
    """

    seed: int
    loader: int
    epoch: int
    batch: int
    start: int
    size: int
    shares: int
    share: int | None
    piece: int
    pieces: int
    round: int
    rows: int
    index: Any
    update_size: int
    opens_batch: bool
    closes_batch: bool
    completes_share: bool
    closes_update: bool
    ends_epoch: bool
    device: Any = "cpu"
    drawn: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    @property
    def positions(self) -> range:
        """The samples' places in the global batch."""
        whole = positions_of_share(self.share, self.start, self.size, self.shares)
        return cut_in_pieces(whole, self.pieces)[self.piece] if self.pieces > 1 else whole

    def __len__(self) -> int:
        return self.rows

    def rand(self, purpose: str, *shape: int, normal: bool = False) -> Tensor:
        """Random numbers for the samples of this micro-batch, taken from those of the whole global batch.

        Every sample has its own numbers, whichever process draws them: use this, and not
        `torch.rand`, for dropout or distortions that are to be the same at any number of processes.

        Args:
            purpose: what they are for; numbers for two purposes are independent. They depend on the
                seed, the loader, the epoch and the batch.
            shape: of the numbers for one sample.
            normal: draw from the standard normal distribution, and not uniformly from [0, 1).

        Returns:
            (n, *shape) float32 on the accelerator's device.
        """
        key = purpose, shape, normal
        if key not in self.drawn:
            generator = generator_for(
                purpose, self.seed, self.epoch, self.batch, device=self.device
            )
            draw = torch.randn if normal else torch.rand
            self.drawn[key] = draw(self.size, *shape, generator=generator, device=self.device)
        positions = self.positions
        own_rows = self.drawn[key][positions.start : positions.stop : positions.step]
        return own_rows.clone()  # a copy: the caller may modify it
