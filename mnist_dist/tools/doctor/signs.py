"""Signs of life of a process, which a thread of its own gives, and how a hang is seen in them."""

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from mnist_dist.tools.doctor.places import place_of
from mnist_dist.tools.doctor.record_files import read_signs, write
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Sign
from mnist_dist.tools.whereabouts import whereabouts

BEAT = 0.5  # seconds between two signs
WRAPPER = "nn/parallel/distributed.py"  # in which a wrapper waits for buffers
BUSY = 5.0  # times the deadline for processes that compute
AT_ODDS = 10.0  # seconds in which all wait, for different things, and nobody computes: a hang, too
IDLE = 0.2  # seconds of computing in that time that the signs themselves may take
STILL = 4  # beats without an event, after which the record is written in any case


class Signs:
    """Gives signs of life of this process.

    Args:
        recorder: of this process.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.program = threading.main_thread().ident or 0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.give_all, daemon=True)
        self.thread.start()

    def give_all(self) -> None:
        """Give a sign at every beat, and write the record of a process that stands still."""
        still = 0
        before = -1
        while not self.is_over.wait(BEAT):
            events = self.recorder.events
            still = still + 1 if events == before else 0
            before = events
            if still == STILL:
                self.recorder.write_if_still()
            self.give()

    def give(self) -> None:
        """Give one sign."""
        recorder = self.recorder
        frame = sys._current_frames().get(self.program)
        _, waits = whereabouts(self.program)
        if frame is not None and frame.f_code.co_filename.endswith(WRAPPER):
            waits = True
        waits = waits or bool(recorder.call)
        computed = round(time.process_time(), 2)
        sign = Sign(
            rank=recorder.record.rank,
            events=recorder.events,
            place=place_of(frame),
            call=recorder.call,
            waits=waits,
            ended=recorder.record.ended,
            worked=0.0 if waits else round(computed, 1),
            computed=computed,
        )
        with suppress(OSError):  # the first process removes the folder when it has judged
            write(recorder.folder / f"sign-{sign.rank}.json", sign)

    def end(self) -> None:
        """Give the last sign, and no more."""
        self.is_over.set()
        self.thread.join()
        self.give()


class HangWatch:
    """Finds out from signs of life whether processes wait for what never comes.

    A process that computes for long without an event, such as one that prepares data for the
    others, is given more time.

    Args:
        folder: where the signs are.
        world: the number of processes.
        deadline: seconds in which nothing happens on any of them.
    """

    def __init__(self, folder: Path, world: int, deadline: float) -> None:
        self.folder = folder
        self.world = world
        self.deadline = deadline
        self.events: list[tuple[int, bool]] = []
        self.worked: list[float] = []
        self.no_event_since = time.monotonic()
        self.no_work_since = time.monotonic()
        self.computed: list[float] = []
        self.at_odds_since = time.monotonic()

    def hanging(self) -> list[Sign]:
        """Return the signs of all processes if they hang, otherwise nothing."""
        signs = read_signs(self.folder)
        now = time.monotonic()
        events = [(sign.events, sign.ended) for sign in signs]
        worked = [sign.worked for sign in signs]
        if events != self.events:
            self.no_event_since = now
            self.no_work_since = now
        if worked != self.worked:
            self.no_work_since = now
        self.events = events
        self.worked = worked
        is_idle = now > self.no_work_since + self.deadline
        is_late = now > self.no_event_since + self.deadline * BUSY
        is_late |= self.are_at_odds(signs, now)
        somebody_waits = any(sign.waits and not sign.ended for sign in signs)
        if (is_idle or is_late) and somebody_waits and len(signs) == self.world:
            return signs
        return []

    def are_at_odds(self, signs: list[Sign], now: float) -> bool:
        """Return whether all processes wait, for different things, so that waiting is in vain."""
        computed = [sign.computed for sign in signs]
        all_wait = all(sign.waits or sign.ended for sign in signs)
        is_same = len(computed) == len(self.computed)
        spent = sum(computed) - sum(self.computed) if is_same else 0.0
        for_different = len({sign.waits_at for sign in signs}) > 1
        has_event = now == self.no_event_since
        if has_event or not (all_wait and for_different and is_same) or spent > IDLE * len(signs):
            self.computed = computed
            self.at_odds_since = now
        return now > self.at_odds_since + AT_ODDS
