"""One Accelerate script, with Accelerate's class and with ours, on 1, 2 and 3 processes.

python benchmarks/one_word.py

trains a small convolutional network with batch normalisation and dropout on randomly rotated digits,
read by two workers, and prints how many of 1,000 test digits each model has right, and a digest of
its weights. `Accelerator` trains another model on every number of processes. `ExactAccelerator` with
virtual processes trains one.
"""

import hashlib
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from accelerate import Accelerator, __version__
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomRotation

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a clone

from mnist_dist.core import ExactAccelerator
from mnist_dist.task.data import Split, load

BATCH = 60  # samples in a global batch, which 1, 2 and 3 processes share evenly
EPOCHS = 2
PROCESSES = (1, 2, 3)


class Digits(Dataset):
    """The images and labels of a split, rotated at random in training."""

    def __init__(self, split: Split, train: bool) -> None:
        self.split = split
        self.transform = RandomRotation(15) if train else nn.Identity()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.split.images[number]), self.split.labels[number]


def network() -> nn.Module:
    """A small network with layers whose behaviour depends on who shares a batch."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * 5 * 5, 10),
    )


def train(accelerator: Accelerator, batch_size: int) -> None:
    """The loop as Accelerate's documentation has it; nothing here knows which class it was given.

    Args:
        accelerator: of either class.
        batch_size: what the loaders are made with.
    """
    set_seed(0)
    data = load("mnist-5k", Path("data"))
    train_data, test_data = Digits(data.train, train=True), Digits(data.test, train=False)
    train_loader = DataLoader(train_data, batch_size=batch_size, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_data, batch_size=batch_size)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, optimizer, train_loader, test_loader
    )
    for _ in range(EPOCHS):
        model.train()
        for images, labels in train_loader:
            loss = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    right = 0
    for images, labels in test_loader:
        with torch.no_grad():
            guesses = model(images).argmax(dim=1)
        guesses, labels = accelerator.gather_for_metrics((guesses, labels))
        right += int((guesses == labels).sum())
    if accelerator.is_main_process:
        weights = accelerator.unwrap_model(model).state_dict().values()
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights))
        print(f"{right} {digest.hexdigest()[:8]}", flush=True)
    accelerator.end_training()


def launched(kind: str, processes: int) -> str:
    """Train on so many processes.

    Args:
        kind: "stock" or "exact".
        processes: how many.

    Returns:
        What the first process printed: the number of test digits it has right, and the digest.
    """
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += [f"--nproc-per-node={processes}", __file__, kind]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Train with both classes on every number of processes, and print a table."""
    versions = f"accelerate {__version__}, torch {torch.__version__}"
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {versions}")
    print(
        "processes   Accelerator(): right, digest   ExactAccelerator(virtual_processes=6): right, digest"
    )
    for processes in PROCESSES:
        stock, exact = launched("stock", processes), launched("exact", processes)
        print(f"{processes:9}   {stock:>30}   {exact:>50}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "stock":
        stock = Accelerator(cpu=True)
        train(stock, BATCH // stock.num_processes)  # there it is the size of a process's own batch
    else:
        train(ExactAccelerator(cpu=True, virtual_processes=6), BATCH)
