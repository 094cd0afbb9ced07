"""DataLoader workers that start safely, and survive a request to stop."""

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import parent_process
from threading import Thread

import torch.distributed as dist
from torch.utils.data import DataLoader

from .stopping import SIGNALS

PAUSE = 0.005  # seconds

# Before Python 3.11.10 a forked process hangs for ever if another thread held the lock of the list of
# threads at that moment: it waits for the lock before it makes it anew (python/cpython #112275).
FORK_MAY_HANG = sys.version_info < (3, 11, 10)


def before_workers_start(loader: DataLoader) -> None:
    """Let gloo's threads finish with the collective before, in case the loader is about to fork workers.

    They take the lock of the list of threads when they let go of its tensors. Of forks that came at
    once after a collective 9 of 6,700 hung. A thread took the lock during 126 of 1,900 others, and
    during none of 1,900 that came 5 ms later (torch 2.14.1, Python 3.11.7, two busy cores).
    """
    if loader.num_workers and FORK_MAY_HANG and dist.is_initialized():
        time.sleep(PAUSE)


def begin_worker(then: Callable[[int], None] | None, number: int) -> None:
    """Set up a worker so that a stop signal does not kill it.

    Launchers and terminals send stop signals to a whole process group. The training process reacts
    by writing a checkpoint, until which it still needs its workers.

    Args:
        then: the user's `worker_init_fn`.
        number: the worker's id.
    """
    for each in SIGNALS:
        if each != signal.SIGTERM:
            signal.signal(each, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS has not
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=end_if_the_trainer_asks, daemon=True).start()
    if then:
        then(number)


def end_if_the_trainer_asks() -> None:
    """End this worker if SIGTERM comes from the process that it reads for, and from no other."""
    trainer = parent_process()
    while True:
        sender = signal.sigwaitinfo([signal.SIGTERM]).si_pid
        if trainer is None or sender == trainer.pid:
            os._exit(0)
