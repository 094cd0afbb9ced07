"""The record of a training on digits, which ends with a report in Weights & Biases (W&B)."""

from functools import partial
from typing import Any

from torch import Tensor

from mnist_dist.run import tracking
from mnist_dist.run.folder import REPORT, WEIGHTS
from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import Evaluation

MISTAKES = 50  # the most confident mistakes are in the table
COLUMNS = ("sample", "image", "class", "predicted", "confidence")  # of that table


class Tracker(tracking.Tracker):
    """Records a training on digits.

    Its settings must have `dataset`, `model`, `wandb_model` (whether to store the trained model in
    W&B) and `report` (whether to store the run's page).
    """

    def log_evaluation(self, test: Evaluation, samples: DataSplits) -> None:
        """Add to W&B the confusion matrix, the mistakes and, if asked for, the trained model.

        Args:
            test: the evaluation on the test samples.
            samples: the data.
        """
        self.show_at_end(partial(self.report, test, samples))

    def report(self, test: Evaluation, samples: DataSplits, run: Any, step: int) -> None:
        """Log what belongs to the end, in W&B's thread.

        Args:
            test: the evaluation on the test samples.
            samples: the data.
            run: the run of W&B's library.
            step: the number of the update to log it at.
        """
        import wandb

        chart = confusion_matrix(test, samples)
        mistakes = wandb.Table(columns=list(COLUMNS), data=rows_of_mistakes(test, samples))
        run.log({"confusion_matrix": chart, "mistakes": mistakes}, step=step)
        if self.settings["wandb_model"]:
            self.store(run, WEIGHTS, "model")
        # It is not there if it could not be written.
        if self.settings["report"] and (self.folder / REPORT).exists():
            self.store(run, REPORT, "report", "-report")

    def store(self, run: Any, file: str, kind: str, suffix: str = "") -> None:
        """Store one of the run's files in W&B as an artifact.

        Args:
            run: the run of W&B's library.
            file: the name of the file in the run's folder.
            kind: the type of the artifact.
            suffix: what the name of the artifact ends with.
        """
        import wandb

        name = f"{self.settings['dataset']}-{self.settings['model']}{suffix}"
        artifact = wandb.Artifact(name, type=kind)
        artifact.add_file(str(self.folder / file))
        run.log_artifact(artifact)


def confusion_matrix(test: Evaluation, samples: DataSplits) -> Any:
    """Draw the confusion matrix as W&B draws it.

    Args:
        test: the evaluation on the test samples.
        samples: the data.

    Returns:
        A chart of W&B's library.
    """
    import wandb

    return wandb.plot.confusion_matrix(
        y_true=test.labels.tolist(),
        preds=test.predictions.tolist(),
        class_names=list(samples.classes),
        title="Test confusion matrix",
    )


def rows_of_mistakes(test: Evaluation, samples: DataSplits) -> list[list[Any]]:
    """List the most confident mistakes, with their images.

    Args:
        test: the evaluation on the test samples.
        samples: the data.

    Returns:
        A row with the `COLUMNS` for each mistake, the most confident one first.
    """
    import wandb

    numbers = test.mistakes()[:MISTAKES]
    confidence = test.probabilities.max(dim=1).values
    rows = []
    for number, image in zip(numbers.tolist(), grey_images(numbers, samples), strict=True):
        label = int(test.labels[number])
        prediction = int(test.predictions[number])
        row = [
            number,
            wandb.Image(image, mode="L"),
            samples.classes[label],
            samples.classes[prediction],
            float(confidence[number]),
        ]
        rows.append(row)
    return rows


def grey_images(numbers: Tensor, samples: DataSplits) -> Any:
    """Take images out of the test samples.

    Args:
        numbers: (n,) the numbers of the samples.
        samples: the data.

    Returns:
        (n, 28, 28) uint8, a NumPy array.
    """
    images = samples.test.images
    chosen = images[numbers.to(images.device), 0]
    grey_values = samples.pixels(chosen).cpu().numpy()
    return (255 * grey_values).astype("uint8")
