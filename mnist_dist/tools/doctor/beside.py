"""A process that a launcher of the user's has started: it is watched, and the first one judges.

If the first one is killed by a signal, the first of those that are left judges.
"""

import math
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mnist_dist.core import UserError
from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.record_files import read_records, read_signs
from mnist_dist.tools.doctor.records import Record, Sign
from mnist_dist.tools.doctor.signs import BEAT, HangWatch

SILENCE = 10.0  # seconds without a sign of life until a process is dead
LEFT = 8.0  # seconds after another process has failed, in which this one notices by itself
AFTER_ERROR = 3.0  # seconds for the others to say what they know
JUDGED = "judged"  # a file that the process makes which judges, so that no other one does
Judge = Callable[[Case], int]


def common_folder(given: Path | None) -> Path:
    """Return the folder in which the processes of this run leave their records.

    Args:
        given: the one that the user has named.

    Raises:
        UserError: there are several nodes, and none was named.
    """
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        return given
    world = os.environ["WORLD_SIZE"]
    if os.environ.get("LOCAL_WORLD_SIZE", world) != world:
        reason = "the processes are on several nodes"
        raise UserError(f"{reason}: give --records and a new folder that all of them see", status=2)
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    port = os.environ.get("MASTER_PORT", "")
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"doctor-{os.getuid()}-{os.getppid()}-{port}-{run}-{start}"
    folder = Path(tempfile.gettempdir()) / name.replace("/", "_")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class Judging:
    """A process that may judge.

    Args:
        folder: where all leave their records.
        world: the number of processes.
        judge: prints what was found, and returns the exit status.
        own_folder: whether to remove the folder at the end.
    """

    def __init__(self, folder: Path, world: int, judge: Judge, own_folder: bool) -> None:
        self.folder = folder
        self.world = world
        self.judge = judge
        self.own_folder = own_folder
        self.is_over = threading.Event()
        self.status = 0

    def conclude_now(self) -> None:
        """Judge before this process is ended by a signal, which it is if another one has failed."""
        until = time.monotonic() + AFTER_ERROR
        while not self.have_all_ended() and time.monotonic() < until:
            time.sleep(BEAT)
        self.conclude([])

    def have_all_ended(self) -> bool:
        """Return whether all others have ended, or are dead."""
        records = read_records(self.folder)
        for record in records:
            if not (record.ended or record.status or self.is_silent(record)):
                return False
        return len(records) == self.world

    def is_silent(self, record: Record) -> bool:
        """Return whether a process gives no signs of life any more."""
        if is_gone(record):
            return True
        path = self.folder / f"sign-{record.rank}.json"
        return path.exists() and time.time() > path.stat().st_mtime + SILENCE

    def conclude(self, hanging: list[Sign]) -> int:
        """Judge, unless that was done, and return the exit status."""
        if self.is_over.is_set() or not self.may_judge():
            return self.status
        self.is_over.set()
        records = read_records(self.folder)
        for record in records:
            if not record.ended and not self.is_silent(record):
                record.status = record.status or -1
        self.status = self.judge(Case(records, hang=hanging))
        if self.own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.status

    def may_judge(self) -> bool:
        """Return whether no other process has judged; then this one is the one that does."""
        with suppress(OSError):  # the file is there, or the folder is removed already
            (self.folder / JUDGED).touch(exist_ok=False)
            return True
        return False


class FirstProcess(Judging):
    """What the first process does beside its training: it watches over the others, and judges.

    Args:
        folder: where all leave their records.
        world: the number of processes.
        judge: prints what was found, and returns the exit status.
        own_folder: whether to remove the folder at the end.
        deadline: seconds without any event after which they hang.
    """

    def __init__(
        self, folder: Path, world: int, judge: Judge, own_folder: bool, deadline: float
    ) -> None:
        super().__init__(folder, world, judge, own_folder)
        (folder / JUDGED).unlink(missing_ok=True)
        self.watch = HangWatch(folder, world, deadline)
        self.leave = os._exit
        self.thread = threading.Thread(target=self.watch_all, daemon=True)
        self.thread.start()

    def watch_all(self) -> None:
        """End this process, after it has judged, if all hang or it waits for one that failed."""
        failed_since = math.inf
        while not self.is_over.wait(BEAT):
            hanging = self.watch.hanging()
            if self.has_another_failed():
                failed_since = min(failed_since, time.monotonic())
            is_left = time.monotonic() > failed_since + LEFT
            if hanging or is_left:
                status = self.conclude(hanging)
                self.leave(status)

    def has_another_failed(self) -> bool:
        """Return whether another process has ended by an error."""
        ended = [sign.rank for sign in read_signs(self.folder) if sign.ended and sign.rank]
        if not ended:
            return False
        records = read_records(self.folder)
        return any(record.ended and record.error for record in records if record.rank)

    def finish(self, status: int) -> int:
        """Wait for the others, and judge.

        Args:
            status: with which the program ended here.

        Returns:
            The status with which this process is to end.
        """
        begun = time.monotonic()
        while not self.have_all_ended():
            time.sleep(BEAT)
            if status and time.monotonic() > begun + AFTER_ERROR:
                break
        return self.conclude([]) or status


class LaterProcess(Judging):
    """What another process does: it judges if the first one has died, and those before it are gone.

    Args:
        rank: of this process.
        folder: where all leave their records.
        world: the number of processes.
        judge: prints what was found, and returns the exit status.
        own_folder: whether to remove the folder at the end.
    """

    def __init__(self, rank: int, folder: Path, world: int, judge: Judge, own_folder: bool) -> None:
        super().__init__(folder, world, judge, own_folder)
        self.rank = rank

    def takes_over(self) -> bool:
        """Return whether this process is to judge in place of the first one."""
        with suppress(OSError):  # the folder is removed when another one has judged
            before = [record for record in read_records(self.folder) if record.rank < self.rank]
            has_died = any(
                not record.ended and record.status == 0 for record in before if record.rank == 0
            )
            return has_died and all(is_gone(record) for record in before)
        return False

    def conclude_if_first_died(self) -> None:
        """Judge before this process is ended by a signal, as it is if the first one was."""
        if self.takes_over():
            self.conclude_now()

    def finish(self, status: int) -> int:
        """Judge if the program failed here because the first process has died.

        Args:
            status: with which the program ended here.

        Returns:
            The same.
        """
        if status == 0:
            return status
        with undisturbed():
            until = time.monotonic() + AFTER_ERROR
            while not self.takes_over() and time.monotonic() < until:
                time.sleep(BEAT)
            self.conclude_if_first_died()
        return status


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no SIGTERM, which a launcher sends when a process has failed, end this one meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a thread of the program has called os._exit, and only the main one may do this
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_gone(record: Record) -> bool:
    """Return whether a process of this node is no more there, or only waits to be cleared away."""
    if record.node != platform.node():
        return False
    try:
        os.kill(record.pid, 0)
        state = Path(f"/proc/{record.pid}/stat").read_text()
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it is there, but this system does not say what it does
    return state.rpartition(")")[2].split()[0] == "Z"
