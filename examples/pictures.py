"""Train a small convolutional network on pictures, the same on any number of processes.

python examples/pictures.py [--data FOLDER_OR_NPZ]    of a folder for each class, or with uint8 `images` and `labels`
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from mnist_dist import core
from mnist_dist.run import command_line, folder, launch, settings, tracking, weights

SIDE = 32  # pixels that pictures are resized to


@dataclass(frozen=True, kw_only=True)
class Config(settings.OwnConfig):
    data: Path | None = None  # pictures in a folder for each class, or a .npz file; default: stripes, drawn here


def stripes() -> tuple[Tensor, Tensor]:
    """What `read` gives, of upright, level and slanting stripes in two colours each."""
    labels, draw, line = torch.arange(600) % 3, torch.rand(600, 8, 1, 1, generator=core.stream("")), torch.arange(SIDE)
    across = torch.stack([line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE), line + line[:, None]])[labels]
    first = (across / (1 + 2 * draw[:, 6]) + 9 * draw[:, 7]).sin() > 0
    return (255 * torch.where(first[:, None], draw[:, :3], draw[:, 3:6])).byte(), labels


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, SIDE, SIDE), uint8, and the numbers of their classes (N,), int64."""
    try:
        file = np.load(path) if path.suffix == ".npz" else None
        found = map(Image.fromarray, file["images"]) if file else (picture for picture, _ in ImageFolder(path))
        small = [np.asarray(picture.convert("RGB").resize((SIDE, SIDE))) for picture in found]
        classes, labels = np.unique(file["labels"] if file else ImageFolder(path).targets, return_inverse=True)
    except Exception as error:  # whatever the parsers trip over, these are no pictures
        raise settings.UsageError(f"--data {path} cannot be read ({error}): give what `--help` says") from error
    right = labels.shape == (len(small),) and len(small) >= 6 and len(classes) > 1
    settings.require(right, "--data", path, "6 pictures of 2 classes or more, and one label for each")
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def loss(model: nn.Module, batch: core.Batch) -> Tensor:
    return F.cross_entropy(model(batch.data[0]), batch.data[1], reduction="sum")  # the sum, not the mean


def main() -> None:
    config: Config = command_line.parse(Config)
    dtype, virtual = getattr(torch, config.dtype), config.virtual_processes
    accelerator, bits = launch.start(config.cpu, dtype=dtype), launch.fix_bits(virtual)
    with core.all_or_none():
        pictures, labels = read(config.data) if config.data else stripes()
    about = command_line.as_json(config) | {"digest": weights.fingerprint({"pictures": pictures, "labels": labels})}
    core.same_everywhere("the settings or pictures", about)
    order, held = torch.randperm(len(labels), generator=core.stream("held out", config.seed)), len(labels) // 6
    x, y = pictures[order].to(accelerator.device, dtype) / 255, labels[order].to(accelerator.device)
    train = core.GlobalBatches((x[held:], y[held:]), config.batch_size, accelerator, seed=config.seed, virtual=virtual)
    test, truth = core.GlobalBatches(x[:held], 1000, accelerator, virtual=virtual), y[:held].cpu()
    torch.manual_seed(config.seed)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (SIDE // 4 - 2) ** 2, len(labels.unique())))
    optimizer = torch.optim.AdamW(model.to(accelerator.device, dtype).parameters(), lr=0.003)
    training = core.Training(accelerator, model, optimizer, loss)
    run = folder.open_run(config.output_dir, "pictures", config.resume, weights="model.pth")
    tracker = tracking.Tracker(accelerator, run, about)
    fixed = {name: about[name] for name in ("batch_size", "virtual_processes", "seed", "dtype", "digest")} | bits
    checkpoints = core.Checkpoints(run.folder, training, {"tracker": tracker}, fixed, config.checkpoint_every)
    at = folder.go_on(run, checkpoints, config.epochs)
    with tracker:
        while at.epoch < config.epochs:
            for batch in training.epoch(train, f"epoch {at.epoch + 1}/{config.epochs}"):
                training.update(batch)
                checkpoints.after_update()
            scores = core.evaluate(accelerator, model, test, lambda model, batch: model(batch.data)).double()
            right, error = int((scores.argmax(dim=1) == truth).sum()), F.cross_entropy(scores, truth).item()
            line = {"epoch": at.epoch, "global_step": at.global_step} | training.figures | {"test_loss": error}
            tracker.epoch(line | {"test_accuracy": right / held, "test_correct": right, "test_total": held})
            core.announce(f"epoch {at.epoch}/{config.epochs}  loss {line['train_loss']:.4f}  right {right} of {held}")
            checkpoints.save(last=at.epoch == config.epochs)
        weights.save_weights(run.folder / "model.pth", model)


if __name__ == "__main__":
    launch.run(main, "pictures.py")
