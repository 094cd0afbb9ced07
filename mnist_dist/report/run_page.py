"""The page of one run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_dist import __version__
from mnist_dist.core.errors import UserError
from mnist_dist.records.columns import Row
from mnist_dist.records.files import read
from mnist_dist.report import about, network
from mnist_dist.report.curves import curves
from mnist_dist.report.document import LARGEST, as_text, document
from mnist_dist.report.thumbnails import thumbnails
from mnist_dist.run.files import write_file
from mnist_dist.run.folder import WEIGHTS, settings_of
from mnist_dist.run.weights import load_weights
from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import SURE, Evaluation
from mnist_dist.task.layouts import layout_of


def write(
    path: Path,
    folder: Path,
    test: Evaluation,
    samples: DataSplits,
    history: Sequence[Mapping[str, Any]],
    train_seconds: float | None = None,
) -> None:
    """Write the page of a run.

    Args:
        path: the HTML file.
        folder: the run's folder.
        test: what the trained model says of the test samples.
        samples: the data.
        history: all figures of the run, or none if they are not known.
        train_seconds: how long the training took, if the run's summary does not say it yet.

    Raises:
        UserError: the run's weights cannot be read.
        ValueError: these are not the files of a run, or they are damaged.
        OSError: a file cannot be read or written.
    """
    row, epochs = read(folder)
    weights = load_weights(folder / WEIGHTS)
    parameters = sum(tensor.numel() for tensor in weights.values())
    seconds = train_seconds if train_seconds is not None else row["train_seconds"]
    name = folder.resolve().name
    content = {
        "name": as_text(name),
        "version": __version__,
        "noun": about.noun_of(samples.name),
        "dataset": samples.name,
        "layout": layout_of(samples.name).name,
        "classes": list(samples.classes),
        "sure": SURE,
        "facts": about.facts(row, samples, parameters, seconds),
        "settings": about.settings(row),
        "versions": about.versions(row),
        "again": about.command_again(settings_of(folder), int(row["num_processes"] or 1)),
        "called": row.get("command"),
        "notes": notes(row, test),
        "curves": curves(epochs, history),
        "thumbnails": thumbnails(test, samples),
        "normalization": {"mean": samples.mean, "std": samples.std},
        **figures(test),
    }
    title = f"{name}: {100 * test.accuracy:.2f}% on {samples.name}"
    without_weights = document("run", title, content | {"network": None, "remark": None})
    room = LARGEST - len(without_weights) - 1000  # for the names around them
    content["network"], content["remark"] = network.for_page(weights, room)
    write_file(path, document("run", title, content))


def figures(test: Evaluation) -> dict[str, Any]:
    """Collect the figures of an evaluation.

    Args:
        test: what the trained model says of the test samples.

    Returns:
        JSON values by name.
    """
    accuracy = test.accuracy
    return {
        "accuracy": accuracy,
        "error": math.sqrt(accuracy * (1 - accuracy) / test.total),
        "correct": test.correct,
        "total": test.total,
        "loss": test.loss,
        "confusion": test.confusion.tolist(),
        "reliability": [asdict(each) for each in test.reliability()],
        "calibration_error": test.calibration_error,
    }


def notes(row: Row, test: Evaluation) -> list[str]:
    """Say what a reader has to know before trusting the figures of a page.

    Args:
        row: what the run's files say.
        test: what the trained model says of the test samples.

    Returns:
        Sentences, perhaps none.
    """
    found = []
    accuracy = row.get("test_accuracy")
    if accuracy is not None and abs(accuracy - test.accuracy) > 1e-9:
        found.append(
            f"When the run ended, its test accuracy was {100 * accuracy:.2f}%. For this page the "
            f"model was evaluated again, which gave {100 * test.accuracy:.2f}%."
        )
    return found


def refuse_unfinished(folder: Path, row: Row) -> None:
    """Refuse a run that has no trained model yet.

    Args:
        folder: the run's folder.
        row: what the run's files say.

    Raises:
        UserError: says what state the run is in, and what to do.
    """
    state = row["state"]
    if state == "running":
        raise UserError(f"the run in {folder} is not finished: wait for it")
    if state != "done":
        reason = f" ({row['reason']})" if row["reason"] else ""
        raise UserError(
            f"the run in {folder} is not finished, but {state}{reason}: resume it with "
            f"--output-dir {folder} --resume"
        )
