"""Several gloo processes add up parts of gradients for each other: prints whether bits are right, and bytes sent.

    python tests/core/exchange_parts.py W V

Tensors of several dtypes, whose lengths W does not divide, are summed over V shares; one process that has all shares
says what the bits are to be.
"""

import json
import sys
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from forked import fork

from mnist_dist.core.exchange import GradientSum, ReduceScatterExchange
from mnist_dist.core.sharing import Sharing

SHAPES = [
    ((3, 5), torch.float32),
    ((7,), torch.bfloat16),
    ((1001,), torch.float32),
    ((), torch.float64),
]
UPDATES = 2


def gradients_of(share: int) -> list[torch.Tensor]:
    """The same on every process, large and small numbers, so that another order of summing has other bits."""
    generator = torch.Generator().manual_seed(share)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape, _ in SHAPES]
    return [(each.exp() * 10**3).to(dtype) for each, (_, dtype) in zip(made, SHAPES, strict=True)]


def total(sharing: Sharing) -> list[torch.Tensor]:
    """The sum over all shares, of which this process adds its own."""
    gradient_sum = GradientSum(
        [torch.empty(shape, dtype=dtype) for shape, dtype in SHAPES], sharing
    )
    assert sharing.world == 1 or isinstance(gradient_sum.exchange, ReduceScatterExchange)
    found = []
    for _ in range(UPDATES):
        for share in sharing.own_shares:
            gradient_sum.add(share, gradients_of(share), complete=True)
        found = gradient_sum.total()
    return found


def counting(name: str, sent: list[int]) -> Any:
    """Count the bytes that go to other processes through a function of `torch.distributed`."""
    function = getattr(dist, name)

    def counted(first: Any, own: torch.Tensor, *rest: Any) -> Any:
        world = dist.get_world_size()
        copies = (world - 1) / world if name == "all_to_all_single" else world - 1
        sent.append(int(own.nbytes * copies))
        return function(first, own, *rest)

    return patch.object(dist, name, counted)


def main(world: int, shares: int) -> None:
    """Sum on all processes, and compare with one."""
    PartialState(cpu=True)
    rank = dist.get_rank()
    sent: list[int] = []
    with counting("all_to_all_single", sent), counting("all_gather", sent):
        found = total(Sharing(shares, world, rank, virtual=True))
    alone = total(Sharing(shares, 1, 0, virtual=True))
    right = all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    size = sum(tensor.nbytes for tensor in alone)
    answers = gather_object([(right, sum(sent) / UPDATES / size)])
    if rank == 0:
        print(
            json.dumps(
                {"right": [each for each, _ in answers], "sent": max(sent for _, sent in answers)}
            )
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    fork(int(sys.argv[1]))
    main(int(sys.argv[1]), int(sys.argv[2]))
