"""The command `explore`: sizes, statistics, class balance, and pictures of the data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mnist_dist import plots
from mnist_dist.core import generator_for
from mnist_dist.run import launch
from mnist_dist.run.printing import allow_any_name
from mnist_dist.task import data
from mnist_dist.task.data import DataSplits, Split
from mnist_dist.task.distortions import distort
from mnist_dist.task.settings import DataConfig, require_strengths
from mnist_dist.usage import require

SHOWN = 50  # training samples in the first picture
COPIES = 4  # times that each sample of the second picture is distorted
EVERY = 5  # of the samples shown, one in so many is distorted


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Look at the data: sizes, shapes, mean, spread, class balance, and a picture of digits."""

    output: Path | None = None
    """The picture (.png, .pdf or .svg); beside it comes one of distorted digits.
    Default: digits.png, or, if that is there, digits-2.png, digits-3.png, ..."""
    affine: float = 1.0
    """Strength of rotation, scale, shear and shift in the second picture, as in train.py."""
    elastic: float = 1.0
    """Strength of bending in the second picture, as in train.py."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        if self.output:
            can_be_drawn = self.output.suffix in plots.SUFFIXES
            require(can_be_drawn, "--output", self.output, plots.EXPECTED)
        require_strengths(self.affine, self.elastic)


def main(config: Config) -> None:
    """Print what a data set is made of, and draw its digits as they are and distorted.

    Args:
        config: the flags.

    Raises:
        UserError: the data cannot be had.
    """
    allow_any_name()
    accelerator = launch.start(cpu=True)
    samples = data.obtain(accelerator, config.dataset, config.data_dir, 0, 0, torch.float32)
    normalised = f"normalised with mean {samples.mean} and std {samples.std}"
    print(f"{samples.name}, {normalised} of the full grey range")
    describe(samples, "train", samples.train)
    describe(samples, "test", samples.test)
    place = config.output or unused(Path("digits.png"))
    # Evenly spaced: mnist-5k is in the order of its classes.
    shown = torch.arange(SHOWN) * len(samples.train) // SHOWN
    images = samples.train.images[shown]
    titles = [samples.classes[label] for label in samples.train.labels[shown].tolist()]
    heading = f"{SHOWN} training samples of {samples.name}"
    plots.digits(place, samples.pixels(images[:, 0]), titles, heading)
    print(f"\n{place} shows {SHOWN} training samples with their labels")
    draw_distorted(config, samples, images[::EVERY], titles[::EVERY], distorted(place))


def describe(samples: DataSplits, name: str, split: Split) -> None:
    """Print sizes, statistics and class balance of a split.

    Args:
        samples: the data set.
        name: the name of the split.
        split: its images and labels.
    """
    images = split.images
    grey = samples.pixels(images).double()
    shape = " x ".join(map(str, images.shape))
    labels = f"labels {split.labels.dtype}"
    print(f"\n{name}: {len(split):,} samples, images {shape} {images.dtype}, {labels}")
    print(f"  grey values: mean {grey.mean():.4f}, std {grey.std(correction=0):.4f}")
    extremes = f"{images.min():.4f} to {images.max():.4f}"
    print(f"  normalised:  mean {images.mean():.4f}, std {images.std():.4f}, {extremes}")
    counts = split.labels.bincount(minlength=len(samples.classes)).tolist()
    for label, count in zip(samples.classes, counts, strict=True):
        share = count / len(split)
        bar = "#" * round(200 * share)
        print(f"  {label:>8} {count:6,} {100 * share:6.2f}% {bar}")


def draw_distorted(
    config: Config,
    samples: DataSplits,
    images: Tensor,
    titles: list[str],
    place: Path,
) -> None:
    """Draw samples, and below them what the distortions make of each.

    Args:
        config: the flags, with the distortions' strengths.
        samples: the data set.
        images: (n, 1, 28, 28), normalised.
        titles: n labels.
        place: the picture's file.
    """

    def rand(purpose: str, *shape: int, normal: bool = False) -> Tensor:
        draw = torch.randn if normal else torch.rand
        return draw(len(images), *shape, generator=generator_for(purpose, 0))

    rows = [images]
    for copy in range(COPIES):
        row = distort(images, rand, affine=config.affine, elastic=config.elastic, copy=copy)
        rows.append(row)
    flags = f"--affine {config.affine:g} --elastic {config.elastic:g}"
    heading = f"Ten samples, and each distorted four times ({flags})"
    no_titles = [""] * (COPIES * len(images))
    pixels = samples.pixels(torch.cat(rows)[:, 0])
    plots.digits(place, pixels, [*titles, *no_titles], heading)
    strengths = f"--affine {config.affine:g} and --elastic {config.elastic:g}"
    print(f"{place} shows what {strengths} make of ten of them")


def distorted(place: Path) -> Path:
    """Return where the picture of distorted digits goes, beside that of the digits."""
    return place.with_stem(f"{place.stem}-distorted")


def unused(place: Path) -> Path:
    """Return a name under which neither picture is there yet.

    Args:
        place: the name, if it is free; else a number is added.
    """
    path = place
    number = 1
    while path.exists() or distorted(path).exists():
        number += 1
        path = place.with_stem(f"{place.stem}-{number}")
    return path
