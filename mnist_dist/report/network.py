"""A trained model's weights as a page carries them."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

# The precisions in which a page can carry weights, the best one first, with their bytes a number.
PRECISIONS = {"float32": 4, "float16": 2}


def for_page(weights: Mapping[str, Tensor], room: int) -> tuple[dict[str, Any] | None, str | None]:
    """Write weights as a page's script reads them, in the best precision for which there is room.

    Args:
        weights: the `state_dict` of a network of `mnist_dist.task.networks`.
        room: the bytes of the page that they may take.

    Returns:
        JSON values, or None if there is not enough room; and a sentence for the reader if the page
        lacks something.
    """
    numbers = sum(tensor.numel() for tensor in weights.values())
    for precision, size in PRECISIONS.items():
        if base64_length(numbers * size) > room:
            continue
        arrays = [tensor.detach().cpu().double().numpy() for tensor in weights.values()]
        with np.errstate(over="ignore"):
            rounded = [array.astype(f"<f{size}") for array in arrays]
        if not all(np.isfinite(array).all() for array in rounded):
            continue
        return {
            "precision": precision,
            "tensors": [[name, list(tensor.shape)] for name, tensor in weights.items()],
            "data": base64.b64encode(b"".join(array.tobytes() for array in rounded)).decode(),
        }, remark(precision)
    return None, (
        f"This model has {numbers:,} weights, which do not fit into a page that can be sent by mail, "
        "so it cannot be tried here. Use the command predict instead."
    )


def remark(precision: str) -> str | None:
    """Return what a reader should know about the precision of the weights in the page, if anything."""
    if precision == "float32":
        return None
    return (
        "So that this page can be sent by mail, it holds the weights rounded to 16 bits. Its "
        "probabilities may differ from the run's in the third digit."
    )


def base64_length(size: int) -> int:
    """Return how many characters so many bytes become in base64."""
    return 4 * math.ceil(size / 3)
