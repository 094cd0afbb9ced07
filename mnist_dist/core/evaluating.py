"""Evaluation of a network as it will be saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_stored(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluate a network in the precision of its weights, in eval mode and without gradients.

    The `forward` that Accelerate installs runs in mixed precision, which is meant for training.

    Args:
        model: the unwrapped model. On exit, every layer's mode and Accelerate's `forward` are
            restored.
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
