"""Evaluate a trained model exactly: accuracy, per-class accuracy, calibration, confusion matrix, mistakes.

python evaluate.py runs/20261122-101500-mnist-mlp
python evaluate.py runs/first runs/second runs/third --output-dir runs/ensemble
torchrun --nproc-per-node 2 evaluate.py mnist_model.pth --cpu
"""

import mnist_dist.startup  # noqa: F401  # isort: skip  # as in train.py
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from mnist_dist import plots
from mnist_dist.core import (
    ExactAccelerator,
    MicroBatch,
    UserError,
    all_or_none,
    announce,
    check_same_across_processes,
)
from mnist_dist.core.files import make_folder
from mnist_dist.digits.trained import TrainedModel, locate
from mnist_dist.run import launch, weights
from mnist_dist.run.command_line import parse
from mnist_dist.run.files import write_json
from mnist_dist.run.folder import CONFIG, EVALUATION, PLOTS
from mnist_dist.task import data, datasets, networks
from mnist_dist.task.distortions import distort, shift
from mnist_dist.task.evaluation import Evaluation, View, classify, ensemble, evaluation_loader
from mnist_dist.task.settings import DataConfig, require_strengths
from mnist_dist.usage import UsageError, require

SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # of --shifts, in pixels: down, right


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a trained model or an ensemble, with the same result on any number of processes."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or .pth files holding a state_dict; several models are averaged (an ensemble)."""
    dataset: datasets.Name | None = None
    """Default: the data set of the run; auto for a .pth file that belongs to no run."""
    data_dir: Path | None = None
    """Folder that contains MNIST/raw/...; default: the run's data folder if it has the data set, else data."""
    split: Literal["test", "train", "val"] = "test"
    """Which samples; val are those that the run held out of its training set."""
    shifts: bool = False
    """Test-time augmentation: average over each image and its four one-pixel shifts."""
    distortions: int = 0
    """Test-time augmentation: also average over this many randomly distorted copies of each image."""
    affine: float = 0.3
    """Strength of rotation, scaling, shear and shift for --distortions, as in train.py."""
    elastic: float = 0.3
    """Strength of elastic deformation for --distortions, as in train.py."""
    cpu: bool = False
    """Force the CPU."""
    output_dir: Path | None = None
    """Folder for evaluation.json and the plots; default: the model's folder. Required for several models."""
    pictures: Literal["png", "pdf", "svg"] = "png"
    """Format of the pictures."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        if not self.models:
            raise UsageError(
                "no model to evaluate was given: name a run's folder or a .pth file, or several"
            )
        if len(self.models) > 1 and self.output_dir is None:
            raise UsageError(
                "several models need --output-dir: name a folder for their combined results"
            )
        require(
            0 <= self.distortions <= 1000,
            "--distortions",
            self.distortions,
            "a number of copies from 0 to 1000",
        )
        require_strengths(self.affine, self.elastic)
        if self.data_dir is not None:
            DataConfig(data_dir=self.data_dir).check()


def main(config: EvaluateConfig | None = None) -> None:
    """Evaluate, print the figures, and write them and their pictures.

    Args:
        config: the settings; None for those of the command line.
    """
    config = config or parse(EvaluateConfig)
    accelerator = launch.start(config.cpu, mixed_precision="no")

    # Build the models from their weights alone. Which data they were trained on is read from their
    # runs' settings.
    with all_or_none():
        trained = [locate(path) for path in config.models]
        state_dicts = [weights.load_weights(each.weights) for each in trained]
        models = [networks.from_state_dict(each) for each in state_dicts]
        check_models(config, trained)
    digests = [weights.fingerprint(each) for each in state_dicts]
    check_same_across_processes("the weights", digests)

    dtype = next(models[0].parameters()).dtype
    samples = load_samples(config, accelerator, trained[0], dtype)
    loader = accelerator.prepare(evaluation_loader(getattr(samples, config.split)))

    # Classify every sample exactly once, split across the processes, and again for every shifted or
    # distorted copy.
    results = []
    for model in models:
        network = model.to(accelerator.device, dtype)
        for view in make_views(config):
            results.append(classify(accelerator, network, loader, view))
    result = ensemble(results)
    result.metrics(config.split)  # raises for a loss that is not finite, before anything is written

    folder = config.output_dir or trained[0].weights.parent
    # The folder of a run already has plots of its own.
    pictures = folder / PLOTS / "evaluation" if (folder / CONFIG).exists() else folder / PLOTS
    title = title_of(models, trained[0])
    with all_or_none():
        if accelerator.is_main_process:
            make_folder(folder)
            plots.evaluation(pictures, result, samples, config.split, title, f".{config.pictures}")
            settings = settings_of(config, trained, samples, accelerator)
            write_json(folder / EVALUATION, settings | figures_of(result, samples))
    announce(table(samples.classes, result))
    announce(
        f"expected calibration error {100 * result.calibration_error:.2f}%\n"
        f"plots:   {pictures}\n"
        f"metrics: {folder / EVALUATION}",
    )
    announce(
        f"{config.split.capitalize()} Accuracy: {100 * result.accuracy:.2f}% ({result.correct}/{result.total})",
    )


def check_models(config: EvaluateConfig, trained: Sequence[TrainedModel]) -> None:
    """Check that the models can be evaluated together, on the samples asked for.

    Args:
        config: the settings.
        trained: the models.

    Raises:
        UserError: they were trained on different data, or held out different samples, or none.
    """
    first = trained[0]
    for other in trained:
        if (other.dataset, other.mean, other.std) != (first.dataset, first.mean, first.std):
            raise UserError(
                f"{other.weights} was not trained on the same data as {first.weights}, or its "
                "data are unknown: evaluate it separately"
            )
        one_held_out = other.val_size or first.val_size
        same_held_out = (other.val_size, other.seed) == (first.val_size, first.seed)
        if config.split != "test" and one_held_out and not same_held_out:
            raise UserError(
                f"{other.weights} held out other samples than {first.weights}: use --split test"
            )
    if config.split == "val" and config.dataset not in (None, first.dataset):
        raise UserError(
            f"--split val: {first.weights} held out samples of {first.dataset}: leave --dataset out"
        )
    if config.split == "val" and not first.val_size:
        raise UserError(
            f"--split val: the run of {first.weights} held no samples out: use --split test"
        )


def load_samples(
    config: EvaluateConfig,
    accelerator: ExactAccelerator,
    model: TrainedModel,
    dtype: torch.dtype,
) -> data.DataSplits:
    """Load the data set, divided into training and validation samples as the model's run divided it.

    Args:
        config: the settings.
        accelerator: of the processes.
        model: the first of the models.
        dtype: of its weights.
    """
    name = config.dataset or model.dataset
    # A data folder named in a run's config.json is only read. Downloads go to our own folder,
    # because the run may be somebody else's.
    folder = config.data_dir or datasets.folder_with(name, Path(model.data_dir), datasets.DATA_DIR)
    val_size = model.val_size
    if config.split == "test" or name not in ("auto", model.dataset):
        val_size = 0
    return data.obtain(accelerator, name, folder, val_size, model.seed, dtype)


def make_views(config: EvaluateConfig) -> list[View | None]:
    """The transforms for test-time augmentation; the first one, None, leaves images as they are."""

    def shifted(down: int, right: int, images: Tensor, _: MicroBatch) -> Tensor:
        return shift(images, down, right)

    def distorted(copy: int, images: Tensor, micro_batch: MicroBatch) -> Tensor:
        return distort(
            images, micro_batch.rand, affine=config.affine, elastic=config.elastic, copy=copy
        )

    views: list[View | None] = [None]
    if config.shifts:
        views += [partial(shifted, down, right) for down, right in SHIFTS]
    views += [partial(distorted, copy) for copy in range(config.distortions)]
    return views


def title_of(models: Sequence[nn.Module], first: TrainedModel) -> str:
    """The title of the plots: what the first model is and where it is from, and how many there are."""
    kind = "cnn" if isinstance(models[0], networks.ConvNet) else "mlp"
    source = first.weights.resolve()
    name = source.parent.name if (source.parent / CONFIG).exists() else source.name
    title = f"{kind} of {name}"
    if len(models) == 1:
        return title
    return f"{len(models)} models, the first {title}"


def settings_of(
    config: EvaluateConfig,
    trained: Sequence[TrainedModel],
    samples: data.DataSplits,
    accelerator: ExactAccelerator,
) -> dict[str, Any]:
    """What was evaluated, for evaluation.json."""
    return {
        "models": [str(each.weights) for each in trained],
        "shifts": config.shifts,
        "distortions": config.distortions,
        "affine": config.affine,
        "elastic": config.elastic,
        "dataset": samples.name,
        "split": config.split,
        "num_processes": accelerator.num_processes,
    }


def figures_of(result: Evaluation, samples: data.DataSplits) -> dict[str, Any]:
    """What was found, for evaluation.json."""
    class_accuracy = zip(samples.classes, result.class_accuracy, strict=True)
    return {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "correct": result.correct,
        "total": result.total,
        "calibration_error": result.calibration_error,
        "reliability": [asdict(each) for each in result.reliability()],
        "class_accuracy": dict(class_accuracy),
        "confusion_matrix": result.confusion.tolist(),
    }


def table(classes: Sequence[str], result: Evaluation) -> str:
    """Format each class's accuracy and the confusion matrix as a table.

    Args:
        classes: the names of the classes.
        result: what the model says of the samples.
    """
    columns = " ".join(f"{name[:5]:>5}" for name in classes)
    lines = [
        "accuracy and confusion matrix (rows: true class, columns: predicted class)",
        f"{'class':>8} {'accuracy':>9}  {columns}",
    ]
    for name, accuracy, row in zip(
        classes, result.class_accuracy, result.confusion.tolist(), strict=True
    ):
        share = " no sample" if accuracy is None else f"{100 * accuracy:8.2f}% "
        lines.append(f"{name:>8} {share} {' '.join(f'{count:5d}' for count in row)}")
    return "\n".join(lines)


if __name__ == "__main__":
    launch.run(main, "evaluate.py")
