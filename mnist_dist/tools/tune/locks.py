"""Locks of a study: what only one of its processes may do at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from mnist_dist.run.folder import JOURNAL

FOLDER = ".locks"  # in the study's folder, beside its journal
WRITING = "writing"  # the lock of who adds a line to the journal
CLAIMING = "claiming"  # the lock of who decides which process makes which trial
LINE = b'{"op_code":'  # how every line of a journal begins
POLL = 0.01  # seconds between two tries to lock what another process holds


class Locks:
    """Locks by name, each a file beside the journal that a process locks.

    The system frees them however that process ends. Optuna's own locks outlive it, and hold up the
    others. To Optuna an object of this class is the lock of its journal: it calls `acquire` and
    `release`.

    Args:
        folder: the study's.

    Attributes:
        journal: the study's file, to which all processes append.
    """

    def __init__(self, folder: Path) -> None:
        self.journal = folder / JOURNAL
        self.folder = folder / FOLDER
        self.folder.mkdir(exist_ok=True)
        self.descriptors: dict[str, int] = {}  # of what this process has locked, by name

    def lock(self, name: str, wait: bool = True) -> bool:
        """Lock a name.

        Args:
            name: what to lock.
            wait: whether to wait for a process that holds it.

        Returns:
            Whether this process has locked it now.
        """
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        is_locked = lock_descriptor(descriptor, blocking=wait, poll_interval=POLL)
        if is_locked:
            self.descriptors[name] = descriptor
        else:
            os.close(descriptor)
        return is_locked

    def unlock(self, name: str) -> None:
        """Unlock a name that this process has locked."""
        os.close(self.descriptors.pop(name))

    def close(self) -> None:
        """Unlock all that this process has locked."""
        for name in list(self.descriptors):
            self.unlock(name)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Enter a block in which no other process changes whose a trial is."""
        self.lock(CLAIMING)
        try:
            yield
        finally:
            self.unlock(CLAIMING)

    def acquire(self) -> bool:
        """Prepare to add a line to the journal, for Optuna.

        Returns:
            True.

        Raises:
            ValueError: the file's last line is not one of a journal.
        """
        self.lock(WRITING)
        try:
            remove_unfinished_line(self.journal)
        except ValueError:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Let others add lines to the journal, for Optuna."""
        self.unlock(WRITING)


def remove_unfinished_line(journal: Path) -> None:
    """Remove the half line of a process that was killed while it wrote.

    Raises:
        ValueError: the file's last line is not one of a journal, and so is left alone.
    """
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"", b"\n"):
            return
        file.seek(0)
        content = file.read()
        finished = content.rfind(b"\n") + 1
        beginning = content[finished:][: len(LINE)]
        if not LINE.startswith(beginning):
            raise ValueError("its last line is not one of a journal")
        file.truncate(finished)
