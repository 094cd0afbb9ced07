"""Several processes for what takes seconds to import: it is imported once, and then they part."""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LEAVE = 60  # seconds for the others after one has failed
PR_SET_PDEATHSIG = 1  # of Linux


def free_port() -> int:
    """Below those that the system gives away: the process that will listen there is still to come."""
    for port in range(10_000 + os.getpid() % 10_000, 32_000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


def each_in_turn(stages: list[tuple[int, Any]], go: Callable[[Any], None]) -> None:
    """One set of processes after the other, forks of this one, so that everything is imported once.

    Args:
        stages: for each set the number of processes, and what they are to do.
        go: does it, on each of them.
    """
    for processes, task in stages:
        child = os.fork()
        if child == 0:
            if processes > 1:
                fork(processes)
            go(task)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"the runs on {processes} processes failed")


def fork(processes: int) -> None:
    """Go on as so many processes, each with what a launcher would tell it; this one waits for them and ends as they do.

    To be called before anything is computed: of a process that has threads a fork is not a sound copy.
    """
    port = free_port()
    running = set()
    for rank in range(processes):
        if (child := os.fork()) == 0:
            if sys.platform == "linux":  # none stays when the one that waits is killed
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            place: dict[str, object] = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": processes,
                "LOCAL_WORLD_SIZE": processes,
            }
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()})
            return
        running.add(child)
    failed, until = False, float("inf")
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        running.discard(child)
        if child and status and not failed:
            failed, until = True, time.monotonic() + LEAVE
        if time.monotonic() > until:
            for each in running:
                os.kill(each, signal.SIGKILL)
        time.sleep(0.02)
    os._exit(int(failed))
