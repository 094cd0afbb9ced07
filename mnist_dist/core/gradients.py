"""The sum of all shares' gradients, with the same bits on every process and, for V virtual ones, at any number of them.

The sum over some shares is that of their first half plus that of their second half, and so on. A process adds what it
has whole, sends the few sums left to the others, and adds theirs: who has which share changes no sum."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batches import Sharing


def whole_within(held: range, first: int, stop: int) -> list[tuple[int, int]]:
    """The largest stretches (first, stop) that halving leads to of which a process has every share."""
    if held.start <= first and stop <= held.stop:
        return [(first, stop)]
    if held.stop <= first or stop <= held.start:
        return []
    middle = (first + stop) // 2
    return whole_within(held, first, middle) + whole_within(held, middle, stop)


def total(sums: dict[tuple[int, int], Tensor], first: int, stop: int) -> Tensor:
    """The sum over a stretch of the shares from those over parts of it, in place."""
    if (first, stop) in sums:
        return sums[first, stop]
    middle = (first + stop) // 2
    return total(sums, first, middle).add_(total(sums, middle, stop))


class GradientSum:
    """Takes the gradients of one share after the other, and leaves their sum over all shares."""

    FEW, SMALL = 4, 1 << 20  # processes and bytes up to which each sends its sums to every other, as it is faster

    def __init__(self, parameters: list[nn.Parameter], sharing: Sharing) -> None:
        self.parameters, self.sharing, self.vectors = parameters, sharing, dict[tuple[int, int], Tensor]()
        self.stretches = [whole_within(sharing.of(rank), 0, sharing.shares) for rank in range(sharing.world)]
        small = sum(parameter.numel() * parameter.element_size() for parameter in parameters) <= self.SMALL
        self.by_exchange = sharing.fixed or (small and 1 < sharing.world <= self.FEW and dist.get_backend() == "gloo")

    def take(self, share: int) -> None:
        """Take the parameters' gradients as those of a share; that of one which took no part is 0."""
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        if self.sharing.shares > 1:
            self.vectors[share, share + 1] = torch.cat([gradient.to_dense().flatten() for gradient in gradients])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if self.sharing.shares == 1 else None

    def finish(self) -> None:
        """Let the gradients be the sum over all shares, of which there are several."""
        if self.by_exchange:
            self.exchange()
            summed = total(self.vectors, 0, self.sharing.shares)
        else:
            (summed,) = self.vectors.values()
            dist.all_reduce(summed)
        self.vectors.clear()
        parts = summed.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            gradient, alike = part.view_as(parameter), part.dtype == parameter.dtype and parameter.is_contiguous()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)

    def exchange(self) -> None:
        """Send this process's sums to every other: an all-reduce in one message to each."""
        rank, stretches = self.sharing.rank, self.stretches
        sums = [total(self.vectors, *stretch) for stretch in stretches[rank]]
        mine = torch.stack(sums) if len(sums) > 1 else sums[0][None]
        held = [mine if other == rank else mine.new_empty(len(s), mine.shape[1]) for other, s in enumerate(stretches)]
        others = [other for other in range(self.sharing.world) if other != rank]
        messages = [dist.P2POp(dist.isend, mine, other) for other in others]  # first: else gloo takes 1.2 times
        messages += [dist.P2POp(dist.irecv, held[other], other) for other in others]
        for message in dist.batch_isend_irecv(messages) if messages else ():
            message.wait()
        self.vectors = dict(zip(sum(stretches, []), (row for rows in held for row in rows), strict=True))
