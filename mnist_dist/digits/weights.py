"""The models of finished runs and from elsewhere: where they are, and what is in their files."""

from mnist_dist.digits.trained import METADATA, Trained, locate
from mnist_dist.run.folder import WEIGHTS
from mnist_dist.run.weights import fingerprint, load_weights, save_weights

__all__ = [
    "METADATA",
    "WEIGHTS",
    "Trained",
    "fingerprint",
    "load_weights",
    "locate",
    "save_weights",
]
