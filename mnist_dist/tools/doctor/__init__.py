"""What is wrong with *your* distributed training, without a change to it (docs/doctor.md).

Hooks that are set before the program begins write down what each process does (`watch_*.py`,
`records.py`); rules judge what they have written (`rules_*.py`, `judge.py`).
"""

from mnist_dist.tools.doctor.command import Config, main, read

__all__ = ["Config", "main", "read"]
