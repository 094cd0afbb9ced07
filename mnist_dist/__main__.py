"""The smaller commands: python -m mnist_dist explore | download | predict | tune | export | verify."""

import sys
import time
from typing import Annotated

import torch
import tyro

from mnist_dist import data, distributed, images, models, plots, runs
from mnist_dist.augment import distort
from mnist_dist.config import (
    DownloadConfig,
    ExploreConfig,
    ExportConfig,
    PredictConfig,
    TuneConfig,
    VerifyConfig,
    parse,
    require,
)
from mnist_dist.errors import UserError

Command = (
    Annotated[ExploreConfig, tyro.conf.subcommand("explore")]
    | Annotated[DownloadConfig, tyro.conf.subcommand("download")]
    | Annotated[PredictConfig, tyro.conf.subcommand("predict")]
    | Annotated[TuneConfig, tyro.conf.subcommand("tune")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
)


def explore(config: ExploreConfig) -> None:
    """Print what a data set is made of, and draw its first digits."""
    name, warning = data.choose(config.dataset, config.data_dir)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    samples = data.load(name, config.data_dir)
    print(f"{samples.name}, normalised with mean {samples.mean} and std {samples.std} of the full grey range")
    for split, part in (("train", samples.train), ("test", samples.test)):
        pixels = samples.pixels(part.images).double()
        shape = " x ".join(map(str, part.images.shape))
        print(f"\n{split}: {len(part):,} samples, images {shape} {part.images.dtype}, labels {part.labels.dtype}")
        values = part.images
        print(f"  grey values: mean {pixels.mean():.4f}, std {pixels.std(correction=0):.4f}")
        print(
            f"  normalised:  mean {values.mean():.4f}, std {values.std():.4f}, {values.min():.4f} to {values.max():.4f}"
        )
        counts = part.labels.bincount(minlength=len(samples.classes)).tolist()
        for label, count in zip(samples.classes, counts, strict=True):
            print(f"  {label:>8} {count:6,} {100 * count / len(part):6.2f}% {'#' * round(200 * count / len(part))}")
    shown = torch.arange(50) * len(samples.train) // 50  # evenly spaced: mnist-5k is in the order of its classes
    titles = [samples.classes[label] for label in samples.train.labels[shown].tolist()]
    pictures = samples.train.images[shown]
    plots.digits(config.output, samples.pixels(pictures[:, 0]), titles, f"50 training samples of {samples.name}")
    print(f"\n{config.output} shows 50 training samples with their labels")
    rows = [pictures[::5]]
    for seed in range(4):
        whole, draw = slice(0, 10, 1), data.seeded(seed)
        rows.append(distort(rows[0], 10, whole, affine=config.affine, elastic=config.elastic, generator=draw))
    place = config.output.with_stem(f"{config.output.stem}-distorted")
    heading = f"Ten samples, and each distorted four times (--affine {config.affine:g} --elastic {config.elastic:g})"
    plots.digits(place, samples.pixels(torch.cat(rows)[:, 0]), titles[::5] + [""] * 40, heading)
    print(f"{place} shows what --affine {config.affine:g} and --elastic {config.elastic:g} make of ten of them")


def download(config: DownloadConfig) -> None:
    """Fetch a data set, or check the one that is there."""
    data.choose(config.dataset, config.data_dir)
    samples = data.load(config.dataset, config.data_dir)
    print(f"{config.dataset} is complete in {config.data_dir}: {len(samples.train):,} + {len(samples.test):,} samples")


def predict(config: PredictConfig) -> None:
    """Print the class and the probabilities of each picture."""
    trained = runs.locate(config.weights or runs.newest())
    model = models.from_state_dict(runs.load_weights(trained.weights)).float()
    classes = data.SOURCES.get(trained.dataset, data.SOURCES["mnist"]).classes
    print(f"model: {trained.weights}")
    for path in config.images:
        digit = (images.read_digit(path) - trained.mean) / trained.std
        probabilities = model.probabilities(digit[None, None])[0]
        if not probabilities.isfinite().all():
            raise UserError(f"the model {trained.weights} gives {path} no finite probabilities: train it again")
        best = int(probabilities.argmax())
        print(f"{path}: {classes[best]} ({100 * probabilities[best]:.2f}%)")
        for name, probability in zip(classes, probabilities.tolist(), strict=True):
            print(f"  {name:>8} {100 * probability:6.2f}% {'#' * round(40 * probability)}")


def tune(config: TuneConfig) -> None:
    """Search for settings."""
    from mnist_dist import tune as search  # only this command needs Optuna

    search.tune(config)


def export(config: ExportConfig) -> None:
    """Write a model in another format."""
    from mnist_dist import export as formats  # only this command needs torch's exporters

    suffix = formats.SUFFIXES[config.format]
    require(config.output is None or config.output.suffix == suffix, "--output", config.output, f"a {suffix} file")
    trained = runs.locate(config.model)
    target = config.output or trained.weights.with_suffix(suffix)
    require(not target.exists() or target.is_file(), "--output", target, "a file")
    difference = formats.export(trained, config.format, target)
    print(f"{target}: its logits, read back, differ from the original's by {difference:.2g} at most")


def verify(config: VerifyConfig) -> None:
    """Say whether this distributed set-up is right."""
    from mnist_dist import verify as checks  # it needs the whole training, as no other command here

    begin = time.perf_counter()
    result = checks.answer(config)
    if distributed.is_first():
        print(result)
        if config.json:
            runs.write_json(config.json, result.as_json())
    if result.failed:
        raise UserError(f"this set-up is not right: {', '.join(result.failed)} failed")
    if distributed.is_first():
        print(f"\nthis set-up trains right ({time.perf_counter() - begin:.0f} s)")


def main() -> None:
    config = parse(Command, prog="python -m mnist_dist")
    if isinstance(config, ExploreConfig):
        explore(config)
    elif isinstance(config, DownloadConfig):
        download(config)
    elif isinstance(config, PredictConfig):
        predict(config)
    elif isinstance(config, TuneConfig):
        tune(config)
    elif isinstance(config, ExportConfig):
        export(config)
    else:
        verify(config)


if __name__ == "__main__":
    distributed.run(main, "mnist_dist")
