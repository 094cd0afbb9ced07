"""How the processes of `verify` are supervised, so that one that dies or hangs has a name.

They leave what they found in a store that the first one keeps. A thread of each says five times a
second where its process is. That of the first one ends the work if a process fails alone, is gone,
or takes too long.
"""

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator

from mnist_dist.core.stopping import SIGNALS
from mnist_dist.run.locks import let_go
from mnist_dist.tools.verify.process_store import ProcessStore, Sign, connect
from mnist_dist.tools.whereabouts import whereabouts

BEAT = 0.2  # seconds between two signs of life
SILENCE = 1.5  # seconds without one until a process is dead or frozen
ALONE = 3.0  # seconds in which all fail alike, or one has failed alone
END = 15.0  # seconds for the first process to say why all leave
POLL = 0.01  # seconds between two looks at what the others have left
ENDING = (signal.SIGTERM, signal.SIGINT)
LOOK_THERE = "look there, or give it more with --deadline"
NOT_ALL = "what failed there did not fail on all: look at its node, its files and its settings"
WHERE_DEAD = "look at its own last output, and at the memory and power of its node"
# Words in the errors of a process whose connection another one has closed.
CONNECTION_LOST = ("gloo", "NCCL", "Connection closed", "DistBackendError", "DistNetworkError")


class Supervisor:
    """Supervises the work of this process together with those of the other processes.

    Args:
        accelerator: the processes.
        deadline: seconds that a part may take.
        fail: prints that a line failed, by its name, what was found and what to do. It is called in
            the thread.

    Attributes:
        line: the line of the table that is being worked on.
        note: how far this process is, for people.
        folders: removed at the end, however it comes.
        parents: removed after them if nothing else is in them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        deadline: float,
        fail: Callable[[str, str, str], None],
    ) -> None:
        self.rank = accelerator.process_index
        self.world = accelerator.num_processes
        self.deadline = deadline
        self.fail = fail
        self.folders: list[Path] = []
        self.parents: list[Path] = []
        self.begin("start")
        self.round = 0  # the number of the last call of `gather`
        self.is_over = False  # all processes have done their work
        self.is_ending = False  # the thread is about to end this process
        self.signal = ""  # the one by which this process was asked to end
        self.store, store_of_thread = connect(accelerator)
        self.program = threading.main_thread().ident or 0
        self.handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self.catch_signals()
        # By these signals reach the thread while the program waits for a process.
        self.sockets = socket.socketpair()
        for end in self.sockets:
            end.setblocking(False)
        signals_to = self.sockets[1].fileno()
        self.wakeup = signal.set_wakeup_fd(signals_to, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self.watch, args=[store_of_thread], daemon=True)
        self.thread.start()

    def catch_signals(self) -> None:
        """Let the thread answer a request to end.

        It must be called again after a training, which takes such a request for its own.
        """
        for number in self.handlers:
            signal.signal(number, lambda *_: None)

    def begin(self, line: str, note: str = "", advice: str = LOOK_THERE) -> None:
        """Begin a part of the work.

        Args:
            line: the line of the table in which its trouble is to be told.
            note: how far this process is, for people.
            advice: what to do if all wait for each other for ever.
        """
        self.line = line
        self.note = note
        self.advice = advice
        self.until = time.monotonic() + self.deadline

    def gather(self, value: Any, error: str = "") -> list[Any]:
        """Gather the values of all processes, which all must call alike.

        Args:
            value: what JSON can hold.
            error: what went wrong here. All must have such a one, or this is the end.

        Returns:
            The values, that of the first process first.
        """
        self.round += 1
        self.store.leave_value(self.round, value, error)
        while not self.store.has_all_values(self.round) or self.is_ending:
            time.sleep(POLL)
        return self.store.values(self.round)

    def end_together(self, error: str) -> None:
        """Wait until all processes have failed, or until the thread ends this one, for not all have.

        Args:
            error: what went wrong here.
        """
        try:
            self.gather(None, error=error)
        except RuntimeError:  # the store is gone: the thread notices that, too, and says it
            self.thread.join()

    def close(self) -> None:
        """Leave, which all must do alike: files are removed, and signals mean what they meant."""
        self.gather(0)  # nobody reads it any more
        self.is_over = True
        self.thread.join()
        with suppress(RuntimeError):  # the store is gone: all that mattered has been said
            self.take_leave()
        self.remove_files()
        signal.set_wakeup_fd(self.wakeup)
        for end in self.sockets:
            end.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def take_leave(self) -> None:
        """Wait until this process may leave.

        Nobody leaves before the thread of the first process has ended, which would call it dead;
        and the store leaves last.
        """
        is_first = self.rank == 0
        awaited = list(range(1, self.world)) if is_first else [0]
        if is_first:
            self.store.say_goodbye()
        until = time.monotonic() + END
        while time.monotonic() < until and not self.store.have_said_goodbye(awaited):
            time.sleep(POLL)
        if not is_first:
            self.store.say_goodbye()

    def remove_files(self) -> None:
        """Leave no files."""
        let_go()  # Windows removes no file that is open
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.parents:
            with suppress(OSError):
                folder.rmdir()

    # ------------------------------------------------------------------------------ in the thread

    def watch(self, store: ProcessStore) -> None:
        """Say where this process is until all is over, and end it if something is wrong.

        Args:
            store: the thread's own connection.
        """
        try:
            self.watch_until_over(store)
        except RuntimeError as error:  # the store is gone, and the first process with it
            if self.is_over:
                return
            if self.rank == 1:
                detail = f"process 0 has died ({type(error).__name__})"
                self.fail(self.line, detail, WHERE_DEAD)
            self.leave()

    def watch_until_over(self, store: ProcessStore) -> None:
        """Do what `watch` does while there is a store."""
        beat = 0
        wrong_since: float | None = None
        while not self.is_over:
            time.sleep(BEAT)
            beat += 1
            store.leave_sign(self.sign(beat))
            if store.are_all_to_leave():
                self.leave()
            self.read_signals()
            troubled = self.troubled_round(store)
            is_late = not self.is_over and self.must_end()
            if not troubled and not is_late:
                wrong_since = None
                continue
            if wrong_since is None:
                wrong_since = time.monotonic()
            if time.monotonic() < wrong_since + self.patience(is_late):
                continue
            if self.rank == 0:
                self.is_ending = True  # the program waits from here on
                if troubled and store.has_all_values(troubled):  # just now
                    self.is_ending = False
                    wrong_since = None
                    continue
                self.end(store, troubled)
            self.leave()

    def sign(self, beat: int) -> Sign:
        """Return a sign of life of this process."""
        place, waits = whereabouts(self.program)
        return Sign(beat, self.note, place, waits)

    def read_signals(self) -> None:
        """Note by which signal this process was asked to end since it last looked, if it was."""
        with suppress(BlockingIOError):
            received = self.sockets[0].recv(1000)
            asked = set(received) & set(ENDING)
            if asked:
                self.signal = signal.Signals(min(asked)).name

    def troubled_round(self, store: ProcessStore) -> int:
        """Return the round in which some processes left an error and others nothing; 0 for none."""
        for number in (self.round, self.round + 1):
            if store.has_error(number) and not store.has_all_values(number):
                return number
        return 0

    def must_end(self) -> bool:
        """Return whether this process was asked to end, or a part takes too long."""
        return bool(self.signal) or time.monotonic() > self.until

    def patience(self, is_late: bool) -> float:
        """Return for how many seconds something may be wrong.

        Args:
            is_late: whether nothing can put it right any more.
        """
        if self.rank > 0:
            return END
        return 0.0 if is_late else ALONE

    def end(self, store: ProcessStore, troubled: int) -> None:
        """Say which process is to blame, and let all leave.

        Args:
            store: the thread's own connection.
            troubled: the round in which some left an error; 0 for none.
        """
        before = store.signs()
        time.sleep(SILENCE)
        signs = store.signs()
        signs[0] = self.sign(0)  # its thread is here
        errors = causes(store.errors(troubled))
        others = range(1, self.world)
        silent = [rank for rank in others if not signs[rank] or signs[rank] == before[rank]]
        if silent:
            verbs = "has died or is frozen" if len(silent) == 1 else "have died or are frozen"
            detail = f"{processes(silent)} {verbs}: {last_seen(signs, silent)}"
            self.fail(self.line, detail, WHERE_DEAD)
        elif errors:
            words = [f"process {rank}: {text}" for rank, text in errors.items()]
            self.fail(self.line, "; ".join(words), NOT_ALL)
        elif self.signal:
            self.fail(self.line, f"ended by {self.signal}", "start it again")
        else:
            detail, advice = self.why_late(signs)
            self.fail(self.line, f"not finished after {self.deadline:.0f} s: {detail}", advice)
        store.tell_all_to_leave()
        time.sleep(5 * BEAT)  # the store is this process's

    def why_late(self, signs: Sequence[Sign | None]) -> tuple[str, str]:
        """Return what holds up the processes, and what to do.

        Args:
            signs: the last sign of life of every process.
        """
        busy = [rank for rank, sign in enumerate(signs) if sign and not sign.waits]
        if 0 < len(busy) < self.world:
            advice = "the others wait for it: look there, or give it more seconds with --deadline"
            verb = "hangs" if len(busy) == 1 else "hang"
            return f"{processes(busy)} {verb}: {last_seen(signs, busy)}", advice
        return f"all wait: {last_seen(signs, range(self.world))}", self.advice

    def leave(self) -> NoReturn:
        """End this process, whatever its program is waiting for."""
        self.remove_files()
        os._exit(1)


def processes(ranks: Sequence[int]) -> str:
    """Return the numbers of some processes in words."""
    noun = "process" if len(ranks) == 1 else "processes"
    return f"{noun} {', '.join(map(str, ranks))}"


def last_seen(signs: Sequence[Sign | None], ranks: Sequence[int]) -> str:
    """Return where some processes were last seen.

    Args:
        signs: the last sign of life of every process.
        ranks: the numbers of those processes.
    """
    parts = []
    for rank in ranks:
        sign = signs[rank]
        parts.append(f"{rank} {sign.note} {sign.place}" if sign else f"{rank} unknown")
    return "; ".join(parts)


def causes(errors: dict[int, str]) -> dict[int, str]:
    """Leave out of errors, by process, those that follow from others, if not all do."""
    own = {rank: text for rank, text in errors.items() if not is_lost_connection(text)}
    return own or errors


def is_lost_connection(error: str) -> bool:
    """Return whether an error is that of a process whose connection another one has closed."""
    return any(word in error for word in CONNECTION_LOST)
