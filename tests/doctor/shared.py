"""A sound training in plain PyTorch: one global batch, shared out, and gradients summed by hand."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
rank = dist.get_rank()
world = dist.get_world_size()
output = Path(sys.argv[1])

torch.manual_seed(0)
dataset = TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=24 // world, sampler=sampler)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for epoch in range(2):
    sampler.set_epoch(epoch)
    for inputs, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="rounded" in sys.argv):
            loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
        optimizer.step()

if rank == 0:
    torch.save(model.state_dict(), output / "model.pth")
dist.destroy_process_group()
