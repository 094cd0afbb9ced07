"""A sound training in plain DDP, which `planted_faults.py` changes a line or two of."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS = 2

dist.init_process_group("gloo")
rank = dist.get_rank()
world = dist.get_world_size()
output = Path(sys.argv[1])

torch.manual_seed(0)
dataset = TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
tested = TensorDataset(torch.randn(48, 6), torch.randint(3, (48,)))
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
model = DistributedDataParallel(model)
torch.manual_seed(rank)

sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=8, sampler=sampler)
test_loader = DataLoader(tested, batch_size=8, sampler=DistributedSampler(tested, shuffle=False))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))

for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)
    model.train()
    for number, (inputs, labels) in enumerate(loader):  # noqa: B007
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    counts = torch.zeros(2)
    with torch.no_grad():
        for inputs, labels in test_loader:
            right = model(inputs).argmax(1) == labels
            counts += torch.tensor([right.sum(), len(labels)])
    dist.all_reduce(counts)

if rank == 0:
    torch.save(model.state_dict(), output / "model.pth")
torch.save(torch.get_rng_state(), output / f"random-{rank}.pth")
dist.destroy_process_group()
