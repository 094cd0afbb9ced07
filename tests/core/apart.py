"""What processes do that have no loader in common yet; see test_apart.py.

torchrun --nproc-per-node 2 tests/core/apart.py WHAT FILE
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator


def statistics(file: Path) -> None:
    """Batch statistics from a loader that is not prepared: all processes have all rows."""
    accelerator = ExactAccelerator(cpu=True)
    torch.manual_seed(0)
    rows = torch.randn(30, 3, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    model = accelerator.prepare(network)
    update_bn(DataLoader(TensorDataset(rows), 10), model)
    if accelerator.is_main_process:
        torch.save(accelerator.unwrap_model(model).state_dict(), file)
    accelerator.end_training()


def unconnected(_: Path) -> None:
    """Accelerate's state is made first, without word of the CPU, so that processes do not meet."""
    PartialState()
    ExactAccelerator(cpu=True)


if __name__ == "__main__":
    {"statistics": statistics, "unconnected": unconnected}[sys.argv[1]](Path(sys.argv[2]))
