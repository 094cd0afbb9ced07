"""A watchdog: on GPUs, a process exits soon after another one dies, even while blocked in CUDA.

While a process waits for CUDA, Python cannot handle signals. NCCL notices by itself after
`rendezvous.TIMEOUT`; torchrun kills after 30 seconds, and srun never does. So a thread of each
process waits for a farewell from the next one, in a gloo group of its own. If that process dies,
its connection breaks at once. A node whose power fails closes no connection: then it takes until
the time-out.
"""

import os
import sys
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

FOREVER = timedelta(days=365)

# The advice printed by a process that exits because another one did; set by `leaving.run`.
how_to_go_on = "a training run can be resumed from its last checkpoint"


class Neighbour:
    """The process after this one, in a ring of all processes. Every process must make one."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=FOREVER)
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Wait for the neighbour's farewell, and end this process if it leaves without one."""
        following = (self.rank + 1) % self.world
        message = torch.empty(1)
        try:
            dist.recv(message, src=following, group=self.group)
        except RuntimeError:
            print(
                f"error: process {self.rank} exits because process {following} has exited: see "
                f"the error message of the first process that exited; {how_to_go_on}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def farewell(self) -> None:
        """Tell the neighbour that this exit is normal; every process must call this."""
        previous = (self.rank - 1) % self.world
        dist.send(torch.empty(1), dst=previous, group=self.group)
        self.thread.join()


NEIGHBOURS: list[Neighbour] = []  # the one of this process, if the processes watch each other
