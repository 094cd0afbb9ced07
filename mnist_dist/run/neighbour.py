"""On GPUs a process ends soon after another has died, also if it waits in CUDA, where Python can handle no signal.

NCCL notices by itself after `rendezvous.TIMEOUT`; torchrun kills after 30 seconds, srun never. So a thread of each
waits for a farewell of the next process, in a gloo group of its own: if that one dies, its connection breaks at once. A
node whose power fails closes no connection: that takes the time-out.
"""

import os
import sys
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

FOREVER = timedelta(days=365)


class Neighbour:
    """The process after this one, in a ring; every process makes one alike."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=FOREVER)
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Wait for its farewell, and end this process if it leaves without."""
        following = (self.rank + 1) % self.world
        try:
            dist.recv(torch.empty(1), src=following, group=self.group)
        except RuntimeError:
            print(
                f"error: process {self.rank} ends, for process {following} has: the first that did says why, if it "
                "could; a training goes on from its last checkpoint with --resume",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def farewell(self) -> None:
        """Leave in peace; all processes do."""
        dist.send(torch.empty(1), dst=(self.rank - 1) % self.world, group=self.group)
        self.thread.join()
