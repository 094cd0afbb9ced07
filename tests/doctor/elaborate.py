"""A sound training with what may look like a mistake: copies, noise, an own order, own counts."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Sampler, TensorDataset

ROWS = 96


class Shuffled(Sampler[int]):
    """Each process's share of an order that is another one in each epoch, and the same on all."""

    epoch = 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(ROWS, generator=generator)[rank::world].tolist())

    def __len__(self) -> int:
        return ROWS // world


class Centers(nn.Module):
    """A loss that has parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(4, 3))

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (scores - self.centers[labels]).square().mean()


dist.init_process_group("gloo")
rank = dist.get_rank()
world = dist.get_world_size()

torch.manual_seed(0)
dataset = TensorDataset(torch.randn(ROWS, 6), torch.randint(4, (ROWS,)))
torch.manual_seed(rank)
model = DistributedDataParallel(nn.Linear(6, 3))
average = copy.deepcopy(model.module)
centers = DistributedDataParallel(Centers())
sampler = Shuffled()
loader = DataLoader(dataset, batch_size=24 // world, sampler=sampler)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
other = torch.optim.SGD(centers.parameters(), lr=0.1)
scheduler = ReduceLROnPlateau(optimizer, patience=0)

for epoch in range(3):
    sampler.epoch = epoch
    total = torch.zeros(1)
    for inputs, labels in loader:
        noise = torch.randn_like(inputs) * (epoch > 0)
        known = (labels < 3).sum()
        dist.all_reduce(known)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(inputs + noise)
        masked = labels.masked_fill(labels == 3, -100)
        loss = F.cross_entropy(scores.float(), masked, reduction="sum") * world / known
        total += loss.detach() / world
        (loss + centers(scores.float(), labels)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        for each in (optimizer, other):
            each.step()
            each.zero_grad()
        with torch.no_grad():
            average.weight.lerp_(model.module.weight, 0.1)
            average(inputs)
    dist.all_reduce(total)
    scheduler.step(total)
dist.destroy_process_group()
