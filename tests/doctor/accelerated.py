"""A sound training in Accelerate, which `planted_faults.py` changes a line or two of."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR  # noqa: F401
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset  # noqa: F401

EPOCHS = 2

accelerator = Accelerator(cpu=True)
output = Path(sys.argv[1])
set_seed(0)
dataset = TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
tested = TensorDataset(torch.randn(31, 6), torch.randint(3, (31,)))
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
loader = DataLoader(dataset, batch_size=8, shuffle=True)
test_loader = DataLoader(tested, batch_size=8)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))
prepared = accelerator.prepare(model, optimizer, loader, test_loader, scheduler)
model, optimizer, loader, test_loader, scheduler = prepared
set_seed(0, device_specific=True)

for _ in range(EPOCHS):
    model.train()
    for inputs, labels in loader:
        loss = F.cross_entropy(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    right = 0
    for inputs, labels in test_loader:
        with torch.no_grad():
            scores = model(inputs)
        scores, labels = accelerator.gather_for_metrics((scores, labels))
        right += (scores.argmax(1) == labels).sum().item()

if accelerator.is_main_process:
    torch.save(accelerator.unwrap_model(model).state_dict(), output / "model.pth")
accelerator.end_training()
