"""DataLoader workers that survive a request to stop."""

import os
import signal
from collections.abc import Callable
from multiprocessing import parent_process
from threading import Thread

from .stopping import SIGNALS


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
