"""Classifying people's own pictures of digits."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from mnist_dist.core import UserError
from mnist_dist.run import weights
from mnist_dist.run.folder import newest_run
from mnist_dist.task import datasets, networks
from mnist_dist.tools.pictures import as_text, parts, read_digit
from mnist_dist.usage import UsageError

SURE = 0.9  # the probability below which an answer is called in doubt


@dataclass(frozen=True, kw_only=True)
class Config:
    """Classify your own pictures of digits: any size, colour or grey, dark on light or light on dark."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    weights: Path | None = None
    """A run's folder or a .pth file; default: the newest finished run in runs/."""
    show: bool = False
    """Print what the network sees of each picture, too."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: no picture was named.
        """
        if not self.images:
            raise UsageError("no picture to classify was given: name one or more, such as digit.png")


def main(config: Config) -> None:
    """Print the class and the probabilities of each picture, and where to doubt them.

    Raises:
        UserError: there is no such model, or a picture could not be read, when the others are done.
    """
    trained = weights.locate(config.weights or newest_run())
    model = networks.from_state_dict(weights.load_weights(trained.weights)).float()
    classes = datasets.SOURCES.get(trained.dataset, datasets.SOURCES["mnist"]).classes
    print(f"model: {trained.weights}")
    bad = []
    for path in config.images:
        try:
            seen = read_digit(path)
        except UserError as error:
            bad.append(error)
            if len(config.images) > 1:
                print(f"warning: {error}", file=sys.stderr)
            continue
        probabilities = model.probabilities((seen - trained.mean)[None, None] / trained.std)[0]
        if not probabilities.isfinite().all():
            raise UserError(f"the model {trained.weights} gives {path} no finite probabilities: train it again")
        best, second = probabilities.argsort(descending=True)[:2].tolist()
        sure, found = float(probabilities[best]), parts(seen)
        doubt = f", in doubt: or {classes[second]}?" if sure < SURE else ""
        print(f"{path}: {classes[best]} ({100 * sure:.2f}%){doubt}")
        if found > 1:
            print(f"warning: {path} shows {found} separate parts: is it one digit?", file=sys.stderr)
        if config.show:
            print(as_text(seen))
        for name, probability in zip(classes, probabilities.tolist(), strict=True):
            print(f"  {name:>8} {100 * probability:6.2f}% {'#' * round(40 * probability)}")
    if bad and len(config.images) == 1:
        raise bad[0]
    if bad:
        raise UserError(f"{len(bad)} of {len(config.images)} pictures could not be read: the warnings say why")
