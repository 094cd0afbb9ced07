"""Faults that a test plants to see that they show: this stack's traps, let back in for one run.

Each is a function that gives a context in which the fault is there; `FAULTS` has them by name.
"""

from faults import checkpoints, devices, gradients, processes, results, samples  # noqa: F401
from faults.registry import FAULTS

__all__ = ["FAULTS"]
