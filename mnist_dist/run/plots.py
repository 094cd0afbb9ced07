"""TEMPORARY: see mnist_dist.plots."""

from mnist_dist.plots import *  # noqa: F403
