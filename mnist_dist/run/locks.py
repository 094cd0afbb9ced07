"""Locks on the folders of runs, so that one process at a time writes a run."""

import os
import time
from pathlib import Path

from filelock import lock_descriptor

from mnist_dist.core.errors import UserError

TAKE_OVER = 60  # seconds for the process of the attempt before to end; a launcher kills it after 30
LOCKS: list[int] = []  # the descriptors that hold the locks of this process


def lock(folder: Path) -> None:
    """Let no other process write this run before `let_go`, or before this process ends.

    If the file system has no locks, this does nothing.

    Args:
        folder: the run's folder, which must exist.

    Raises:
        UserError: another process holds the lock.
    """
    descriptor = open_lock(folder)
    try:
        is_held = try_lock(descriptor)  # the system releases it however the process ends
    except OSError:
        os.close(descriptor)
        return
    if not is_held:
        os.close(descriptor)
        problem = f"another process is writing the run in {folder}"
        raise UserError(f"{problem}: wait for it, or choose another folder")
    LOCKS.append(descriptor)


def take_over(folder: Path) -> None:
    """Lock a run as soon as the attempt before has left it, whose processes may be about to end.

    Args:
        folder: the run's folder.

    Raises:
        UserError: another process still holds the lock after `TAKE_OVER` seconds.
    """
    deadline = time.monotonic() + TAKE_OVER
    while True:
        try:
            lock(folder)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def let_go() -> None:
    """Unlock all runs of this process, which is to go on without them."""
    while LOCKS:
        os.close(LOCKS.pop())


def is_running(folder: Path) -> bool:
    """Find out by its lock whether a process is writing a run.

    Args:
        folder: the run's folder.

    Returns:
        True if it is being written. False also if the file system has no locks.
    """
    descriptor = open_lock(folder)
    try:
        return not try_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)  # which also releases the lock


def open_lock(folder: Path) -> int:
    """Open what stands for a run's folder when it is locked.

    Args:
        folder: the run's folder.

    Returns:
        A file descriptor. It is the folder's, or, on Windows, which opens no folders, that of a
        file in it.
    """
    if hasattr(os, "O_DIRECTORY"):
        return os.open(folder, os.O_RDONLY)
    return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)


def try_lock(descriptor: int) -> bool:
    """Try to lock a file, also a moment later: another process may only look, as `is_running` does.

    Args:
        descriptor: as `open_lock` returns it.

    Returns:
        Whether this process holds the lock now.
    """
    for _ in range(3):
        if lock_descriptor(descriptor, blocking=False):
            return True
        time.sleep(0.05)
    return False
