"""A training of two processes, of which the second alone does something; see test_waiting.py.

torchrun --nproc-per-node 2 tests/core/waits_alone.py WHAT FOLDER
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator, waiting

waiting.SECONDS = 2.0


def does_something_else() -> None:
    time.sleep(60)  # elsewhere


def main(what: str, folder: str) -> None:
    accelerator = ExactAccelerator(cpu=True)
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2)
    data = TensorDataset(torch.randn(12, 4), torch.zeros(12, dtype=torch.long))
    model, optimizer, loader = accelerator.prepare(
        network, torch.optim.SGD(network.parameters(), 0.1), DataLoader(data, 2)
    )
    for number, (inputs, labels) in enumerate(loader):
        if what == "all are slow":
            time.sleep(3)
            accelerator.gather(torch.zeros(1))
        elif number == 3 and accelerator.process_index == 1:
            if what == "saves":
                accelerator.save_state(Path(folder) / "state")  # alone
            if what == "ends":
                sys.exit(0)
            break
        accelerator.backward(F.cross_entropy(model(inputs), labels))  # the others
        optimizer.step()
        optimizer.zero_grad()
    if what == "leaves the loop" and accelerator.process_index == 1:
        does_something_else()


if __name__ == "__main__":
    main(*sys.argv[1:])
