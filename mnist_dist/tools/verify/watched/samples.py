"""Small data sets for watched trainings."""

from dataclasses import replace

from mnist_dist.task.data import DataSplits, Split


def cut(samples: DataSplits, train: int, others: int) -> DataSplits:
    """Return the first samples of each split.

    Args:
        samples: the whole data set.
        train: how many to train on.
        others: how many to test with, and of those held out.
    """
    return replace(
        samples,
        train=first(samples.train, train),
        test=first(samples.test, others),
        val=first(samples.val, others) if samples.val else None,
    )


def first(split: Split, count: int) -> Split:
    """Return the first samples of a split."""
    return Split(split.images[:count], split.labels[:count])
