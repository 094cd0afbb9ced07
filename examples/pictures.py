"""Train a small convolutional network on pictures, the same on any number of processes.

python examples/pictures.py                         600 coloured shapes, drawn here
python examples/pictures.py --data FOLDER_OR_NPZ    a folder for each class; or `images`, uint8, and `labels`
torchrun --nproc-per-node 2 examples/pictures.py --cpu
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from mnist_dist import core
from mnist_dist.run import command_line, folder, launch, tracking, weights
from mnist_dist.task.settings import UsageError, require

SIDE = 32  # pixels that pictures are resized to


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = None  # pictures in a folder for each class, or a .npz file; default: shapes, drawn here
    output_dir: Path | None = None  # default: runs/<time>-pictures
    epochs: int = 10
    batch_size: int = 32  # of the global batch, which all processes share
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    cpu: bool = False
    resume: bool = False
    checkpoint_every: int = 0  # updates; 0: at the ends of epochs only
    wandb: Literal["auto", "online", "offline", "disabled"] = "disabled"

    def check(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "seed": 0, "checkpoint_every": 0}.items():
            value, most = getattr(self, name), 2**32 - 1
            require(least <= value <= most, command_line.flag(name), value, f"a number from {least} to {most:,}")
        require(not self.resume or bool(self.output_dir), "--resume", "alone", "the run's folder as --output-dir, too")


def shapes(count: int = 600) -> tuple[Tensor, Tensor]:
    """What `read` gives, of discs, squares and crosses, each anywhere, in any size and in bright colour on dark."""
    labels, draw = torch.arange(count) % 3, torch.rand(count, 9, 1, 1, generator=core.stream("shapes"))
    line, r = torch.arange(SIDE) / SIDE - 0.3, 0.12 + 0.18 * draw[:, 0]
    x, y = (line - 0.4 * draw[:, 1]).abs(), (line[:, None] - 0.4 * draw[:, 2]).abs()
    square, cross = (x < r) & (y < r), torch.minimum(x, y) < r / 3
    inside = torch.stack([x**2 + y**2 < r**2, square, square & cross])[labels, torch.arange(count), None]
    return (127 * torch.where(inside, 1 + draw[:, 3:6], draw[:, 6:9])).byte(), labels


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, SIDE, SIDE), uint8, and the numbers of their classes (N,), int64."""
    try:
        if path.suffix == ".npz":
            file = np.load(path)
            pictures, names = map(Image.fromarray, file["images"]), file["labels"]
        else:
            found = ImageFolder(path)
            pictures, names = (picture for picture, _ in found), np.array(found.targets)
        small = [np.asarray(picture.convert("RGB").resize((SIDE, SIDE))) for picture in pictures]
    except Exception as error:  # whatever the parsers trip over, these are no pictures
        raise UsageError(f"--data {path} cannot be read ({error}): give what `--help` says") from error
    require(names.shape == (len(small),), "--data", path, f"one label for each of its {len(small)} images")
    classes, labels = np.unique(names, return_inverse=True)
    require(len(small) >= 6 and len(classes) > 1, "--data", path, "6 pictures of 2 classes, or more")
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def main() -> None:
    # The settings, the processes, and the pictures, of which a sixth is held out.
    config: Config = command_line.parse(Config)
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(config.cpu, dtype=dtype)
    with core.all_or_none():
        pictures, labels = read(config.data) if config.data else shapes()
    about = command_line.as_json(config) | {"digest": weights.fingerprint({"pictures": pictures, "labels": labels})}
    core.same_everywhere("the settings or pictures", about)
    order, held = torch.randperm(len(labels), generator=core.stream("held out", config.seed)), len(labels) // 6
    pictures, labels = pictures[order].to(accelerator.device, dtype) / 255, labels[order].to(accelerator.device)
    train = core.GlobalBatches((pictures[held:], labels[held:]), config.batch_size, accelerator, seed=config.seed)
    test, truth = core.GlobalBatches(pictures[:held], 1000, accelerator), labels[:held].cpu()

    # The model, and its loss: the sum over a process's samples.
    torch.manual_seed(config.seed)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (SIDE // 4 - 2) ** 2, len(labels.unique())))
    model.to(accelerator.device, dtype)

    def loss(model: nn.Module, batch: core.Batch) -> Tensor:
        return F.cross_entropy(model(batch.data[0]), batch.data[1], reduction="sum")

    training = core.Training(accelerator, model, torch.optim.AdamW(model.parameters(), lr=0.003), loss)

    # The run's folder, and where a stopped run left off.
    run = folder.open_run(config.output_dir, "pictures", config.resume, weights="model.pth")
    about |= {"wandb_id": run.wandb_id, "wandb_project": "pictures", "job": run.job}
    tracker = tracking.Tracker(accelerator, run.folder, about)
    fixed = {name: about[name] for name in ("batch_size", "seed", "dtype", "digest")}
    checkpoints = core.Checkpoints(run.folder, training, {"tracker": tracker}, fixed, config.checkpoint_every)
    if run.resume:
        checkpoints.resume()
    at = training.progress
    require((at.epoch, at.step) <= (config.epochs, 0), "--epochs", config.epochs, f"more: {at.epoch} are done")

    with tracker:
        while at.epoch < config.epochs:
            for batch in training.epoch(train, f"epoch {at.epoch + 1}/{config.epochs}"):
                training.update(batch)
                checkpoints.after_update()
            scores = core.evaluate(accelerator, model, test, lambda model, batch: model(batch.data)).double()
            right, loss_held = int((scores.argmax(dim=1) == truth).sum()), F.cross_entropy(scores, truth).item()
            line = {"epoch": at.epoch, "global_step": at.global_step} | training.figures | {"test_loss": loss_held}
            tracker.epoch(line | {"test_accuracy": right / held, "test_correct": right, "test_total": held})
            core.announce(f"epoch {at.epoch}/{config.epochs}  loss {line['train_loss']:.4f}  right {right} of {held}")
            checkpoints.save(last=at.epoch == config.epochs)
        with core.all_or_none():
            if accelerator.is_main_process:
                weights.save_weights(run.folder / "model.pth", model)


if __name__ == "__main__":
    launch.run(main, "pictures.py")
