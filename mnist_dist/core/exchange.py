"""How the gradients of all shares become one sum, with the same bits on every process.

All sums follow the fixed tree of `tree.py`. A process adds up the subtrees of which it has every
share before it sends anything, so with virtual processes the sum has the same bits on any number of
processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import connections
from .connections import Connections
from .sharing import Sharing
from .tree import ShareRange, Sums, complete_subtrees, tree_sum

# Up to this many bytes, a few processes send their sums to each other instead of all-reducing them.
SMALL_GRADIENT = 1 << 20


class GradientSum:
    """Accumulates gradients share by share, and returns their sum over all shares on all processes.

    Args:
        like: one tensor for each gradient, with its shape, dtype and device.
        sharing: the shares that this process has, and who has the others.
    """

    def __init__(self, like: list[Tensor], sharing: Sharing) -> None:
        self.like = like
        self.sharing = sharing
        self.sums: Sums = {}
        self.exchange = choose_exchange(like, sharing)

    def add(self, share: int | None, gradients: list[Tensor], complete: bool) -> None:
        """Add gradients to those of a share.

        Args:
            share: its number; None if this process has no more shares, and nothing is to be added.
            gradients: like those that the sum was made for; they are kept, not copied.
            complete: whether nothing more will be added to this share before `total` is asked for.
        """
        if share is None:
            return
        key = share, share + 1
        earlier = self.sums.get(key)
        if earlier is not None:
            gradients = list(torch._foreach_add(earlier, gradients))
        self.sums[key] = gradients
        if complete:
            self.add_up(range(self.sharing.own_shares.start, share + 1))

    def add_up(self, held: range) -> None:
        """Put complete shares together as far as the tree allows, to hold few gradients at a time."""
        sums = {}
        for first, stop in complete_subtrees(held, 0, self.sharing.shares):
            sums[first, stop] = tree_sum(self.sums, first, stop)
        for (first, stop), incomplete in self.sums.items():
            if first >= held.stop:
                sums[first, stop] = incomplete
        self.sums = sums

    def total(self) -> list[Tensor]:
        """Return the sum over all shares, the same on every process, and reset for the next sum.

        Every process must call this after the same update.
        """
        sums = self.sums
        self.sums = {}
        if self.exchange:
            sums = self.exchange.all_sums(sums)
        return tree_sum(sums, 0, self.sharing.shares)


def choose_exchange(
    like: list[Tensor], sharing: Sharing
) -> "PeerExchange | ReduceScatterExchange | AllReduce | None":
    """The fastest exchange between processes that is bit-identical where that is promised."""
    if sharing.world == 1:
        return None
    few = sharing.world <= connections.FEW_PROCESSES
    if sharing.virtual:
        return PeerExchange(like, sharing) if few else ReduceScatterExchange(like, sharing)
    small = sum(tensor.nbytes for tensor in like) <= SMALL_GRADIENT
    if few and small and dist.get_backend() == "gloo":
        return PeerExchange(like, sharing)
    return AllReduce(like, sharing)


def ranges_of_processes(sharing: Sharing) -> list[list[ShareRange]]:
    """For each process the ranges of shares that it can add up by itself, the subtrees that it holds completely."""
    found = []
    for rank in range(sharing.world):
        held = sharing.shares_of(rank)
        found.append(complete_subtrees(held, 0, sharing.shares))
    return found


class AllReduce:
    """One all-reduce of all gradients as a flat vector; the backend chooses the order of summation.

    The arguments are those of `GradientSum`.
    """

    def __init__(self, like: list[Tensor], sharing: Sharing) -> None:
        self.like = like
        self.sharing = sharing

    def all_sums(self, mine: Sums) -> Sums:
        """The sum over all shares, from the sums of this process."""
        (gradients,) = mine.values()
        vector = flatten(gradients)
        dist.all_reduce(vector)
        return {(0, self.sharing.shares): unflatten(vector, self.like)}


class PeerExchange:
    """Every process sends its sums to every other, and each adds them along the same tree.

    With gloo, receives are posted one update ahead, so that it can send without a handshake.

    The arguments are those of `GradientSum`.
    """

    def __init__(self, like: list[Tensor], sharing: Sharing) -> None:
        self.like = like
        self.sharing = sharing
        self.ranges_of_others = {}
        for rank, ranges in enumerate(ranges_of_processes(sharing)):
            if rank != sharing.rank and ranges:
                self.ranges_of_others[rank] = ranges
        self.expected: dict[int, Tensor] = {}
        self.receives: list[Any] = []
        on_gloo = dist.get_backend() == "gloo"
        self.connections = Connections() if on_gloo else None

    def all_sums(self, mine: Sums) -> Sums:
        """The sums of every process, from those of this one."""
        rows = torch.stack([flatten(gradients) for gradients in mine.values()])
        if self.connections is None:
            received = self.at_once(rows)
        else:
            received = self.over_gloo(rows, self.connections)
        sums = dict(mine)
        for rank, its_rows in received.items():
            its_ranges = self.ranges_of_others[rank]
            for share_range, row in zip(its_ranges, its_rows, strict=True):
                sums[share_range] = unflatten(row, self.like)
        return sums

    def over_gloo(self, rows: Tensor, connections: Connections) -> dict[int, Tensor]:
        """Send this process's rows to the others; returns those of each other process."""
        if not self.expected:
            self.expect(rows, connections)
        received = self.expected
        messages = self.receives + [connections.send(rows, rank) for rank in received]
        for message in messages:
            message.wait()
        self.expect(rows, connections)
        return received

    def expect(self, rows: Tensor, connections: Connections) -> None:
        """Allocate buffers for what the others will send next, and post the receives."""
        self.expected = self.room_for_others(rows)
        self.receives = [
            connections.receive(its_rows, rank) for rank, its_rows in self.expected.items()
        ]

    def at_once(self, rows: Tensor) -> dict[int, Tensor]:
        """Send and receive in one batch of messages, as NCCL needs it; returns the rows of each other process."""
        received = self.room_for_others(rows)
        sends = [dist.P2POp(dist.isend, rows, rank) for rank in received]
        receives = [dist.P2POp(dist.irecv, its_rows, rank) for rank, its_rows in received.items()]
        for message in dist.batch_isend_irecv(sends + receives):
            message.wait()
        return received

    def room_for_others(self, rows: Tensor) -> dict[int, Tensor]:
        """For each other process memory for its rows."""
        length = rows.shape[1]
        return {
            rank: rows.new_empty(len(ranges), length)
            for rank, ranges in self.ranges_of_others.items()
        }


class ReduceScatterExchange:
    """A reduce-scatter followed by an all-gather; every sum is added along the same tree.

    Each process sends about twice the size of the gradient, however many processes there are, while
    `PeerExchange` sends the whole gradient to every other process. Both give the same bits, because
    sums are computed element by element either way.

    The arguments are those of `GradientSum`.
    """

    def __init__(self, like: list[Tensor], sharing: Sharing) -> None:
        self.like = like
        self.sharing = sharing
        self.ranges = ranges_of_processes(sharing)
        # One vector for each dtype: a sum in a wider one would be rounded at other places.
        self.places_by_dtype: dict[torch.dtype, list[int]] = {}
        for place, tensor in enumerate(like):
            self.places_by_dtype.setdefault(tensor.dtype, []).append(place)

    def all_sums(self, mine: Sums) -> Sums:
        """The sum over all shares, from the sums of this process."""
        total = list(self.like)
        for places in self.places_by_dtype.values():
            rows = []
            for sums in mine.values():
                of_this_dtype = [sums[place] for place in places]
                rows.append(flatten(of_this_dtype))
            vector = self.add_up(torch.stack(rows))
            like = [self.like[place] for place in places]
            for place, tensor in zip(places, unflatten(vector, like), strict=True):
                total[place] = tensor
        return {(0, self.sharing.shares): total}

    def add_up(self, rows: Tensor) -> Tensor:
        """The sum of the rows of all processes.

        Args:
            rows: (S, N), one for each range of shares that this process has added up.

        Returns:
            (N,)
        """
        world = self.sharing.world
        count, length = rows.shape
        part = -(-length // world)
        padded = torch.nn.functional.pad(rows, (0, part * world - length))
        by_row = padded.view(count, world, part)
        by_receiver = by_row.transpose(0, 1).reshape(world * count, part)
        counts = [len(ranges) for ranges in self.ranges]
        received = rows.new_empty(sum(counts), part)
        dist.all_to_all_single(received, by_receiver, counts, [count] * world)

        ranges = [share_range for found in self.ranges for share_range in found]
        sums = {share_range: [row] for share_range, row in zip(ranges, received, strict=True)}
        (own_part,) = tree_sum(sums, 0, self.sharing.shares)
        parts = [torch.empty_like(own_part) for _ in range(world)]
        dist.all_gather(parts, own_part)
        return torch.cat(parts)[:length]


def flatten(gradients: list[Tensor]) -> Tensor:
    """All gradients in one vector, in the widest of their dtypes."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def unflatten(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """All gradients from one vector, each in the dtype and layout that it has where it was computed."""
    lengths = [tensor.numel() for tensor in like]
    parts = vector.split(lengths)
    pairs = zip(parts, like, strict=True)
    return [alike(part.view_as(tensor), tensor) for part, tensor in pairs]


def alike(part: Tensor, tensor: Tensor) -> Tensor:
    """A part of a vector in the dtype and layout of a tensor, so that sums with it have the same bits everywhere."""
    part = part.to(tensor.dtype)
    if part.is_cpu and tensor.is_contiguous():
        return part
    # On GPUs the alignment of memory, too, may decide bits.
    return torch.empty_like(tensor).copy_(part)
