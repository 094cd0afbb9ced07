"""The command `predict`: classifying people's own pictures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import Tensor

from mnist_dist.core import UserError
from mnist_dist.digits.finished import newest_run
from mnist_dist.digits.trained import locate
from mnist_dist.run import weights
from mnist_dist.run.printing import allow_any_name
from mnist_dist.task import datasets, networks
from mnist_dist.task.evaluation import SURE
from mnist_dist.task.layouts import DIGITS, layout_of
from mnist_dist.tools.pictures.digits import read_picture
from mnist_dist.tools.pictures.ink import count_parts
from mnist_dist.usage import UsageError

SHADES = " .:-=+*#%@"  # from background to ink, for a terminal


@dataclass(frozen=True, kw_only=True)
class Config:
    """Classify your own pictures of digits, or of what else the model was trained on.

    They may have any size, be in colour or grey, dark on light or light on dark.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    weights: Path | None = None
    """A run's folder or a .pth file; default: the newest finished run in runs/."""
    show: bool = False
    """Print what the network sees of each picture, too."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: no picture was named.
        """
        if not self.images:
            advice = "name one or more, such as digit.png"
            raise UsageError(f"no picture to classify was given: {advice}")


def main(config: Config) -> None:
    """Print the class and the probabilities of each picture, and where to doubt them.

    Args:
        config: the flags.

    Raises:
        UserError: there is no such model, or a picture could not be read, when the others are done.
    """
    allow_any_name()
    trained = locate(config.weights or newest_run())
    model = networks.from_state_dict(weights.load_weights(trained.weights)).float()
    source = datasets.SOURCES.get(trained.dataset, datasets.SOURCES["mnist"])
    layout = layout_of(trained.dataset)
    print(f"model: {trained.weights}")
    errors = []
    for path in config.images:
        try:
            picture = read_picture(path, layout, source.noun)
        except UserError as error:
            errors.append(error)
            if len(config.images) > 1:
                print(f"warning: {error}", file=sys.stderr)
            continue
        images = (picture - trained.mean)[None, None] / trained.std
        probabilities = model.probabilities(images)[0]
        if not probabilities.isfinite().all():
            fault = f"gives {path} no finite probabilities"
            raise UserError(f"the model {trained.weights} {fault}: train it again")
        print_answer(path, probabilities, source.classes)
        if layout is DIGITS:
            warn_of_parts(path, picture)
        if config.show:
            print(as_text(picture))
        print_bars(probabilities, source.classes)
    if not errors:
        return
    if len(config.images) == 1:
        raise errors[0]
    bad = f"{len(errors)} of {len(config.images)} pictures"
    raise UserError(f"{bad} could not be read: the warnings say why")


def print_answer(path: Path, probabilities: Tensor, classes: Sequence[str]) -> None:
    """Print what a picture shows.

    Args:
        path: the picture's file.
        probabilities: (classes,), those of the classes.
        classes: their names.
    """
    best, second = probabilities.argsort(descending=True)[:2].tolist()
    confidence = float(probabilities[best])
    doubt = "" if confidence >= SURE else f", in doubt: or {classes[second]}?"
    print(f"{path}: {classes[best]} ({100 * confidence:.2f}%){doubt}")


def warn_of_parts(path: Path, digit: Tensor) -> None:
    """Warn if there seem to be several digits in a picture.

    Args:
        path: the picture's file.
        digit: (28, 28), what the network has seen of it, in [0, 1].
    """
    parts = count_parts(digit)
    if parts > 1:
        print(f"warning: {path} shows {parts} separate parts: is it one digit?", file=sys.stderr)


def print_bars(probabilities: Tensor, classes: Sequence[str]) -> None:
    """Print the probabilities of all classes."""
    for name, probability in zip(classes, probabilities.tolist(), strict=True):
        bar = "#" * round(40 * probability)
        print(f"  {name:>8} {100 * probability:6.2f}% {bar}")


def as_text(digit: Tensor) -> str:
    """Return a picture (28, 28) with values in [0, 1] as 28 lines of 56 letters."""
    lines = []
    for row in digit.tolist():
        letters = [shade(value) for value in row]
        lines.append("".join(letters))
    return "\n".join(lines)


def shade(value: float) -> str:
    """Return a pixel for a terminal, two letters wide."""
    number = min(int(10 * value), 9)
    return 2 * SHADES[number]
