"""Reports which processes wait for others, where, and where the missing ones are.

If only some processes make a call that all must make, those wait until the process group times out.
So a thread in each process checks its position every few seconds. After `SECONDS` in the same wait
it asks all processes, through the store of the rendezvous, to write down where they are, and one of
them prints the result. Until then the only traffic is one lookup in the store per check.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from .output import warn
from .whereabouts import Place, place_of

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator

SECONDS = 15.0  # in one wait, after which processes ask each other where they are
LOOKS = 5  # in that time
ASKED = "asked"  # the key in the store by which processes are asked where they are
MANY = 8  # processes that are named by their numbers


class Watch:
    """Watches the waits of this process.

    Args:
        accelerator: of the processes, on the thread that trains.
    """

    def __init__(self, accelerator: "ExactAccelerator") -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.trains = threading.get_ident()
        self.process = os.getpid()
        self.of(accelerator)
        self.store: Any = None
        self.moment: tuple[Any, ...] = ()  # where the process was when its wait began
        self.since = time.monotonic()
        self.looks_after_asking = 0
        self.told: set[str] = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="waits", daemon=True)
        self.thread.start()
        atexit.register(self.end)

    def of(self, accelerator: "ExactAccelerator") -> None:
        """Report the progress of this accelerator from now on."""
        self.accelerator = weakref.ref(accelerator)

    def run(self) -> None:
        """Check every few seconds until the process ends or the store is gone."""
        while not self.ended.wait(SECONDS / LOOKS):
            try:
                self.look()
            except (RuntimeError, OSError, ValueError):
                return

    def look(self) -> None:
        """Check where this process is, write it down if asked, and ask all others after a long wait."""
        place = place_of(self.trains)
        if place is None or not dist.is_initialized():
            return
        progress = self.progress()
        moment = (place.frames, progress, messages())
        if moment != self.moment or not place.waits:
            self.moment = moment
            self.since = time.monotonic()
            self.looks_after_asking = 0
        waited = time.monotonic() - self.since
        store = self.reach()
        if waited >= SECONDS:
            store.set(ASKED, "")
            self.looks_after_asking += 1
        if store.check([ASKED]):
            about = [str(place), place.waits, progress, waited]
            store.set(f"at/{self.rank}", json.dumps(about))
        # By now the others have had the time to look, too.
        if self.looks_after_asking > 2 and str(place) not in self.told:
            self.tell(place, progress, waited)

    def progress(self) -> list[Any]:
        """Return the position in the training, which is equal on processes that are at the same point."""
        accelerator = self.accelerator()
        if accelerator is None:
            return []
        now = accelerator._micro_batch
        if now is None:
            return [accelerator.updates]
        return [accelerator.updates, now.loader, now.epoch, now.batch, now.round, now.piece]

    def tell(self, place: Place, progress: list[Any], waited: float) -> None:
        """Print who waits and who is missing, unless another process does."""
        self.told.add(str(place))
        there = [self.rank]
        elsewhere: dict[tuple[str, str, str], list[int]] = {}
        for rank in range(self.world):
            if rank == self.rank:
                continue
            where, waits, its_progress, its_wait = self.word_of(rank)
            if its_wait >= SECONDS and rank < self.rank:
                return  # which will tell
            if (where, its_progress) == (str(place), progress):
                there.append(rank)
                continue
            in_update = f" (update {its_progress[0] + 1})" if its_progress else ""
            words = (where, where)
            if its_progress is not None:
                one, several = ("waits", "wait") if waits else ("is", "are")
                words = (f"{one} in {where}", f"{several} in {where}")
            elsewhere.setdefault((*words, in_update), []).append(rank)
        if not elsewhere:
            return  # a slow network, or others are slow to leave word
        others = "; ".join(
            f"{named(ranks)} {one if len(ranks) == 1 else several}{in_update}"
            for (one, several, in_update), ranks in elsewhere.items()
        )
        have = "has" if len(there) == 1 else "have"
        in_update = f" (update {progress[0] + 1})" if progress else ""
        warn(
            f"{named(sorted(there))} {have} waited for {waited:.0f} seconds in {place}{in_update}, and not all are "
            f"there: {others}. Either that takes long, or not every process makes the same calls in the same order; "
            "the wait goes on until the timeout of the process group"
        )

    def word_of(self, rank: int) -> tuple[str, bool, list[Any] | None, float]:
        """Return where another process is, whether it waits there, its progress, and how long it has waited.

        For a process that has ended or does not answer, the first is that it does so, and the progress is None.
        """
        store = self.reach()
        if store.check([f"left/{rank}"]):
            return store.get(f"left/{rank}").decode(), False, None, 0.0
        if not store.check([f"at/{rank}"]):
            return "does not answer: it is frozen, or has ended", False, None, 0.0
        where, waits, progress, waited = json.loads(store.get(f"at/{rank}"))
        return where, waits, progress, waited

    def who_left(self) -> str:
        """Return which processes have left; empty if none has, or it cannot be told."""
        with suppress(RuntimeError, OSError, ValueError):
            store = self.reach()
            left = [rank for rank in range(self.world) if store.check([f"left/{rank}"])]
            return "; ".join(f"process {rank} {self.word_of(rank)[0]}" for rank in left)
        return ""

    def reach(self) -> Any:
        """Return the store, over a connection of its own, so that no thread holds up another.

        Raises:
            OSError: nobody keeps it any more. torch itself would print pages of its stack.
        """
        store: Any = self.store or dist.distributed_c10d._get_default_store()
        # Asked first: a new connection to a store that is gone would be tried for minutes.
        knock_on(store)
        if self.store is None:
            self.store = dist.PrefixStore("waits", store.clone())
        return self.store

    def end(self, how: str = "") -> None:
        """Write down that this process ends; called when it does.

        Args:
            how: the reason, in words; if empty, what Python knows of it.
        """
        if self.ended.is_set() or os.getpid() != self.process:
            return
        self.ended.set()
        self.thread.join(timeout=1)
        error = getattr(sys, "last_value", None)  # that ends Python
        if "gloo" in str(error):
            left = self.who_left()
            if left:
                warn(f"process {self.rank} has waited in vain: {left}")
        if not how:
            how = f"has ended by a {type(error).__name__}" if error else "has finished, and left"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # Otherwise the first process keeps the store, and may be leaving, too.
            with suppress(RuntimeError, OSError, ValueError):
                self.reach().set(f"left/{self.rank}", how)


WATCHES: list[Watch] = []  # the one of this process, if there are others


def watch(accelerator: "ExactAccelerator") -> None:
    """Watch the waits of this process from now on; all its accelerators share one watch."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    if WATCHES and WATCHES[0].process == os.getpid():
        WATCHES[0].of(accelerator)
        return
    WATCHES[:] = [Watch(accelerator)]


def knock_on(store: Any) -> None:
    """See whether the process that keeps a store still listens.

    Raises:
        OSError: it does not.
    """
    keeper = store
    while isinstance(keeper, dist.PrefixStore):
        keeper = keeper.underlying_store
    if isinstance(keeper, dist.TCPStore):
        socket.create_connection((keeper.host, keeper.port), timeout=5).close()


def messages() -> int:
    """Return the number of messages of all processes to all that this one has begun."""
    try:
        group: Any = dist.distributed_c10d._get_default_group()
        return group._get_sequence_number_for_group()
    except (RuntimeError, ValueError):  # there are backends that do not count
        return 0


def named(ranks: list[int]) -> str:
    """Name processes by their numbers."""
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    shown = ", ".join(str(rank) for rank in ranks[:MANY])
    more = f" and {len(ranks) - MANY} more" if len(ranks) > MANY else ""
    return f"processes {shown}{more}"
