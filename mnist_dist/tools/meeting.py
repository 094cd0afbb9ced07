"""How the processes of `verify` speak to each other beside what they check, so that one that dies or hangs has a name.

They leave what they found in a store that the first one keeps. A thread of each says five times a second where its
process is; that of the first one ends the work if a process fails alone, is gone, or takes too long.
"""

import json
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mnist_dist.core.processes import SIGNALS
from mnist_dist.run.locks import let_go

BEAT, SILENCE = 0.2, 1.5  # seconds between two signs of life, and without one until a process is dead or frozen
ALONE = 3.0  # seconds in which all fail alike, or one has failed alone
END = 15.0  # seconds for the first process to say why all leave
ENDING = (signal.SIGTERM, signal.SIGINT)
LIBRARIES = ("/torch/", "/accelerate/", "/lib/python")
WAITING = ("torch/distributed/", "accelerate/utils/operations", "core/processes", "core/gradients")


class Meeting:
    """What all processes of a `verify` hold alike.

    Args:
        deadline: seconds that a part may take.
        fail: prints that a line failed, by its name, what was found and what to do; called in the thread.

    Attributes:
        line: the line of the table that is being worked on.
        note: how far this process is, for people.
        folders: removed at the end, however it comes.
        parents: removed after them if nothing else is in them.
    """

    def __init__(self, accelerator: Accelerator, deadline: float, fail: Callable[[str, str, str], None]) -> None:
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.deadline, self.fail, self.folders = deadline, fail, list[Path]()
        self.parents = list[Path]()
        self.begin("start")
        self.round, self.over, self.ending, self.signal = 0, False, False, ""
        self.store, store_of_thread = self.connect()
        self.main = threading.main_thread().ident or 0
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        self.catch_signals()
        self.ends = socket.socketpair()  # by which signals reach the thread while the program waits for a process
        for end in self.ends:
            end.setblocking(False)
        self.wakeup = signal.set_wakeup_fd(self.ends[1].fileno(), warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self.watch, args=[store_of_thread], daemon=True)
        self.thread.start()

    def connect(self) -> tuple[dist.Store, dist.Store]:
        """Two connections to the store: a program and a thread that shared one would wait for each other."""
        store = partial(dist.TCPStore, use_libuv=sys.platform != "win32")  # torch is built without it there
        server = store("127.0.0.1", 0, is_master=True, wait_for_workers=False) if self.rank == 0 else None
        address = (own_address() if self.world > 1 else "127.0.0.1", server.port) if server else None
        ((host, port),) = broadcast_object_list([address])
        return server or store(host, port, is_master=False), store(host, port, is_master=False)

    def catch_signals(self) -> None:
        """Let the thread answer a request to end; to be called again after a training, which takes it for its own."""
        for number in self.before:
            signal.signal(number, lambda *_: None)

    def begin(self, line: str, note: str = "", advice: str = "look there, or give it more with --deadline") -> None:
        """A part begins, whose trouble is to be told in this line; with advice if all wait for each other for ever."""
        self.line, self.note, self.advice, self.until = line, note, advice, time.monotonic() + self.deadline

    def gather(self, value: Any, error: str = "") -> list[Any]:
        """The values of all processes, which JSON can hold; all call it alike.

        Args:
            error: what went wrong here. All must have such a one, or this is the end.
        """
        self.round += 1
        self.store.set(f"{self.round}/{self.rank}", json.dumps(value))
        if error:
            self.store.set(f"{self.round}/error/{self.rank}", error)
            self.store.set(f"{self.round}/trouble", "")
        while not self.all_came(self.store, self.round) or self.ending:
            time.sleep(0.01)
        return [json.loads(self.store.get(f"{self.round}/{rank}")) for rank in range(self.world)]

    def all_came(self, store: dist.Store, number: int) -> bool:
        """Whether every process has left its value of a round."""
        return store.check([f"{number}/{rank}" for rank in range(self.world)])

    def close(self) -> None:
        """Leave: what was made for the work is removed, and signals mean what they meant."""
        self.gather(0)  # nobody reads it any more
        self.over = True
        self.thread.join()
        # Nobody leaves before the first one's thread has ended, which would call it dead; and the store leaves last.
        awaited = range(1, self.world) if self.rank == 0 else [0]
        if self.rank == 0:
            self.store.set("bye/0", "")
        until = time.monotonic() + END
        with suppress(RuntimeError):  # the store is gone: all that mattered has been said
            while time.monotonic() < until and not self.store.check([f"bye/{rank}" for rank in awaited]):
                time.sleep(0.01)
            if self.rank:
                self.store.set(f"bye/{self.rank}", "")
        self.clean()
        signal.set_wakeup_fd(self.wakeup)
        for end in self.ends:
            end.close()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def clean(self) -> None:
        """Leave no files."""
        let_go()  # Windows removes no file that is open
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.parents:
            with suppress(OSError):
                folder.rmdir()

    # ------------------------------------------------------------------------------------------------ in the thread

    def watch(self, store: dist.Store) -> None:
        """Say where this process is until all is over, and end it if something is wrong."""
        beat, wrong = 0, 0.0  # when it began to be
        try:
            while not self.over:
                time.sleep(BEAT)
                beat += 1
                store.set(f"beat/{self.rank}", json.dumps([beat, self.note, *place(self.main)]))
                if store.check(["end"]):
                    self.leave()
                with suppress(BlockingIOError):
                    asked = set(self.ends[0].recv(1000)) & set(ENDING)
                    self.signal = signal.Signals(min(asked)).name if asked else self.signal
                rounds = [number for number in (self.round, self.round + 1) if store.check([f"{number}/trouble"])]
                troubled = next((number for number in rounds if not self.all_came(store, number)), 0)
                late = not self.over and (bool(self.signal) or time.monotonic() > self.until)
                wrong = (wrong or time.monotonic()) if troubled or late else 0.0
                patience = END if self.rank else 0.0 if late else ALONE
                if wrong and time.monotonic() >= wrong + patience:
                    if self.rank == 0:
                        self.ending = True  # the program waits from here on
                        if troubled and self.all_came(store, troubled):  # just now
                            wrong, self.ending = 0.0, False
                            continue
                        self.end(store, troubled)
                    self.leave()
        except RuntimeError as error:  # the store is gone, and the first process with it
            if not self.over:
                if self.rank == 1:
                    self.fail(self.line, f"process 0 has died ({type(error).__name__})", WHERE_DEAD)
                self.leave()

    def end(self, store: dist.Store, troubled: int) -> None:
        """Say which process is to blame, and let all leave.

        Args:
            troubled: the round in which some left an error; 0 for none.
        """
        before = self.signs(store)
        time.sleep(SILENCE)
        signs = self.signs(store)
        signs[0] = [0, self.note, *place(self.main)]  # its thread is here
        silent = [rank for rank in range(1, self.world) if not signs[rank] or signs[rank] == before[rank]]
        keys = {rank: f"{troubled}/error/{rank}" for rank in range(self.world)}
        words = {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}
        words = {rank: text for rank, text in words.items() if not lost_another(text)} or words
        if silent:
            what = f"process {', '.join(map(str, silent))} has died or is frozen: " + where(signs, silent)
            advice = WHERE_DEAD
        elif words:
            what = "; ".join(f"process {rank}: {text}" for rank, text in words.items())
            advice = NOT_ALL
        elif self.signal:
            what, advice = f"ended by {self.signal}", "start it again"
        else:
            stuck = [rank for rank, sign in enumerate(signs) if not sign[3]]
            what, advice = f"not done after {self.deadline:.0f} s: ", self.advice
            if 0 < len(stuck) < self.world:
                what += f"process {', '.join(map(str, stuck))} hangs: {where(signs, stuck)}"
                advice = "the others wait for it: look there, or give it more seconds with --deadline"
            else:
                what += f"all wait: {where(signs, [*range(self.world)])}"
        self.fail(self.line, what, advice)
        store.set("end", "")
        time.sleep(5 * BEAT)  # the store is this process's

    def signs(self, store: dist.Store) -> list[Any]:
        """The last sign of life of every process, None without one."""
        keys = [f"beat/{rank}" for rank in range(self.world)]
        return [json.loads(store.get(key)) if store.check([key]) else None for key in keys]

    def leave(self) -> NoReturn:
        """End this process, whatever its program is waiting for."""
        self.clean()
        os._exit(1)


NOT_ALL = "what failed there did not fail on all: look at its node, its files and its settings"
WHERE_DEAD = "look at its own last words, and at the memory and power of its node"


def own_address() -> str:
    """The address by which others reach this process's node: MASTER_ADDR may be another's, on which torchrun met."""
    with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=30) as way:
        return way.getsockname()[0]


def where(signs: list[Any], ranks: list[int]) -> str:
    """Where some processes were last seen."""
    return "; ".join(f"{rank} {' '.join(signs[rank][1:3])}" if signs[rank] else f"{rank} unknown" for rank in ranks)


def lost_another(text: str) -> bool:
    """Whether an error is that of a process whose connection another has closed."""
    return any(word in text for word in ("gloo", "NCCL", "Connection closed", "DistBackendError", "DistNetworkError"))


def place(thread: int) -> tuple[str, bool]:
    """Where a thread of this process is, as `on NODE in FILE:LINE FUNCTION`, and whether it waits for others there."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_stack(sys._current_frames().get(thread))]
    waits = any(part in code.co_filename for code, _ in frames for part in WAITING) or any(
        code.co_name in ("_engine_run_backward", "gather") for code, _ in frames
    )
    own = [(code, line) for code, line in frames if not any(part in code.co_filename for part in LIBRARIES)]
    code, line = (own or frames)[0]
    return f"on {platform.node()} in {Path(code.co_filename).name}:{line} {code.co_name}", waits
