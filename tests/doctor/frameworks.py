"""A sound training in other forms of PyTorch: streams, shards, a compiled model, a scaled loss."""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

_, _, form = sys.argv


class Stream(IterableDataset):
    """Every so-manieth of some rows."""

    def __iter__(self):
        rows = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        for row in rows[dist.get_rank() :: dist.get_world_size()]:
            yield row, (row.sum() > 0).long()


dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
if form == "shards":
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
elif form == "compiled":
    model = DistributedDataParallel(torch.compile(model, backend="eager"))
else:
    model = DistributedDataParallel(model)
if form == "optimizer in parts":
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01)
else:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=form == "scaled")
for _ in range(2):
    for inputs, labels in DataLoader(Stream(), batch_size=8):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(inputs), labels)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
dist.destroy_process_group()
