"""Evaluation of a network as it will be saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_stored(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluate a network in the precision of its weights, in eval mode and without gradients.

    The forward pass that Accelerate puts in its place is in mixed precision, which is for training.

    Args:
        model: bare; afterwards every layer is in the mode that it was in before, and the forward
            pass is Accelerate's.
    """
    modes = [(layer, layer.training) for layer in model.modules()]
    prepared_forward = model.__dict__.get("forward")
    original_forward = model.__dict__.get("_original_forward")
    if original_forward is not None:
        model.forward = original_forward
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for layer, training in modes:
            layer.training = training
        if original_forward is not None:
            model.forward = prepared_forward  # type: ignore[assignment]
