"""A sound training in Lightning, which `planted_faults.py` changes a line or two of."""

import os
import sys
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset  # noqa: F401

world = int(os.environ["WORLD_SIZE"])
output = Path(sys.argv[1])
torch.manual_seed(0)
dataset = TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
tested = TensorDataset(torch.randn(48, 6), torch.randint(3, (48,)))


class Classifier(lightning.LightningModule):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.layers(inputs), labels)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        inputs, labels = batch
        right = self.layers(inputs).argmax(1) == labels
        self.log("accuracy", right.float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


model = Classifier()
loader = DataLoader(dataset, batch_size=8, shuffle=True)
test_loader = DataLoader(tested, batch_size=8)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=world,
    strategy="ddp" if world > 1 else "auto",
    max_epochs=2,
    num_sanity_val_steps=0,
    gradient_clip_val=1.0,
    default_root_dir=output,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, loader, test_loader)
