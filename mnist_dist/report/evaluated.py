"""A finished run evaluated again, for its page."""

from pathlib import Path

from mnist_dist.core import ExactAccelerator, UserError, all_or_none
from mnist_dist.digits.trained import locate
from mnist_dist.run import weights
from mnist_dist.run.folder import settings_of
from mnist_dist.task import data, datasets, networks
from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import Evaluation, classify, evaluation_loader


def evaluate(
    accelerator: ExactAccelerator, folder: Path, data_dir: Path | None
) -> tuple[Evaluation, DataSplits]:
    """Classify the test samples by the model of a run. Every process must call this.

    Args:
        accelerator: the processes.
        folder: the run's folder.
        data_dir: the folder with the data; None for the run's own if they are there, else `data`.

    Returns:
        What the model says, and the data.

    Raises:
        UserError: the model or the data cannot be read, the data are not those of the run, or the
            model's loss is not finite.
    """
    with all_or_none():
        trained = locate(folder)
        model = networks.from_state_dict(weights.load_weights(trained.weights))
        place = data_dir or datasets.folder_with(
            trained.dataset, Path(trained.data_dir), datasets.DATA_DIR
        )
    dtype = next(model.parameters()).dtype
    samples = data.obtain(
        accelerator, trained.dataset, place, trained.val_size, trained.seed, dtype
    )
    known = settings_of(folder).get("data_digest")
    if known not in (None, samples.digest):
        raise UserError(
            f"the files of {samples.name} in {place} are not those that the run in {folder} was "
            "trained with: name the folder with them by --data-dir"
        )
    loader = accelerator.prepare(evaluation_loader(samples.test))
    result = classify(accelerator, model.to(accelerator.device, dtype), loader)
    result.metrics("test")  # refuses a loss that is not finite
    return result, samples
