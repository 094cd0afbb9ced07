"""The loop of `accelerated.py` with another class, and samples that cannot be shared evenly."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator

shares = int(sys.argv[2])
accelerator = ExactAccelerator(cpu=True, virtual_processes=shares)
output = Path(sys.argv[1])
set_seed(0)
samples = 108 if shares else 101  # batch normalisation wants two rows of each share
dataset = TensorDataset(torch.randn(samples, 6), torch.randint(3, (samples,)))
tested = TensorDataset(torch.randn(31, 6), torch.randint(3, (31,)))
layers = [nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1 if shares else 0.0), nn.Linear(8, 3)]
if shares:
    layers.insert(1, nn.BatchNorm1d(8))
model = nn.Sequential(*layers)
loader = DataLoader(dataset, batch_size=24, shuffle=True)
test_loader = DataLoader(tested, batch_size=16)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = CosineAnnealingLR(optimizer, T_max=2 * len(loader))
prepared = accelerator.prepare(model, optimizer, loader, test_loader, scheduler)
model, optimizer, loader, test_loader, scheduler = prepared

for _ in range(2):
    model.train()
    for inputs, labels in loader:
        accelerator.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    for inputs, labels in test_loader:
        with torch.no_grad():
            scores = model(inputs)
        accelerator.gather_for_metrics((scores, labels))

if accelerator.is_main_process:
    torch.save(accelerator.unwrap_model(model).state_dict(), output / "model.pth")
accelerator.end_training()
