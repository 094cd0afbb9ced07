"""Train a network on pictures, the same on any number of processes.

python examples/pictures.py                      stripes, which are drawn here
python examples/pictures.py --data FOLDER        a folder with a folder of pictures for each class
python examples/pictures.py --data FILE.npz      arrays `images` and `labels`
torchrun --nproc-per-node 2 examples/pictures.py --cpu --model resnet18 --virtual-processes 8

This is the training loop from Accelerate's documentation. Pictures are read when their batch is
due, by the workers of a `DataLoader`, which also augment the training pictures (random crop, flip,
colour jitter). With --virtual-processes N, even torchvision's ResNet-18, with its batch
normalisation, gives bit-identical results on 1 to N processes.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a clone that is not installed

from mnist_dist.core import (
    Checkpoints,
    ExactAccelerator,
    ExactDataLoader,
    MeanLoss,
    all_or_none,
    announce,
    as_stored,
    check_same_across_processes,
    generator_for,
)
from mnist_dist.run import command_line, folder, launch, settings
from mnist_dist.run.progress import progress_bar
from mnist_dist.run.stopwatch import Stopwatch
from mnist_dist.run.tracking import Tracker
from mnist_dist.run.weights import save_weights
from mnist_dist.tools.pictures.sets import PictureArray, PictureSet, open_pictures

SIDES = {"small": 32, "resnet18": 64}  # pixels per side that pictures are resized to
HELD_OUT = 6  # one of so many pictures is held out, to test on
STRIPES = 600  # pictures that are drawn here


@dataclass(frozen=True, kw_only=True)
class Config(settings.ScriptConfig):
    """Train a network on pictures, the same on any number of processes."""

    data: Path | None = None
    """Pictures in a folder for each class, or a .npz file; default: stripes."""
    model: Literal["small", "resnet18"] = "small"
    """Two convolutions, or torchvision's ResNet-18, whose batch normalisation then covers the global batch."""
    plain: bool = False
    """No random augmentation of the pictures (crop, flip, colour jitter)."""
    workers: int = 2
    """DataLoader workers per training process; 0: it reads the pictures itself."""

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        possible = 0 <= self.workers <= 64
        settings.require(possible, "--workers", self.workers, "a number from 0 to 64")


# The data.


class Pictures(Dataset):
    """Some of the pictures, as tensors (3, side, side), with the numbers of their classes.

    Args:
        pictures: all of them.
        numbers: indices of the pictures in this subset.
        transform: makes a tensor of a picture. What it draws at random depends on the seed, the
            epoch and the picture, whichever process or worker reads it.
        side: pixels per side that the transform needs.
    """

    def __init__(
        self,
        pictures: PictureSet,
        numbers: list[int],
        transform: v2.Compose,
        side: int,
    ) -> None:
        self.pictures = pictures
        self.numbers = numbers
        self.transform = transform
        self.side = side

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        number = self.numbers[place]
        picture = self.pictures.read(number, self.side)
        return self.transform(picture), self.pictures.labels[number]


def stripes() -> PictureArray:
    """Upright, level and slanting stripes, in two colours each."""
    labels = np.arange(STRIPES) % 3
    column = np.arange(32)
    row = column[:, None]
    upright = column + 0 * row
    level = 0 * column + row
    slanting = column + row
    place = np.stack([upright, level, slanting])[labels]
    random = np.random.default_rng(0)
    width = random.uniform(1, 3, (STRIPES, 1, 1))
    offset = random.uniform(0, 9, (STRIPES, 1, 1))
    wave = np.sin(place / width + offset)
    colour = random.integers(0, 256, (STRIPES, 1, 1, 3), dtype=np.uint8)
    other_colour = random.integers(0, 256, (STRIPES, 1, 1, 3), dtype=np.uint8)
    images = np.where(wave[..., None] > 0, colour, other_colour)
    return PictureArray(images, labels, "stripes")


def transforms(config: Config, dtype: torch.dtype) -> tuple[v2.Compose, v2.Compose]:
    """The transforms from pictures to tensors, for training and for testing."""
    side = SIDES[config.model]
    resize = v2.Resize((side, side))
    at_random = [
        v2.RandomCrop(side, padding=side // 8, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
        ),
    ]
    as_tensor = [v2.ToImage(), v2.ToDtype(dtype, scale=True)]
    test = v2.Compose([resize, *as_tensor])
    if config.plain:
        return test, test
    train = v2.Compose([resize, *at_random, *as_tensor])
    return train, test


def make_loaders(
    config: Config,
    pictures: PictureSet,
    dtype: torch.dtype,
) -> tuple[DataLoader, DataLoader]:
    """The pictures to train on, and those held out."""
    generator = generator_for("held out", config.seed)
    order = torch.randperm(len(pictures.labels), generator=generator).tolist()
    held_out = len(order) // HELD_OUT
    side = SIDES[config.model]
    train_transform, test_transform = transforms(config, dtype)
    train = Pictures(pictures, order[held_out:], train_transform, side)
    test = Pictures(pictures, order[:held_out], test_transform, side)
    options: dict[str, Any] = {
        "batch_size": config.batch_size,  # of all processes together
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
    }
    train_loader = DataLoader(train, shuffle=True, **options)
    test_loader = DataLoader(test, **options)
    return train_loader, test_loader


# The model.


def build(name: str, classes: int) -> nn.Module:
    """The network of that name, with new weights."""
    if name == "resnet18":
        return resnet18(weights=None, num_classes=classes)
    side_after_pooling = SIDES[name] // 4 - 2
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * side_after_pooling**2, classes),
    )


def evaluate(
    accelerator: ExactAccelerator,
    network: nn.Module,
    loader: ExactDataLoader,
) -> dict[str, Any]:
    """The mean loss on the pictures held out, and how many of them are classified right."""
    losses: list[float] = []
    correct = 0
    with as_stored(network):
        for images, labels in loader:
            scores = network(images)
            loss_of_each = F.cross_entropy(scores, labels, reduction="none")
            is_right = scores.argmax(dim=1) == labels
            of_all = accelerator.gather_for_metrics((loss_of_each, is_right))
            loss_of_each, is_right = of_all
            losses += loss_of_each.tolist()
            correct += int(is_right.sum())
    total = len(losses)
    return {
        "test_loss": math.fsum(losses) / total,  # fsum's result does not depend on the order
        "test_accuracy": correct / total,
        "test_correct": correct,
        "test_total": total,
    }


def main() -> None:
    """Train, evaluate after every epoch, and leave the weights and the figures."""
    # The settings, the processes, and the pictures, on which all processes must agree.
    config: Config = command_line.parse(Config)
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(
        config.cpu,
        dtype=dtype,
        virtual_processes=config.virtual_processes,
        seed=config.seed,
    )
    with all_or_none():
        pictures = open_pictures(config.data) if config.data else stripes()
    about = command_line.as_json(config) | {"classes": pictures.classes, "digest": pictures.digest}
    check_same_across_processes("the settings or pictures", about)
    train_loader, test_loader = make_loaders(config, pictures, dtype)

    # The model and its optimizer. The rate rises at first and then stays, so that a run may be
    # given more epochs later.
    torch.manual_seed(config.seed)
    network = build(config.model, len(pictures.classes)).to(accelerator.device, dtype)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        network,
        optimizer,
        train_loader,
        test_loader,
        scheduler,
    )

    # Open the run's folder, set up its tracker and checkpoints, and resume if asked to.
    run = folder.open_run(config.output_dir, "pictures", config.resume, weights="model.pth")
    tracker = Tracker(accelerator, run, about)
    train_loss = MeanLoss(accelerator)
    stopwatch = Stopwatch()
    accelerator.register_for_checkpointing(tracker, train_loss, stopwatch)
    names = ["batch_size", "virtual_processes", "seed", "dtype", "model", "plain", "digest"]
    fixed = {name: about[name] for name in names} | accelerator.bits
    checkpoints = Checkpoints(accelerator, run.folder, fixed, config.checkpoint_every)
    folder.restore_run(run, checkpoints, train_loader, config.epochs)

    with tracker:
        for epoch in range(train_loader.next_epoch, config.epochs):
            stopwatch.start_epoch()
            model.train()
            title = f"epoch {epoch + 1}/{config.epochs}"
            for images, labels in progress_bar(accelerator, train_loader, title):
                loss = F.cross_entropy(model(images), labels)
                train_loss.update(loss)
                accelerator.backward(loss)
                learning_rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                checkpoints.after_update()

            line = {
                "epoch": epoch + 1,
                "global_step": accelerator.updates,
                "train_loss": train_loss.compute(),
                "learning_rate": learning_rate,
                "samples_per_second": len(train_loader.dataset) / stopwatch.end_epoch(),
            }
            train_loss.reset()
            line |= evaluate(accelerator, network, test_loader)
            tracker.log_epoch(line)
            announce(
                f"epoch {epoch + 1}/{config.epochs}  loss {line['train_loss']:.4f}  "
                f"right {line['test_correct']} of {line['test_total']}"
            )
            checkpoints.save(last=epoch + 1 == config.epochs)
        save_weights(run.folder / "model.pth", network)


if __name__ == "__main__":
    launch.run(main, "pictures.py")
