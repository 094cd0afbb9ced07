"""Where the host waits for the GPU, as CUDA says."""

import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import ROOT

from gpu_parts.asking import Asked, NeedsGPU, Result, make_training
from mnist_dist.digits.config import TrainConfig

UPDATES = 20
EVERYTHING = TrainConfig(
    model="cnn",
    batch_size=200,
    ema=0.99,
    clip_norm=0.5,
    affine=0.5,
    elastic=0.5,
    dropout=0.1,
    gradient_accumulation_steps=2,
)


def waits(asked: Asked) -> Result:
    """Where the host waits for the GPU in 19 updates with everything on, after the first."""
    if asked.cpu:
        raise NeedsGPU("CUDA alone tells where the host waits")
    training = make_training(asked, EVERYTHING, samples=UPDATES * EVERYTHING.batch_size)
    places = Counter[str]()

    def note(message: Warning | str, *_: Any) -> None:
        if "synchroniz" in str(message):
            places[place_here()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        for images, labels in training.loader:
            training.learn(images, labels)
            # The first update looks for what depends on sharing, and after the last one weights
            # are compared.
            if training.accelerator.sync_gradients:
                last = training.accelerator.gradient_state.end_of_dataloader
                torch.cuda.set_sync_debug_mode("default" if last else "warn")
        torch.cuda.set_sync_debug_mode("default")
    found: Result = {}
    for place, times in places.items():
        found[place] = {"times": times, "an update": times / (UPDATES - 1)}
    return found or {"none": {"times": 0, "an update": 0.0}}


def place_here() -> str:
    """The innermost function of this project that is being called."""
    place = "elsewhere"
    for frame in traceback.extract_stack():
        if str(ROOT / "mnist_dist") in frame.filename:
            place = f"{Path(frame.filename).name}:{frame.name}"
    return place
