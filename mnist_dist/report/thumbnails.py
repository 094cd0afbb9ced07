"""The test images that a page shows: which ones, and as one picture."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import Evaluation

MISTAKES = 48  # the most confident mistakes that are shown
# Images behind a cell of the confusion matrix: as many as there is room for.
IN_A_CELL = (12, 8, 5, 3, 2, 1)
LARGEST = 330_000  # bytes of the picture that holds all images
COLUMNS = 32  # images in a row of that picture
SIDE = 28  # pixels, the height and width of an image


def thumbnails(result: Evaluation, samples: DataSplits) -> dict[str, Any]:
    """Choose test images, and put them into one picture.

    Args:
        result: what the model says of the test samples.
        samples: the data.

    Returns:
        JSON values: the picture as `png`, and what is known of each image as lists in the order of
        the picture. `examples`, `mistakes` and the `cells` of the confusion matrix hold positions in
        that order.
    """
    mistakes = result.mistakes()[:MISTAKES].tolist()
    examples = first_right(result)
    for most in IN_A_CELL:
        cells = behind_cells(result, most)
        in_cells = [number for cell in cells.values() for number in cell]
        chosen = sorted({*mistakes, *examples, *in_cells})
        png = picture(chosen, samples)
        if len(png) <= LARGEST:
            break
    position = {number: place for place, number in enumerate(chosen)}
    return {
        "columns": COLUMNS,
        "png": base64.b64encode(png).decode(),
        "in_a_cell": most,
        "examples": [position[number] for number in examples],
        "mistakes": [position[number] for number in mistakes],
        "cells": {name: [position[number] for number in cell] for name, cell in cells.items()},
        **known_of(chosen, result),
    }


def first_right(result: Evaluation) -> list[int]:
    """Return the number of the first sample of each class that is classified correctly."""
    found: dict[int, int] = {}
    for number in torch.nonzero(result.predictions == result.labels).flatten().tolist():
        found.setdefault(int(result.labels[number]), number)
    return [found[label] for label in sorted(found)]


def behind_cells(result: Evaluation, most: int) -> dict[str, list[int]]:
    """Choose samples for every cell of the confusion matrix.

    Args:
        result: what the model says of the samples.
        most: how many samples a cell can have.

    Returns:
        The numbers of samples by cell, named `true,predicted`. Of mistakes those come first of which
        the model was most sure, and of what it got right those of which it was least sure.
    """
    confidence = result.probabilities.max(dim=1).values
    classes = result.logits.shape[1]
    cells = {}
    for label in range(classes):
        for prediction in range(classes):
            is_inside = (result.labels == label) & (result.predictions == prediction)
            numbers = torch.nonzero(is_inside).flatten()
            order = confidence[numbers].argsort(descending=label != prediction, stable=True)
            if len(numbers):
                cells[f"{label},{prediction}"] = numbers[order][:most].tolist()
    return cells


def known_of(numbers: Sequence[int], result: Evaluation) -> dict[str, list[Any]]:
    """List what a page says of samples.

    Args:
        numbers: those of the samples.
        result: what the model says of them.

    Returns:
        Lists by name, each in the order of the samples: `numbers`, `labels`, `predictions`, and the
        probabilities of both as `of_label` and `of_prediction`.
    """
    chosen = torch.tensor(numbers, dtype=torch.long)
    probabilities = result.probabilities[chosen]
    labels = result.labels[chosen]
    predictions = result.predictions[chosen]

    def probability_of(classes: Tensor) -> list[float]:
        values = probabilities.gather(1, classes[:, None])[:, 0]
        return [round(value, 6) for value in values.tolist()]

    return {
        "numbers": list(numbers),
        "labels": labels.tolist(),
        "predictions": predictions.tolist(),
        "of_label": probability_of(labels),
        "of_prediction": probability_of(predictions),
    }


def picture(numbers: Sequence[int], samples: DataSplits) -> bytes:
    """Put test images beside and below each other, as a grey PNG.

    Args:
        numbers: those of the images, in order.
        samples: the data.

    Returns:
        The PNG file, with the pixels as they are in the data set.
    """
    images = samples.test.images
    chosen = images[torch.tensor(numbers, dtype=torch.long).to(images.device), 0]
    grey = (255 * samples.pixels(chosen).cpu()).round().byte().numpy()
    rows = max(1, -(-len(numbers) // COLUMNS))
    grid = np.zeros((rows * COLUMNS, SIDE, SIDE), np.uint8)
    grid[: len(grey)] = grey
    pixels = grid.reshape(rows, COLUMNS, SIDE, SIDE).swapaxes(1, 2)
    canvas = pixels.reshape(rows * SIDE, COLUMNS * SIDE)
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    return file.getvalue()
