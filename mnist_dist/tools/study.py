"""A study: one search by Optuna, made by any number of processes, each of which may be killed at any instant."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import lock_descriptor
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from tqdm import tqdm

from mnist_dist.core.processes import UserError
from mnist_dist.run.folder import JOURNAL

LOCKS = ".locks"  # a folder in the study's, beside its journal
WRITING, CLAIMING, TRIAL = "writing", "claiming", "trial-{}"  # names of locks; each trial has one of its own
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
LINE = b'{"op_code":'  # how every line of a journal begins; 0 creates a study
WHOLE = math.lcm(*range(1, 21))  # parts of a trial: each of 1 to 20 epochs takes a whole number of them
POLL = 0.5  # seconds between two looks at what others do, if nothing is left to begin


class Locks:
    """What only one process may do at a time, each by name a file beside the journal that the process locks.

    The system frees them however that process ends. Optuna's own locks outlive it, and hold up the others.
    """

    def __init__(self, folder: Path) -> None:
        self.journal, self.folder = folder / JOURNAL, folder / LOCKS
        self.folder.mkdir(exist_ok=True)
        self.held: dict[str, int] = {}  # descriptors

    def take(self, name: str, wait: bool = True) -> bool:
        """Lock a name; if another process holds it, wait for it or return False."""
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        taken = lock_descriptor(descriptor, blocking=wait, poll_interval=0.01)
        if taken:
            self.held[name] = descriptor
        else:
            os.close(descriptor)
        return taken

    def free(self, name: str) -> None:
        """Unlock a name."""
        os.close(self.held.pop(name))

    def close(self) -> None:
        """Unlock all of them."""
        for name in list(self.held):
            self.free(name)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """A block that changes what is whose."""
        self.take(CLAIMING)
        try:
            yield
        finally:
            self.free(CLAIMING)

    def acquire(self) -> bool:
        """Before a line is added to the journal: remove the half one of a process that was killed while it wrote."""
        self.take(WRITING)
        with self.journal.open("rb+") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                content = file.read()
                end = content.rfind(b"\n") + 1
                if content[end:][: len(LINE)] != LINE[: len(content) - end]:
                    self.release()
                    raise ValueError("its last line is not one of a journal")
                file.truncate(end)
        return True

    def release(self) -> None:
        """After a line was added to the journal."""
        self.free(WRITING)


def open_study(folder: Path, locks: Locks, fixed: dict[str, Any]) -> optuna.Study:
    """The study in a folder, a new one if there is none.

    Args:
        fixed: JSON values by name, that all who work on it must have in common.

    Raises:
        UserError: the study there is another, or damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if locks.journal.exists():
            with locks.journal.open("rb") as file:  # before a line is added to it
                first = file.readline()
            if first.endswith(b"\n") and not first.startswith(LINE + b"0,"):
                raise ValueError("its first line does not create a study")
        storage = JournalStorage(JournalFileBackend(str(locks.journal), lock_obj=locks))  # type: ignore[arg-type]  # it calls acquire and release
        study = optuna.create_study(
            storage=storage,
            study_name="tune",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=WHOLE // 2),  # a schedule's first half says little
            load_if_exists=True,
        )
        study.get_trials(deepcopy=False)
    except (OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever the journal's reader trips over, it is a damaged journal
        raise damaged(locks.journal, type(error).__name__) from error
    fixed = json.loads(json.dumps(fixed))  # as it comes back
    with locks.claiming():
        if "fixed" not in study.user_attrs:
            if study.get_trials(deepcopy=False):
                raise damaged(locks.journal, "its settings are missing")
            study.set_user_attr("fixed", fixed)
    for name in {**fixed, **study.user_attrs["fixed"]}:
        if (value := fixed.get(name)) != (begun := study.user_attrs["fixed"].get(name)):
            raise UserError(
                f"{name} is {value}, but the study in {folder} was begun with {begun}: give that, "
                "or choose another --output-dir"
            )
    return study


def damaged(journal: Path, reason: str) -> UserError:
    """The refusal of a journal."""
    return UserError(f"the study in {journal} is damaged ({reason}): restore the file, or choose another --output-dir")


def trials_to_do(
    study: optuna.Study,
    locks: Locks,
    wanted: int,
    space: dict[str, BaseDistribution],
    first: dict[str, Any],
    seed: int,
) -> Iterator[Trial]:
    """Begin one trial after the other, until this process and others have made all that the study is to have.

    A running trial is locked by its process. So one that is not locked has lost its process, and is made up for.

    Args:
        wanted: trials that the study is to have; those that lost their process do not count.
        space: what is searched.
        first: parameters of the trial that no study is without.
        seed: decides, with a trial's number and those before it, what the trial tries.
    """
    # Where standard error is no terminal there is no bar.
    progress = tqdm(total=wanted, desc="trials", unit=" trials", disable=None)
    with progress:
        while True:
            with locks.claiming():
                for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                    if locks.take(TRIAL.format(trial.number), wait=False):
                        study.tell(trial.number, state=TrialState.FAIL)
                        locks.free(TRIAL.format(trial.number))
                trials = study.get_trials(deepcopy=False)
                done = sum(trial.state in DONE for trial in trials)
                running = sum(trial.state == TrialState.RUNNING for trial in trials)
                begun = None
                firsts = [trial.state for trial in trials if "first" in trial.user_attrs]
                first_lost = all(state in (TrialState.FAIL, TrialState.WAITING) for state in firsts)
                if done + running < wanted or first_lost:
                    if first_lost and TrialState.WAITING not in firsts:  # waiting: its process died before it began
                        study.enqueue_trial(first, user_attrs={"first": True})
                    # A seed for each trial: no two are drawn alike, whoever draws them, and one process repeats itself.
                    draw = int(np.random.SeedSequence((seed, len(trials))).generate_state(1)[0])
                    study.sampler = optuna.samplers.TPESampler(seed=draw)
                    begun = study.ask(space)
                    locks.take(TRIAL.format(begun.number))
            progress.update(done - progress.n)
            if begun:
                yield begun
                locks.free(TRIAL.format(begun.number))
            elif running:
                time.sleep(POLL)  # others may yet die
            else:
                return
