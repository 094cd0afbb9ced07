"""What people would run instead of this project, each as one self-contained loop.

    python benchmarks/baselines.py original --data-dir data
    torchrun --nproc-per-node 2 benchmarks/baselines.py floor --data-dir data --batch-size 512

Prints one JSON line.

original: the single-file script that this project grew from: torchvision transforms per sample,
    DataLoader, Adam.
accelerate: the loop that Accelerate's documentation teaches, on the same model and data.
lightning: the same model under Lightning's Trainer, with its progress bar, logger and checkpoints
    off (pip install lightning).
classic-cnn: the two convolutions and the Adadelta schedule of the best-known PyTorch MNIST example.
floor: the limit: a hand-written loop over tensors in memory, without a framework; under torchrun
    hand-written DDP.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))
TEST = 10_000
SWITCHED_OFF = (
    "logger",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
)


class Record:
    """Seconds of training and test accuracy of each epoch."""

    def __init__(self, device: str, until: float) -> None:
        self.device = device
        self.until = until
        self.seconds: list[float] = []
        self.accuracy: list[float] = []

    def start(self) -> None:
        """Note that an epoch begins."""
        self.begin = time.perf_counter()

    def trained(self) -> None:
        """Note that the epoch's training is done, the device's work included."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)

    def tested(self, accuracy: float) -> bool:
        """Note the epoch's accuracy, and return whether the one asked for is reached."""
        self.accuracy.append(accuracy)
        return accuracy >= self.until


def make_network(*first: nn.Module) -> nn.Sequential:
    """Make the multilayer perceptron, with other layers before it."""
    return nn.Sequential(
        *first,
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def make_loaders(data_dir: str, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Make loaders of training and test samples, as everybody does."""
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    train = datasets.MNIST(data_dir, train=True, transform=transform)
    test = datasets.MNIST(data_dir, train=False, transform=transform)
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, 1000)


def count_correct(model: Callable, test: DataLoader, device: str) -> int:
    """Count the test samples that are classified correctly."""
    correct = 0
    with torch.no_grad():
        for images, labels in test:
            predictions = model(images.to(device)).argmax(1)
            correct += (predictions == labels.to(device)).sum().item()
    return correct


def plain(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    record: Record,
) -> None:
    """Train by the loop that everybody writes."""
    train, test = make_loaders(args.data_dir, args.batch_size)
    decay = 0.7 if isinstance(optimizer, torch.optim.Adadelta) else 1.0
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=decay)
    for _ in range(args.epochs):
        record.start()
        running = 0.0
        model.train()
        for images, labels in train:
            images = images.to(args.device)
            labels = labels.to(args.device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
        record.trained()
        model.eval()
        scheduler.step()
        correct = count_correct(model, test, args.device)
        if record.tested(correct / TEST):
            return


def original(args: argparse.Namespace, record: Record) -> None:
    """Train as the script that this project grew from."""
    model = make_network(nn.Flatten()).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    plain(model, optimizer, args, record)


def classic_cnn(args: argparse.Namespace, record: Record) -> None:
    """Train as the best-known PyTorch MNIST example."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )
    model = model.to(args.device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    plain(model, optimizer, args, record)


def accelerate(args: argparse.Namespace, record: Record) -> None:
    """Train by the loop that Accelerate's documentation teaches."""
    accelerator = Accelerator(cpu=args.device == "cpu")
    train, test = make_loaders(args.data_dir, args.batch_size // WORLD)
    model = make_network(nn.Flatten())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
    for _ in range(args.epochs):
        record.start()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
        record.trained()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in test:
                predictions = model(images).argmax(1)
                predictions, labels = accelerator.gather_for_metrics((predictions, labels))
                correct += (predictions == labels).sum().item()
        if record.tested(correct / TEST):
            return


def lightning(args: argparse.Namespace, record: Record) -> None:
    """Train under Lightning's Trainer."""
    import lightning as L

    warnings.filterwarnings("ignore")

    class Module(L.LightningModule):
        """The perceptron as Lightning wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.net = make_network(nn.Flatten())

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def on_train_epoch_start(self) -> None:
            record.start()

        # After the epoch's last training step.
        def on_validation_epoch_start(self) -> None:
            record.trained()
            self.correct = 0

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            images, labels = batch
            predictions = self.net(images).argmax(1)
            self.correct += (predictions == labels).sum().item()

        def on_validation_epoch_end(self) -> None:
            self.trainer.should_stop = record.tested(self.correct / TEST)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    switched_off: dict[str, Any] = dict.fromkeys(SWITCHED_OFF, False)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        num_sanity_val_steps=0,
        **switched_off,
    )
    train, test = make_loaders(args.data_dir, args.batch_size)
    trainer.fit(Module(), train, test)


def load_tensors(data_dir: str, device: str, *, train: bool) -> tuple[Tensor, Tensor]:
    """Load normalised images (N, 784) and labels (N,), whole, to the device."""
    raw = datasets.MNIST(data_dir, train)
    images = raw.data.to(device).float().div(255).sub(0.1307).div(0.3081)
    return images.flatten(1), raw.targets.to(device)


def floor(args: argparse.Namespace, record: Record) -> None:
    """Train by a loop as fast as one can write it by hand."""
    device = args.device
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if WORLD > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    images, labels = load_tensors(args.data_dir, device, train=True)
    test_images, test_labels = load_tensors(args.data_dir, device, train=False)
    bare = make_network().to(device)
    model: nn.Module = bare
    if WORLD > 1:
        model = DistributedDataParallel(bare, gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-3, fused=True)
    share = args.batch_size // WORLD
    for epoch in range(args.epochs):
        record.start()
        generator = torch.Generator().manual_seed(args.seed + epoch)
        order = torch.randperm(len(labels), generator=generator)
        mine = order[RANK::WORLD].to(device)
        for begin in range(0, len(mine), share):
            index = mine[begin : begin + share]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[index]), labels[index])
            loss.backward()
            optimizer.step()
        if WORLD > 1:
            dist.barrier()
        record.trained()
        with torch.no_grad():
            right = bare(test_images).argmax(1) == test_labels
            accuracy = right.float().mean().item()
        if record.tested(accuracy):
            return


PROGRAMS = {
    "original": original,
    "accelerate": accelerate,
    "lightning": lightning,
    "classic-cnn": classic_cnn,
    "floor": floor,
}


def main() -> None:
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"
    device = "cuda" if torch.cuda.is_available() and not wants_cpu else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=PROGRAMS)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default=device)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--until",
        type=float,
        default=2.0,
        help="end after the epoch that reaches this test accuracy",
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    record = Record(args.device, args.until)
    PROGRAMS[args.name](args, record)
    if RANK == 0:
        found = {
            "epoch_seconds": record.seconds,
            "test_accuracy": record.accuracy,
        }
        print(json.dumps(found), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()
        os._exit(0)  # without what is left of gloo's threads, which can abort a process


if __name__ == "__main__":
    main()
