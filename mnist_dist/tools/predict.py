"""Classifying people's own pictures of digits."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mnist_dist.core import UserError
from mnist_dist.run import weights
from mnist_dist.run.folder import newest_run
from mnist_dist.task import datasets, networks
from mnist_dist.task.settings import UsageError
from mnist_dist.tools.pictures import read_digit


@dataclass(frozen=True, kw_only=True)
class Config:
    """Classify your own pictures of digits: any size, colour or grey, dark on light or light on dark."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    weights: Path | None = None
    """A run's folder or a .pth file; default: the newest finished run in runs/."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: no picture was named.
        """
        if not self.images:
            raise UsageError("no picture to classify was given: name one or more, such as digit.png")


def main(config: Config) -> None:
    """Print the class and the probabilities of each picture."""
    trained = weights.locate(config.weights or newest_run())
    model = networks.from_state_dict(weights.load_weights(trained.weights)).float()
    classes = datasets.SOURCES.get(trained.dataset, datasets.SOURCES["mnist"]).classes
    print(f"model: {trained.weights}")
    for path in config.images:
        digit = (read_digit(path) - trained.mean) / trained.std
        probabilities = model.probabilities(digit[None, None])[0]
        if not probabilities.isfinite().all():
            raise UserError(f"the model {trained.weights} gives {path} no finite probabilities: train it again")
        best = int(probabilities.argmax())
        print(f"{path}: {classes[best]} ({100 * probabilities[best]:.2f}%)")
        for name, probability in zip(classes, probabilities.tolist(), strict=True):
            print(f"  {name:>8} {100 * probability:6.2f}% {'#' * round(40 * probability)}")
