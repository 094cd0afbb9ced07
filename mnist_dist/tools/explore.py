"""A look at the data: sizes, statistics, class balance, and pictures of digits as they are and distorted."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from mnist_dist.core import GlobalBatches
from mnist_dist.run import launch, plots
from mnist_dist.task import data
from mnist_dist.task.distortions import distort
from mnist_dist.task.settings import DataConfig, require_strengths
from mnist_dist.usage import require


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Look at the data: sizes, shapes, mean, spread, class balance, and a picture of the first digits."""

    output: Path | None = None
    """The picture (.png, .pdf or .svg); beside it comes one of distorted digits. Default: digits.png, or, if that is
    there, digits-2.png, digits-3.png, ..."""
    affine: float = 1.0
    """Strength of rotation, scale, shear and shift in the second picture, as in train.py."""
    elastic: float = 1.0
    """Strength of bending in the second picture, as in train.py."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(not self.output or self.output.suffix in plots.SUFFIXES, "--output", self.output, plots.EXPECTED)
        require_strengths(self.affine, self.elastic)


def main(config: Config) -> None:
    """Print what a data set is made of, and draw its first digits."""
    samples = data.obtain(launch.start(cpu=True), config.dataset, config.data_dir, 0, 0, torch.float32)
    print(f"{samples.name}, normalised with mean {samples.mean} and std {samples.std} of the full grey range")
    for split, part in (("train", samples.train), ("test", samples.test)):
        pixels = samples.pixels(part.images).double()
        shape = " x ".join(map(str, part.images.shape))
        print(f"\n{split}: {len(part):,} samples, images {shape} {part.images.dtype}, labels {part.labels.dtype}")
        values = part.images
        print(f"  grey values: mean {pixels.mean():.4f}, std {pixels.std(correction=0):.4f}")
        print(
            f"  normalised:  mean {values.mean():.4f}, std {values.std():.4f}, {values.min():.4f} to {values.max():.4f}"
        )
        counts = part.labels.bincount(minlength=len(samples.classes)).tolist()
        for label, count in zip(samples.classes, counts, strict=True):
            print(f"  {label:>8} {count:6,} {100 * count / len(part):6.2f}% {'#' * round(200 * count / len(part))}")
    shown = torch.arange(50) * len(samples.train) // 50  # evenly spaced: mnist-5k is in the order of its classes
    titles = [samples.classes[label] for label in samples.train.labels[shown].tolist()]
    pictures = samples.train.images[shown]
    place = config.output or unused(Path("digits.png"))
    plots.digits(place, samples.pixels(pictures[:, 0]), titles, f"50 training samples of {samples.name}")
    print(f"\n{place} shows 50 training samples with their labels")
    ten = pictures[::5]
    (batch,) = GlobalBatches(ten, batch_size=10).epoch()
    rows = [ten] + [distort(ten, batch, affine=config.affine, elastic=config.elastic, copy=copy) for copy in range(4)]
    place = distorted(place)
    heading = f"Ten samples, and each distorted four times (--affine {config.affine:g} --elastic {config.elastic:g})"
    plots.digits(place, samples.pixels(torch.cat(rows)[:, 0]), titles[::5] + [""] * 40, heading)
    print(f"{place} shows what --affine {config.affine:g} and --elastic {config.elastic:g} make of ten of them")


def distorted(place: Path) -> Path:
    """Where the picture of distorted digits goes, beside that of the digits."""
    return place.with_stem(f"{place.stem}-distorted")


def unused(place: Path) -> Path:
    """A name for both pictures under which there are none yet."""
    numbered = (place.with_stem(f"{place.stem}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([place], numbered) if not (path.exists() or distorted(path).exists()))
