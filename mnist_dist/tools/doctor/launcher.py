"""Starts the processes of a program on this machine, watches over them, and reads their records."""

import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mnist_dist.tools.doctor.record_files import read_records
from mnist_dist.tools.doctor.records import Record, Sign
from mnist_dist.tools.doctor.signs import HangWatch
from mnist_dist.tools.verify.program.start import complaint, unlaunched

FOLDER = "MNIST_DIST_DOCTOR"  # in the environment of a process that is only to leave its record
LEAVE = 20.0  # seconds for the others after one process has failed
END = 5.0  # seconds for a process that is asked to end
POLL = 0.1
LOCAL = "127.0.0.1"


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        records: of the processes, that of the first one first.
        hang: signs of life, if the processes hung and were ended.
        complaint: of a process that failed, in a line.
        seconds: that it took.
    """

    records: list[Record]
    hang: list[Sign] = field(default_factory=list)
    complaint: str = ""
    seconds: float = 0.0

    @property
    def updates(self) -> int:
        """Updates that the first process made."""
        return self.records[0].made if self.records else 0


class Launch:
    """The processes of one run.

    Args:
        words: of the command that each process is.
        world: how many there are.
        cpu: whether to hide the GPUs.
        deadline: seconds without any event after which they hang.
    """

    def __init__(self, words: list[str], world: int, cpu: bool, deadline: float) -> None:
        self.words = words
        self.world = world
        self.cpu = cpu
        self.deadline = deadline
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended_here: set[int] = set()

    def run(self, limit: float = math.inf) -> Outcome:
        """Start the processes, wait until all have ended, and return what came of it.

        Args:
            limit: seconds after which they are ended.
        """
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="doctor-") as place:
            folder = Path(place)
            output = folder / "output"
            with output.open("wb") as stream:
                try:
                    self.start(folder, stream)
                    hang = self.wait(folder, begun + limit)
                finally:
                    self.end_all()
            records = read_records(folder)
            words = output.read_text(errors="replace")
        for record in records:
            if record.rank in self.ended_here and not record.ended:
                record.status = -9
        has_failed = any(process.returncode for process in self.processes)
        said = complaint(words) if has_failed else ""
        return Outcome(records, hang, said, time.monotonic() - begun)

    def start(self, folder: Path, stream: IO[bytes]) -> None:
        """Start all processes.

        Args:
            folder: for their records.
            stream: for what they print.
        """
        port = free_port()
        for rank in range(self.world):
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": self.world,
                "LOCAL_WORLD_SIZE": self.world,
                "MASTER_ADDR": LOCAL,
                "MASTER_PORT": port,
                FOLDER: folder,
            }
            variables = self.environment()
            variables |= {name: str(value) for name, value in place.items()}
            process = subprocess.Popen(
                [sys.executable, *self.words],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            self.processes.append(process)

    def environment(self) -> dict[str, str]:
        """Return the environment that the processes share."""
        variables = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        variables |= unlaunched()
        if self.cpu:
            variables |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        return variables

    def wait(self, folder: Path, until: float) -> list[Sign]:
        """Wait until all processes have ended.

        Args:
            folder: where their signs of life are.
            until: when not to wait any longer.

        Returns:
            Their signs if they hang, otherwise nothing.
        """
        watch = HangWatch(folder, self.world, self.deadline)
        leave_until = until
        has_failed = False
        while any(process.poll() is None for process in self.processes):
            time.sleep(POLL)
            hanging = watch.hanging()
            if hanging:
                return hanging
            if not has_failed and any(process.returncode for process in self.processes):
                has_failed = True
                leave_until = min(until, time.monotonic() + LEAVE)
            if time.monotonic() > leave_until:
                return []
        return []

    def end_all(self) -> None:
        """End the processes that are still there."""
        running = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        self.ended_here.update(running)
        for rank in running:
            self.processes[rank].terminate()
        until = time.monotonic() + END
        for rank in running:
            with suppress(subprocess.TimeoutExpired):
                self.processes[rank].wait(max(0.0, until - time.monotonic()))
            self.processes[rank].kill()
            self.processes[rank].wait()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as listening:
        listening.bind((LOCAL, 0))
        return listening.getsockname()[1]


def is_launched() -> bool:
    """Return whether a launcher has started this process as one of a program's."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ
