"""Workers that read for a training, and must not die of a request to stop."""

import os
import signal
from collections.abc import Callable
from multiprocessing import parent_process
from threading import Thread

from .stopping import SIGNALS


def begin_worker(then: Callable[[int], None] | None, number: int) -> None:
    """Prepare a worker, which is not to die of a request to stop.

    Launchers and terminals send it to a whole group of processes. The one that trains answers it
    with a checkpoint, for which it still needs its workers.

    Args:
        then: the user's `worker_init_fn`.
        number: the worker's.
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
