"""The command `download`: fetching a data set beforehand, for machines without internet."""

from dataclasses import dataclass

from mnist_dist.run.printing import allow_any_name
from mnist_dist.task import data, datasets
from mnist_dist.task.settings import DataConfig


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Fetch a data set beforehand, for machines without internet."""

    dataset: datasets.Published = "mnist"
    """Which data set to fetch."""


def main(config: Config) -> None:
    """Fetch a data set, or check the one that is there.

    Args:
        config: the flags.

    Raises:
        UserError: it cannot be had, or is damaged.
    """
    allow_any_name()
    datasets.find(config.dataset, config.data_dir)
    samples = data.load(config.dataset, config.data_dir)
    train = f"{len(samples.train):,}"
    test = f"{len(samples.test):,}"
    print(f"{config.dataset} is complete in {config.data_dir}: {train} + {test} samples")
