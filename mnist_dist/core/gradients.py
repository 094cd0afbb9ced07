"""The sum of all shares' gradients: the same bits on every process and, for V virtual ones, at any number of them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batches import Sharing
from .processes import PATIENCE


def whole_within(held: range, first: int, stop: int) -> list[tuple[int, int]]:
    """The largest stretches (first, stop) that halving leads to of which a process has every share."""
    if held.start <= first and stop <= held.stop:
        return [(first, stop)]
    halves = (first, (first + stop) // 2), ((first + stop) // 2, stop)
    return [part for a, b in halves if a < held.stop and held.start < b for part in whole_within(held, a, b)]


def total(sums: dict[tuple[int, int], list[Tensor]], first: int, stop: int) -> list[Tensor]:
    """The sum over a stretch of the shares: that over its first half plus that over its second, whoever adds them."""
    if (first, stop) in sums:
        return sums[first, stop]
    middle = (first + stop) // 2
    return [*torch._foreach_add(total(sums, first, middle), total(sums, middle, stop))]


class GradientSum:
    """Takes the gradients of one share after the other, and leaves their sum over all shares."""

    FEW, SMALL = 4, 1 << 20  # processes and bytes up to which each sends its sums to every other, as it is faster

    def __init__(self, parameters: list[nn.Parameter], sharing: Sharing) -> None:
        self.parameters, self.sharing, self.sums = parameters, sharing, dict[tuple[int, int], list[Tensor]]()
        held = [whole_within(sharing.of(rank), 0, sharing.shares) for rank in range(sharing.world)]
        self.others = {rank: parts for rank, parts in enumerate(held) if rank != sharing.rank}
        few = sharing.world <= self.FEW and sum(parameter.nbytes for parameter in parameters) <= self.SMALL
        # Connections to send up and down the ranks: gloo burns time if one has to send and to receive at once.
        gloo = (few or sharing.fixed) and self.others and dist.get_backend() == "gloo"
        self.ways: list = [dist.new_group(backend="gloo", timeout=PATIENCE) for _ in ("up", "down")] if gloo else []
        self.expected: tuple[dict[int, Tensor], list] | None = None

    def take(self, at: int, last: bool = True) -> None:
        """Add the parameters' gradients, 0 where one took no part, to share `at`; after its last piece add shares."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in self.parameters]
        # Autograd may give one to two parameters that are added together: in place it would be changed twice.
        if len({each.untyped_storage()._cdata for each in found}) < len(found):
            found = [each.clone() for each in found]
        share, held = (at, at + 1), range(self.sharing.of(self.sharing.rank).start, at + last)
        sums = self.sums | {share: [*torch._foreach_add(self.sums[share], found)] if share in self.sums else found}
        self.sums = {part: total(sums, *part) for part in whole_within(held, 0, self.sharing.shares) + [share][last:]}
        for parameter in self.parameters:
            parameter.grad = None

    def finish(self) -> None:
        """Let the gradients be the sum over all shares."""
        if self.others:
            mine = torch.cat([each.flatten() for part in self.sums.values() for each in part]).view(len(self.sums), -1)
            if self.ways or self.sharing.fixed:
                self.exchange(mine)
            else:
                dist.all_reduce(mine)
                self.sums = {(0, self.sharing.shares): self.apart(mine[0])}
        for parameter, gradient in zip(self.parameters, total(self.sums, 0, self.sharing.shares), strict=True):
            parameter.grad = gradient
        self.sums.clear()

    def exchange(self, mine: Tensor) -> None:
        """Send this process's sums, one a row, to every other: an all-reduce in one message to each."""
        theirs, messages = self.expected or self.expect(mine)
        if self.ways:
            messages += [dist.isend(mine, rank, self.ways[rank < self.sharing.rank]) for rank in theirs]
        else:
            sends = [dist.P2POp(dist.isend, mine, rank) for rank in theirs]
            messages = dist.batch_isend_irecv(sends + [dist.P2POp(dist.irecv, *each[::-1]) for each in theirs.items()])
        for message in messages:
            message.wait()
        for rank, rows in theirs.items():
            self.sums |= zip(self.others[rank], map(self.apart, rows), strict=True)
        self.expected = self.expect(mine) if self.ways else None

    def expect(self, mine: Tensor) -> tuple[dict[int, Tensor], list]:
        """Memory for what the others will send next, and gloo's messages, which it then sends without asking first."""
        theirs, rank = {r: mine.new_empty(len(s), mine.shape[1]) for r, s in self.others.items()}, self.sharing.rank
        return theirs, [dist.irecv(rows, other, self.ways[rank < other]) for other, rows in theirs.items() if self.ways]

    def apart(self, row: Tensor) -> list[Tensor]:
        """All gradients from a vector, each like its parameter: so a sum has the same bits whoever adds it."""
        parts = zip(self.parameters, row.split([parameter.numel() for parameter in self.parameters]), strict=True)
        alike = [(each, part.view_as(each).to(each.dtype)) for each, part in parts]  # on GPUs alignment may move bits
        return [p if row.is_cpu and each.is_contiguous() else torch.empty_like(each).copy_(p) for each, p in alike]
