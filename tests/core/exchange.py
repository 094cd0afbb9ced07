"""One of several gloo processes that add up gradients: prints how, and whether all got the same bits, as JSON."""

import hashlib
import json
from collections import Counter
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate.utils import gather_object

from mnist_dist.core import ExactAccelerator
from mnist_dist.core.exchange import GradientSum, PeerExchange
from mnist_dist.core.sharing import Sharing
from mnist_dist.core.update import take_gradients
from mnist_dist.task.networks import MNISTNet

accelerator = ExactAccelerator(cpu=True)
rank, world = dist.get_rank(), dist.get_world_size()
calls: Counter[str] = Counter()
found, expected = [], []


def counted(owner, name):
    function = getattr(owner, name)

    def call(*words):
        calls[name] += 1
        return function(*words)

    return patch.object(owner, name, call)


torch.manual_seed(0)
for units, as_on_nccl in ((4, False), (1400, False), (4, True)):  # less than 1 MiB, and more
    model, images = MNISTNet((units,)), torch.randn(world, 8, 784)
    parameters = list(model.parameters())
    gradient_sum = GradientSum([*parameters], Sharing(world, world, rank, virtual=as_on_nccl))
    if as_on_nccl and isinstance(gradient_sum.exchange, PeerExchange):
        gradient_sum.exchange.connections = None  # which NCCL does not have
    gradients = []
    for _ in range(3):
        model.zero_grad()
        model(images[rank]).square().sum().backward()
        gradient_sum.add(rank, take_gradients(parameters, keep=True), complete=True)
        with counted(PeerExchange, "all_sums"), counted(dist, "all_reduce"):
            gradients = gradient_sum.total()
    found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    model.zero_grad()
    model(images.flatten(0, 1)).square().sum().backward()
    wanted = [each.grad for each in parameters if each.grad is not None]
    expected.append(torch.cat([gradient.flatten() for gradient in wanted]))
digests = gather_object([hashlib.sha256(torch.cat(found).numpy().tobytes()).hexdigest()])
if accelerator.is_main_process:
    close = torch.allclose(torch.cat(found), torch.cat(expected), rtol=1e-3, atol=1e-4)
    print(json.dumps({"calls": calls, "same_bits": len(set(digests)) == 1, "right": close}))
accelerator.end_training()
