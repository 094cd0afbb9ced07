"""A training that is asked to stop, and resumed from a checkpoint within an epoch."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.utils import (
    gather_object,
)
from exact_data import (
    SAMPLES,
    SEED,
    accelerator,
    mlp,
    numbers,
)
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import MeanLoss, Stopped
from mnist_dist.core.checkpointing import Checkpoints


class Notes:
    """Plain values that survive a stop."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"epoch": 0, "seen": [], "losses": []}

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


class Run:
    """A float32 training with dropout, a schedule, an average of its weights and checkpoints."""

    EPOCHS = 4
    EVERY = 3

    def __init__(self, run: Path) -> None:
        torch.manual_seed(SEED)
        self.accelerator = accelerator(micro_batches=2)
        self.model = mlp(6, 8, 3).float()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        scheduler = ExponentialLR(optimizer, 0.95)
        loader = DataLoader(
            TensorDataset(numbers(SAMPLES, 6).float(), numbers(SAMPLES, below=3)), 4, shuffle=True
        )
        prepared = self.accelerator.prepare(self.model, optimizer, loader, scheduler)
        self.prepared, self.optimizer, self.loader, self.scheduler = prepared
        self.average = AveragedModel(self.model)
        self.mean_loss = MeanLoss(self.accelerator)
        self.notes = Notes()
        self.accelerator.register_for_checkpointing(self.average, self.mean_loss, self.notes)
        self.checkpoints = Checkpoints(self.accelerator, run, {"--seed": SEED}, self.EVERY)

    def train(self, signal_at: int = 0) -> None:
        """Train to the end, or until one process is sent a signal."""
        values = self.notes.values
        while values["epoch"] < self.EPOCHS:
            for inputs, labels in self.loader:
                micro_batch = self.accelerator.micro_batch
                kept = micro_batch.rand("dropout", 6) >= 0.25
                loss = F.cross_entropy(self.prepared(inputs * kept), labels)
                self.accelerator.backward(loss)
                self.mean_loss.update(loss)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                values["seen"].append(micro_batch.index.tolist())
                if micro_batch.closes_update:
                    self.average.update_parameters(self.model)
                    if (
                        self.accelerator.updates == signal_at
                        and self.accelerator.process_index == 0
                    ):
                        os.kill(os.getpid(), signal.SIGTERM)
                self.checkpoints.after_update()
            values["losses"].append(self.mean_loss.compute())
            values["epoch"] += 1
            self.mean_loss.reset()
            self.checkpoints.save(last=values["epoch"] == self.EPOCHS)

    def state(self) -> dict[str, Any]:
        """All that it has come to."""
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.scheduler.last_epoch,
            "average": self.average.state_dict(),
            "notes": self.notes.values,
        }


def stop_and_resume(folder: Path) -> dict[str, Any]:
    """A run that is never stopped, and the same stopped by a signal to one process, killed, and resumed."""
    whole = Run(folder / "whole")
    whole.train()
    first = Run(folder / "stopped")
    stopped_at = 0
    try:
        with patch("mnist_dist.core.stopping.MOST_SECONDS", 0):  # ask after every update
            first.train(signal_at=5)
    except Stopped:
        stopped_at = first.accelerator.updates
    # As if it had been killed: back to the checkpoint before, within an epoch.
    if whole.accelerator.is_main_process:
        shutil.rmtree(max((folder / "stopped" / "checkpoints").glob("step-*")))
    whole.accelerator.wait_for_everyone()
    second = Run(folder / "stopped")
    assert second.checkpoints.resume()
    resumed_at = second.accelerator.updates
    within = second.loader.state_dict()["batch"]
    second.train()
    return {
        "whole": whole.state(),
        "resumed": second.state(),
        "stopped_at": gather_object([stopped_at]),
        "resumed_at": resumed_at,
        "within": within,
    }
