"""Exact distributed training: an Accelerate loop whose result is the same on any number of processes.

The package is self-contained (it imports only torch, accelerate and NumPy), so you can copy it into
another project. Read `accelerator` first, then `sharing`, `update` and `exchange`.
"""

from .accelerator import ExactAccelerator
from .agreement import all_or_none, announce, check_same_across_processes
from .checkpointing import Checkpoints
from .errors import Stopped, UserError
from .evaluating import as_stored
from .hooks import register_hook
from .loader import ExactDataLoader
from .losses import MeanLoss
from .randomness import generator_for
from .sharing import MicroBatch

__all__ = [
    "Checkpoints",
    "ExactAccelerator",
    "ExactDataLoader",
    "MeanLoss",
    "MicroBatch",
    "Stopped",
    "UserError",
    "all_or_none",
    "announce",
    "as_stored",
    "check_same_across_processes",
    "generator_for",
    "register_hook",
]
