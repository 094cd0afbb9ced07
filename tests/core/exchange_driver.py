"""One of several gloo processes that add up gradients: prints how, and whether all got the same bits, as JSON."""

import hashlib
import json
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor

from mnist_dist.core import ExactAccelerator
from mnist_dist.core.exchange import GradientSum, PeerExchange
from mnist_dist.core.sharing import Sharing
from mnist_dist.core.update import take_gradients
from mnist_dist.task.networks import MNISTNet

SMALL, LARGE = 4, 1400  # units, with which the gradients have less than 1 MiB, and more
UPDATES = 3

calls: Counter[str] = Counter()


def counted(owner: Any, name: str) -> AbstractContextManager[Any]:
    """Count the calls of a function."""
    function = getattr(owner, name)

    def call(*words: Any) -> Any:
        calls[name] += 1
        return function(*words)

    return patch.object(owner, name, call)


def flat(tensors: list[Tensor]) -> Tensor:
    """All numbers in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def exchanged(model: MNISTNet, images: Tensor, *, as_on_nccl: bool) -> Tensor:
    """The gradient of all processes' images, which these processes add up."""
    rank, world = dist.get_rank(), dist.get_world_size()
    parameters = list(model.parameters())
    sharing = Sharing(world, world, rank, virtual=as_on_nccl)
    gradient_sum = GradientSum([*parameters], sharing)
    if as_on_nccl and isinstance(gradient_sum.exchange, PeerExchange):
        gradient_sum.exchange.connections = None  # which NCCL does not have
    total: list[Tensor] = []
    for _ in range(UPDATES):
        model.zero_grad()
        model(images[rank]).square().sum().backward()
        gradients = take_gradients(parameters, keep=True)
        gradient_sum.add(rank, gradients, complete=True)
        with counted(PeerExchange, "all_sums"), counted(dist, "all_reduce"):
            total = gradient_sum.total()
    return flat(total)


def computed_alone(model: MNISTNet, images: Tensor) -> Tensor:
    """The same gradient, which this process computes by itself."""
    model.zero_grad()
    model(images.flatten(0, 1)).square().sum().backward()
    return flat([each.grad for each in model.parameters() if each.grad is not None])


def main() -> None:
    accelerator = ExactAccelerator(cpu=True)
    torch.manual_seed(0)
    found = []
    expected = []
    for units, as_on_nccl in ((SMALL, False), (LARGE, False), (SMALL, True)):
        model = MNISTNet((units,))
        images = torch.randn(accelerator.num_processes, 8, 784)
        found.append(exchanged(model, images, as_on_nccl=as_on_nccl))
        expected.append(computed_alone(model, images))
    bits = flat(found).numpy().tobytes()
    digests = gather_object([hashlib.sha256(bits).hexdigest()])
    if accelerator.is_main_process:
        is_right = torch.allclose(flat(found), flat(expected), rtol=1e-3, atol=1e-4)
        same_bits = len(set(digests)) == 1
        print(json.dumps({"calls": calls, "same_bits": same_bits, "right": is_right}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
