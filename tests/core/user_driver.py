"""Runs user_script.py with many settings on several numbers of processes, importing everything once.

    python tests/core/user_driver.py '[[W, [[[flag, ...], fault or null], ...]], ...]'

Each W is one set of processes, one after the other; each list of flags is one run of the script in all of them; with a
fault it has that fault of exact_faults.py.
"""

import json
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
import user_script
from accelerate.state import AcceleratorState, GradientState
from exact_faults import OF_BITS
from forked import each_in_turn

from mnist_dist.core import ExactAccelerator  # noqa: F401  # imported before the processes part

Run = tuple[list[str], str | None]


def go(runs: list[Run]) -> None:
    """Run the script with each of these settings."""
    torch.set_num_threads(1)
    for words, fault in runs:
        with OF_BITS[fault]() if fault else nullcontext():
            user_script.train(user_script.settings(words))
        AcceleratorState._reset_state()  # another run may have another precision
        GradientState._reset_state()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    each_in_turn(json.loads(sys.argv[1]), go)
