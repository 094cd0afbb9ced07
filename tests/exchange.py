"""One of several gloo processes that average gradients: prints how, and whether all got the same bits, as JSON."""

import hashlib
import json
from collections import Counter

import torch
import torch.distributed as dist
from accelerate.utils import gather_object

from mnist_dist.core import Training, processes
from mnist_dist.run import launch
from mnist_dist.task.networks import MNISTNet

accelerator = launch.start(cpu=True)
calls: Counter[str] = Counter()


def counted(name):
    function = getattr(processes, name)

    def call(*words):
        calls[name] += 1
        return function(*words)

    setattr(processes, name, call)


counted("mean_over_few")
counted("allreduce_hook")

torch.manual_seed(0)
bare = MNISTNet((4, 27_000))  # fc3's gradients fill a bucket of more than 1 MiB, the others one of less
model = Training(accelerator, bare, torch.optim.SGD(bare.parameters()), lambda *_: None).model
images = torch.randn(dist.get_world_size(), 8, 784)
for _ in range(3):  # the buckets are filled anew after the first time
    bare.zero_grad()
    model(images[dist.get_rank()]).square().sum().backward()
found = torch.cat([parameter.grad.flatten() for parameter in bare.parameters()])
bare.zero_grad()
bare(images.flatten(0, 1)).square().sum().backward()
expected = torch.cat([parameter.grad.flatten() for parameter in bare.parameters()]) / dist.get_world_size()
digests = gather_object([hashlib.sha256(found.numpy().tobytes()).hexdigest()])
if accelerator.is_main_process:
    close = torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    print(json.dumps({"calls": calls, "same_bits": len(set(digests)) == 1, "right": close}))
launch.run(lambda: None, "exchange.py")
