"""The samples: loaded, checked, normalised, split, and the same on every process."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mnist_dist.core.agreement import all_or_none, check_same_across_processes
from mnist_dist.core.errors import UserError
from mnist_dist.core.files import refuse_lost_link
from mnist_dist.core.output import warn
from mnist_dist.task import datasets


@dataclass(frozen=True, eq=False)
class Split:
    """Samples as two tensors.

    Attributes:
        images: (N, 1, 28, 28), normalised, floating point.
        labels: (N,), int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images and labels, as `TensorDataset` takes them."""
        return self.images, self.labels

    def to(self, device: torch.device) -> "Split":
        """The same samples, whole, on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set, loaded, checked and split.

    Attributes:
        name: what it is called in every file and message.
        classes: names of the ten classes.
        mean, std: what the images were normalised with, in units of the full pixel range.
        train, test: the samples; `train` without those held out.
        val: the samples held out of the training set, or None.
        digest: hexadecimal, of the bytes that were read.
    """

    name: str
    classes: tuple[str, ...]
    mean: float
    std: float
    train: Split
    test: Split
    digest: str
    val: Split | None = None

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images (..., 28, 28) back as grey values in [0, 1], for pictures."""
        return (images.float() * self.std + self.mean).clamp(0, 1)


def obtain(
    accelerator: Accelerator,
    name: str,
    data_dir: Path,
    val_size: int,
    seed: int,
    dtype: torch.dtype,
) -> DataSplits:
    """Load the data set to every process's device, after one process per node has downloaded what is missing.

    Args: as for `load`; `name` may also be "auto".

    Raises:
        UserError: on every process, if the data is missing, damaged, or not the same everywhere.
    """
    found = None
    with all_or_none():
        if accelerator.is_local_main_process:
            if name != "mnist-5k":
                refuse_lost_link(data_dir)
            if name != "mnist-5k" and data_dir != datasets.DATA_DIR and not data_dir.exists():
                fetch = datasets.command_to_fetch("mnist" if name == "auto" else name, data_dir)
                raise UserError(
                    f"--data-dir {data_dir} does not exist: name another, or fetch the data with `{fetch}`"
                )
            found = datasets.find(name, data_dir)
    places = [place for place in gather_object([found]) if place]
    names = sorted({name for name, _ in places})
    if len(names) > 1:
        raise UserError(
            f"--dataset auto means {' and '.join(names)} on different nodes: run "
            f"`{datasets.command_to_fetch('mnist', data_dir)}` on each, or put --data-dir where all nodes see it"
        )
    name, warning = places[0]
    if warning and accelerator.is_main_process:
        warn(warning)
    with all_or_none():
        samples = load(name, data_dir, val_size=val_size, seed=seed, dtype=dtype)
    check_same_across_processes("the data files", samples.digest)
    device = accelerator.device
    val = samples.val.to(device) if samples.val else None
    return replace(samples, train=samples.train.to(device), test=samples.test.to(device), val=val)


def check_shares(samples: DataSplits, batch_size: int, num_processes: int) -> None:
    """Refuse a batch or a number of processes that the data cannot fill.

    Raises:
        UserError: a global batch is larger than the training set, or some process would never see a
            sample.
    """
    if batch_size > len(samples.train):
        raise UserError(
            f"--batch-size {batch_size} exceeds the {len(samples.train)} training samples: give at most that"
        )
    for split in (samples.train, samples.test, samples.val):
        if split and num_processes > len(split):
            raise UserError(
                f"{num_processes} processes cannot share {len(split)} samples: start at most {len(split)}"
            )


def load(
    name: str,
    data_dir: Path,
    *,
    val_size: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> DataSplits:
    """Read a data set that is on the disk, check it, normalise it and split it.

    Args:
        name: "mnist", "fashion-mnist", "kmnist" or "mnist-5k".
        data_dir: the folder with, for instance, MNIST/raw/ in it.
        val_size: samples to hold out of the training set, stratified; 0 for none.
        seed: decides which samples are held out, and nothing else here.
        dtype: of the images.

    Raises:
        UserError: a file is missing or damaged, or `val_size` leaves nothing to train on.
    """
    if name == "mnist-5k":
        images, labels, digest = datasets.read_mnist_5k()
        # Always the same way.
        rest, held_out = stratified_split(torch.tensor(labels), 1000, hold_out(0))
        train, test = (images[rest], labels[rest]), (images[held_out], labels[held_out])
        source = datasets.SOURCES["mnist"]
    else:
        source = datasets.SOURCES[name]
        train, test, digest = datasets.read(source, data_dir)
    mean, std = source.normalization or pixel_statistics(train[0])
    whole = normalized(*train, mean, std, dtype)
    samples = DataSplits(
        name, source.classes, mean, std, whole, normalized(*test, mean, std, dtype), digest
    )
    if val_size == 0:
        return samples
    if val_size > len(whole) - 1:
        raise UserError(
            f"--val-size {val_size} leaves nothing to train on: give less than {len(whole)}"
        )
    rest, held_out = stratified_split(whole.labels, val_size, hold_out(seed))
    return replace(
        samples,
        train=Split(whole.images[rest], whole.labels[rest]),
        val=Split(whole.images[held_out], whole.labels[held_out]),
    )


def hold_out(seed: int) -> torch.Generator:
    """The generator that selects held-out samples; deliberately not one of the core's, which may change.

    Models trained with earlier versions must get the same held-out samples again.
    """
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence((seed, 2)).generate_state(1, np.uint64)[0])
    )


def pixel_statistics(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 images, in units of the full range 255, to 4 places."""
    counts = np.bincount(images.reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return round(float(mean), 4), round(float(np.sqrt(variance)), 4)


def normalized(
    images: np.ndarray, labels: np.ndarray, mean: float, std: float, dtype: torch.dtype
) -> Split:
    """uint8 images (N, 28, 28) and labels (N,) as the tensors that networks take."""
    pixels = torch.tensor(images).to(dtype).unsqueeze(1)
    return Split(pixels.div_(255).sub_(mean).div_(std), torch.tensor(labels).long())


def stratified_split(
    labels: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Split sample numbers in two so that the second part has `size` of them, shared among the classes in proportion.

    Returns:
        (N - size,) and (size,) int64 sample numbers, ascending.
    """
    groups = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    ideal = [len(group) * size / len(labels) for group in groups]
    quotas = [math.floor(share) for share in ideal]
    by_remainder = sorted(range(len(groups)), key=lambda number: quotas[number] - ideal[number])
    # The largest remainders get the samples left over.
    for number in by_remainder[: size - sum(quotas)]:
        quotas[number] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for group, quota in zip(groups, quotas, strict=True):
        chosen[group[torch.randperm(len(group), generator=generator)[:quota]]] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()
