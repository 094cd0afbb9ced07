"""Fetching a data set beforehand, for machines without internet."""

from dataclasses import dataclass

from mnist_dist.task import data, datasets
from mnist_dist.task.settings import DataConfig


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Fetch a data set beforehand, for machines without internet."""

    dataset: datasets.Published = "mnist"
    """Which data set to fetch."""


def main(config: Config) -> None:
    """Fetch a data set, or check the one that is there."""
    datasets.find(config.dataset, config.data_dir)
    samples = data.load(config.dataset, config.data_dir)
    print(f"{config.dataset} is complete in {config.data_dir}: {len(samples.train):,} + {len(samples.test):,} samples")
