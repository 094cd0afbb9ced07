"""What people would run instead of this project, each as one self-contained loop; prints one JSON line.

    python benchmarks/baselines.py original --data-dir data
    torchrun --nproc-per-node 2 benchmarks/baselines.py floor --data-dir data --batch-size 512

original: the single-file script that this project grew from: torchvision transforms per sample, DataLoader, Adam.
accelerate: the loop that Accelerate's documentation teaches, on the same model and data.
lightning: the same model under Lightning's Trainer, with its progress bar, logger and checkpoints off (pip install
    lightning).
classic-cnn: the two convolutions and the Adadelta schedule of the best-known PyTorch MNIST example.
floor: the limit: a hand-written loop over tensors in memory, without a framework; under torchrun hand-written DDP.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

WORLD, RANK = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


class Record:
    """Seconds of training and test accuracy of each epoch."""

    def __init__(self, device: str, until: float) -> None:
        self.device, self.until = device, until
        self.seconds: list[float] = []
        self.accuracy: list[float] = []

    def start(self) -> None:
        self.begin = time.perf_counter()

    def trained(self) -> None:
        """The epoch's training is done, the device's work included."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)

    def tested(self, accuracy: float) -> bool:
        """The epoch's test is done; whether the accuracy asked for is reached."""
        self.accuracy.append(accuracy)
        return accuracy >= self.until


def network(*first: nn.Module) -> nn.Sequential:
    return nn.Sequential(*first, nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def loaders(data_dir: str, batch_size: int) -> tuple[DataLoader, DataLoader]:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train, test = (datasets.MNIST(data_dir, train, transform) for train in (True, False))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, 1000)


def correct(model: Callable, test: DataLoader, device: str) -> int:
    with torch.no_grad():
        return sum((model(images.to(device)).argmax(1) == labels.to(device)).sum().item() for images, labels in test)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace, record: Record) -> None:
    """The loop that everybody writes."""
    train, test = loaders(args.data_dir, args.batch_size)
    decay = 0.7 if isinstance(optimizer, torch.optim.Adadelta) else 1.0
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=decay)
    for _ in range(args.epochs):
        record.start()
        running = 0.0
        model.train()
        for images, labels in train:
            images, labels = images.to(args.device), labels.to(args.device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
        record.trained()
        model.eval()
        scheduler.step()
        if record.tested(correct(model, test, args.device) / 10_000):
            return


def original(args: argparse.Namespace, record: Record) -> None:
    model = network(nn.Flatten()).to(args.device)
    plain(model, torch.optim.Adam(model.parameters(), lr=1e-3), args, record)


def classic_cnn(args: argparse.Namespace, record: Record) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    ).to(args.device)
    plain(model, torch.optim.Adadelta(model.parameters(), lr=1.0), args, record)


def accelerate(args: argparse.Namespace, record: Record) -> None:
    accelerator = Accelerator(cpu=args.device == "cpu")
    train, test = loaders(args.data_dir, args.batch_size // WORLD)
    model = network(nn.Flatten())
    model, optimizer, train, test = accelerator.prepare(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), train, test
    )
    for _ in range(args.epochs):
        record.start()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
        record.trained()
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in test:
                predictions, labels = accelerator.gather_for_metrics((model(images).argmax(1), labels))
                right += (predictions == labels).sum().item()
        if record.tested(right / 10_000):
            return


def lightning(args: argparse.Namespace, record: Record) -> None:
    import lightning as L

    warnings.filterwarnings("ignore")

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(nn.Flatten())

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def on_train_epoch_start(self) -> None:
            record.start()

        def on_validation_epoch_start(self) -> None:  # after the last training step of the epoch
            record.trained()
            self.correct = 0

        def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
            self.correct += (self.net(batch[0]).argmax(1) == batch[1]).sum().item()

        def on_validation_epoch_end(self) -> None:
            self.trainer.should_stop = record.tested(self.correct / 10_000)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    L.Trainer(
        max_epochs=args.epochs,
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        num_sanity_val_steps=0,
    ).fit(Module(), *loaders(args.data_dir, args.batch_size))


def floor(args: argparse.Namespace, record: Record) -> None:
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if args.device == "cuda" else args.device
    if WORLD > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def tensors(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        raw = datasets.MNIST(args.data_dir, train)
        return raw.data.to(device).float().div(255).sub(0.1307).div(0.3081).flatten(1), raw.targets.to(device)

    (images, labels), (test_images, test_labels) = tensors(True), tensors(False)
    bare = network().to(device)
    model = nn.parallel.DistributedDataParallel(bare, gradient_as_bucket_view=True) if WORLD > 1 else bare
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-3, fused=True)
    share = args.batch_size // WORLD
    for epoch in range(args.epochs):
        record.start()
        draw = torch.Generator().manual_seed(args.seed + epoch)
        order = torch.randperm(60_000, generator=draw)[RANK::WORLD].to(device)
        for begin in range(0, len(order), share):
            index = order[begin : begin + share]
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
        if WORLD > 1:
            dist.barrier()
        record.trained()
        with torch.no_grad():
            if record.tested((bare(test_images).argmax(1) == test_labels).float().mean().item()):
                return


PROGRAMS = {
    "original": original,
    "accelerate": accelerate,
    "lightning": lightning,
    "classic-cnn": classic_cnn,
    "floor": floor,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PROGRAMS)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    cpu = os.environ.get("ACCELERATE_USE_CPU") == "true" or not torch.cuda.is_available()
    parser.add_argument("--device", default="cpu" if cpu else "cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=2.0, help="end after the epoch that reaches this test accuracy")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    record = Record(args.device, args.until)
    PROGRAMS[args.name](args, record)
    if RANK == 0:
        print(json.dumps({"epoch_seconds": record.seconds, "test_accuracy": record.accuracy}), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()
        os._exit(0)  # without what is left of gloo's threads, which can abort a process that is done
