"""A sound training in plain DDP that goes on from its checkpoint, in the middle of an epoch."""

import itertools
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
BETWEEN = 2  # updates between checkpoints

dist.init_process_group("gloo")
rank = dist.get_rank()
checkpoint = Path(sys.argv[1]) / "checkpoint.pth"
checkpoint.parent.mkdir(exist_ok=True)
own_checkpoint = checkpoint.with_name(f"random-{rank}.pth")

torch.manual_seed(0)
dataset = TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
model = DistributedDataParallel(model)
torch.manual_seed(rank)
sampler = DistributedSampler(dataset)
own = torch.Generator()  # so that a new iteration draws nothing from the masks' random state
loader = DataLoader(dataset, batch_size=8, sampler=sampler, generator=own)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))
begin = 0
done = 0

if "--resume" in sys.argv:
    state = torch.load(checkpoint)
    model.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    begin = state["epoch"]
    done = state["done"]
    torch.set_rng_state(torch.load(own_checkpoint))

for epoch in range(begin, EPOCHS):
    sampler.set_epoch(epoch)
    batches = itertools.islice(enumerate(loader, start=1), done, None)
    for number, (inputs, labels) in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if number % BETWEEN == 0:
            torch.save(torch.get_rng_state(), own_checkpoint)
            state = {
                "model": model.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epoch": epoch,
                "done": number,
            }
            if rank == 0:
                torch.save(state, checkpoint)
            dist.barrier()
    done = 0
dist.destroy_process_group()
