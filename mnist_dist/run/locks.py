"""Locks on the folders of runs, so that one process at a time writes a run.

The file system's own lock ends with the process that holds it, however that ends. Where there are
no such locks, or each node knows only its own, a file in the folder says who holds it (`heartbeat_lock`).
"""

import os
import time
from pathlib import Path
from typing import NoReturn

from filelock import lock_descriptor

from mnist_dist.core.errors import UserError
from mnist_dist.core.files import warn_once
from mnist_dist.run import heartbeat_lock

TAKE_OVER = 60  # seconds to wait for the previous attempt to exit; launchers kill it after 30
LOCKS: list[int] = []  # the descriptors that hold the locks of this process
HOLDERS: list[heartbeat_lock.HeartbeatLock] = []  # what holds folders where locks do not


def lock(folder: Path) -> None:
    """Let no other process write this run before `let_go`, or before this process ends.

    Args:
        folder: the run's folder, which must exist.

    Raises:
        UserError: another process holds it.
    """
    descriptor = open_lock(folder)
    try:
        is_held = try_lock(descriptor)  # the system releases it however the process ends
    except OSError as error:
        os.close(descriptor)
        hold_without_lock(folder, f"has no locks ({error.strerror})")
        return
    if not is_held:
        os.close(descriptor)
        refuse(folder)
    try:
        if not lock_holds(folder):
            hold_without_lock(folder, "grants the same lock twice")
        elif heartbeat_lock.is_of_several_nodes(folder):
            HOLDERS.append(heartbeat_lock.hold(folder))  # the lock may be this node's alone
    except (UserError, OSError):
        os.close(descriptor)
        raise
    LOCKS.append(descriptor)


def hold_without_lock(folder: Path, what: str) -> None:
    """Hold a folder by a file in it, and say so.

    Args:
        folder: the run's folder.
        what: what its file system does, for the warning.

    Raises:
        UserError: another process holds it.
    """
    HOLDERS.append(heartbeat_lock.hold(folder))
    warn_once(
        f"lock of {folder}",
        f"the file system of {folder} {what}: {heartbeat_lock.NAME} is used as a lock file there instead",
    )


def refuse(folder: Path) -> NoReturn:
    """Refuse a folder in which another process is at work."""
    problem = f"another process is writing the run in {folder}"
    raise UserError(f"{problem}: wait for it, or choose another folder")


def lock_holds(folder: Path) -> bool:
    """Find out whether a folder that this process has locked is locked for others."""
    descriptor = open_lock(folder)
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def take_over(folder: Path) -> None:
    """Lock a run as soon as the previous attempt, whose processes may still be exiting, has released it.

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
    """Release all locks of this process, which keeps running."""
    while HOLDERS:
        HOLDERS.pop().let_go()
    while LOCKS:
        os.close(LOCKS.pop())


def is_running(folder: Path) -> bool:
    """Find out by its lock, or the file in place of it, whether a process is writing a run.

    Args:
        folder: the run's folder.

    Returns:
        True if it is being written.
    """
    if heartbeat_lock.seems_held(folder):
        return True
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
