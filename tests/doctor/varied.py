"""A sound training that does many things otherwise than `plain.py`, none of which is a mistake."""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split


class Network(nn.Module):
    """Takes its inputs by name, and holds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, *, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layer(inputs))) * self.scale


dist.init_process_group("gloo")
rank = dist.get_rank()
world = dist.get_world_size()
output = Path(sys.argv[1])

torch.manual_seed(0)
whole = TensorDataset(torch.randn(125, 6), torch.randint(3, (125,)))
dataset, tested = random_split(whole, [100, 25])
model = DistributedDataParallel(Network())
torch.manual_seed(100 + rank)
sampler = DistributedSampler(dataset, drop_last=True)
loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=1, drop_last=True)
test_loader = DataLoader(tested, batch_size=8)
weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
optimizers = [torch.optim.SGD(weights, lr=0.1), torch.optim.AdamW(others, lr=0.01)]
steps = 2 * (len(loader) // 2)
schedulers = [LambdaLR(each, lambda step: 1 - step / steps) for each in optimizers]

next(iter(test_loader))
for epoch in range(2):
    sampler.set_epoch(epoch)
    model.train()
    for number, (inputs, labels) in enumerate(loader):
        is_last = number % 2 == 1
        with nullcontext() if is_last else model.no_sync():
            loss = F.cross_entropy(model(inputs=inputs), labels) / 2
            loss.backward()
        if is_last:
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
    model.eval()
    if rank == 0:
        with torch.no_grad():
            for inputs, _ in test_loader:
                model.module(inputs=inputs)
    dist.barrier()
    (output / f"log-{rank}.txt").write_text("an own file")

if rank == 0:
    torch.save(model.module.state_dict(), output / "model.pth")
dist.destroy_process_group()
