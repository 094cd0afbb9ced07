"""Pictures of what a classifier says of digits."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from mnist_dist.plots import figures
from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import Evaluation

MISTAKES = 50  # the most confident mistakes are drawn
SIZE = 28  # pixels, the height and width of an image
PITCH = 40  # pixels from the left edge of an image to that of the next
INCHES = 0.029  # for a pixel


def evaluation(
    folder: Path,
    result: Evaluation,
    samples: DataSplits,
    split: str,
    model: str,
    suffix: str = ".png",
) -> None:
    """Draw the confusion matrix, the reliability and the most confident mistakes.

    A picture that cannot be drawn costs a warning, and no more.

    Args:
        folder: where the pictures go.
        result: what the model says of the samples.
        samples: the data set.
        split: "train", "val" or "test", the part of it that was evaluated.
        model: what the titles call the model.
        suffix: one of `SUFFIXES`.
    """
    score = f"{100 * result.accuracy:.2f}% ({result.correct}/{result.total})"
    heading = f"{samples.name} {split}: {score}\n{model}"
    confusion_path = folder / f"confusion_matrix{suffix}"
    with figures.spared():
        confusion_matrix(confusion_path, result.confusion, samples.classes, heading)
    with figures.spared():
        reliability(folder / f"reliability{suffix}", result, heading)
    with figures.spared():
        draw_mistakes(folder / f"mistakes{suffix}", result, samples, split, heading)


def draw_mistakes(
    path: Path, result: Evaluation, samples: DataSplits, split: str, heading: str
) -> None:
    """Draw the most confident mistakes, if there are any.

    Args:
        path: the picture.
        result, samples, split: as for `evaluation`.
        heading: what follows in the title.
    """
    # An evaluation before may have left a picture where this one has no mistakes.
    path.unlink(missing_ok=True)
    numbers = result.mistakes()[:MISTAKES]
    if len(numbers):
        images = getattr(samples, split).images
        chosen = images[numbers.to(images.device), 0]
        titles = titles_of_mistakes(numbers, result, samples.classes)
        digits(path, samples.pixels(chosen), titles, f"The most confident mistakes, {heading}")


def titles_of_mistakes(
    numbers: Tensor,
    result: Evaluation,
    classes: Sequence[str],
) -> list[str]:
    """Write above an image what was taken for what.

    Args:
        numbers: (n,) the numbers of the samples.
        result: what the model says of the samples.
        classes: names of the classes.

    Returns:
        n titles of two lines, such as "4? (99%)" and "is 9".
    """
    confidence = result.probabilities.max(dim=1).values
    titles = []
    for number in numbers.tolist():
        predicted = classes[int(result.predictions[number])]
        label = classes[int(result.labels[number])]
        percentage = 100 * float(confidence[number])
        titles.append(f"{predicted}? ({percentage:.0f}%)\nis {label}")
    return titles


def digits(
    path: Path,
    images: Tensor,
    titles: Sequence[str],
    heading: str,
    columns: int = 10,
) -> None:
    """Draw a grid of small images, each with a title.

    Args:
        path: the picture.
        images: (n, 28, 28), grey values in [0, 1]; n at least 1.
        titles: n titles of one or two short lines.
        heading: the title of the picture.
        columns: images beside each other.
    """
    rows = math.ceil(len(images) / columns)
    columns = min(columns, len(images))
    lines = 1 + max(title.count("\n") for title in titles)
    row_height = SIZE + 4 + 5 * lines  # pixels, with the title above the images
    height = row_height * rows
    width = PITCH * columns
    above = 0.4 + 0.2 * len(heading.splitlines())  # inches
    picture = figures.figure(max(INCHES * width + 0.2, 5), INCHES * height + above)
    axes = picture.subplots()  # one for all images: an Axes for each would take seconds to draw
    axes.set_title(figures.as_text(heading), fontsize=10)
    canvas = np.zeros((height, width), np.float32)
    for number, image in enumerate(images.cpu().numpy()):
        row, column = divmod(number, columns)
        top = row * row_height + row_height - SIZE
        left = column * PITCH + (PITCH - SIZE) // 2
        canvas[top : top + SIZE, left : left + SIZE] = image
        axes.text(
            left + SIZE / 2,
            top - 2,
            titles[number],
            ha="center",
            va="bottom",
            fontsize=8,
            linespacing=1,
        )
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=1)
    axes.axis("off")
    figures.save(picture, path)


def confusion_matrix(path: Path, confusion: Tensor, classes: Sequence[str], heading: str) -> None:
    """Draw counts of true against predicted classes, mistakes coloured by their share of a class.

    Args:
        path: the picture.
        confusion: (classes, classes) int64; the row is the true class.
        classes: names of the classes.
        heading: the title of the picture.
    """
    counts = confusion.cpu()
    of_class = counts.sum(dim=1, keepdim=True).clamp(min=1)
    mistakes = 100 * (counts.double() / of_class).fill_diagonal_(0)
    largest = mistakes.max().item()
    picture = figures.figure(7.5, 6.6)
    axes = picture.subplots()
    image = axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(largest, 1e-9))
    legend = "share of the true class mistaken for it (%)"
    picture.colorbar(image, ax=axes, label=legend, shrink=0.85)
    for row in range(len(counts)):
        for column in range(len(counts)):
            count = int(counts[row, column])
            is_dark = mistakes[row, column] > largest / 2
            axes.text(
                column,
                row,
                f"{count:,}" if count else "·",
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if row == column else "normal",
                color="white" if is_dark else "black",
            )
    longest = max(len(name) for name in classes)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if longest > 2 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=figures.as_text(heading))
    figures.save(picture, path)


def reliability(path: Path, result: Evaluation, heading: str) -> None:
    """Draw accuracy against confidence, and below it the numbers of samples.

    The curve is on the diagonal where a model is right as often as it says.

    Args:
        path: the picture.
        result: what the model says of the samples.
        heading: the title of the picture.
    """
    bins = result.reliability()
    confidence = [100 * each.confidence for each in bins]
    accuracy = [100 * each.accuracy for each in bins]
    counts = [each.count for each in bins]
    error = f"expected calibration error {100 * result.calibration_error:.2f}%"
    picture = figures.figure(5, 5.6)
    title = figures.as_text(f"{heading}\n{error}")
    picture.suptitle(title, fontsize=9)
    above, below = picture.subplots(2, sharex=True, height_ratios=[3, 1])
    above.plot([0, 100], [0, 100], color="grey", linewidth=1)
    above.plot(confidence, accuracy, marker="o")
    above.set(ylabel="accuracy (%)", xlim=(0, 103), ylim=(-3, 103))
    below.bar(confidence, counts, width=3)
    below.set(xlabel="confidence (%)", ylabel="samples", yscale="log", ylim=(0.5, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figures.save(picture, path)
