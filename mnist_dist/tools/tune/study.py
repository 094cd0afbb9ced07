"""A study: one search by Optuna, made by any number of processes.

Each of them may be killed at any instant.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from mnist_dist.core.errors import UserError
from mnist_dist.tools.tune.locks import LINE, Locks

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
FIRST = "first"  # the mark of the trial that no study is without
FIXED = "fixed"  # the name of what all who work on a study must have in common
FIRST_LINE = LINE + b"0,"  # how a journal begins: with the study's creation
WHOLE = math.lcm(*range(1, 21))  # parts of a trial: each of 1 to 20 epochs takes a whole number
POLL = 0.5  # seconds between two looks at what others do, if nothing is left to begin


def open_study(folder: Path, locks: Locks, fixed: dict[str, Any]) -> optuna.Study:
    """Open the study in a folder, or begin one if there is none.

    Args:
        folder: the study's.
        locks: those of the study.
        fixed: JSON values by name, which all who work on it must have in common.

    Returns:
        The study.

    Raises:
        UserError: the study there is another, or damaged.
        OSError: its files cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = load_or_create(locks)
    except OSError:
        raise
    except Exception as error:  # whatever the journal's reader trips over, the journal is damaged
        raise damaged(locks.journal, type(error).__name__) from error
    fixed = json.loads(json.dumps(fixed))  # as they come back from the journal
    with locks.claiming():
        if FIXED not in study.user_attrs:
            if study.get_trials(deepcopy=False):
                raise damaged(locks.journal, "its settings are missing")
            study.set_user_attr(FIXED, fixed)
    refuse_another(study.user_attrs[FIXED], fixed, folder)
    return study


def load_or_create(locks: Locks) -> optuna.Study:
    """Load the study of a journal, and create both if there is none."""
    if locks.journal.exists():
        # Looked at first: Optuna adds a line to it.
        with locks.journal.open("rb") as file:
            first_line = file.readline()
        if first_line.endswith(b"\n") and not first_line.startswith(FIRST_LINE):
            raise ValueError("its first line does not create a study")
    backend = JournalFileBackend(str(locks.journal), lock_obj=locks)  # type: ignore[arg-type]
    study = optuna.create_study(
        storage=JournalStorage(backend),
        study_name="tune",
        direction="maximize",
        # A schedule's first half says little of its end.
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=WHOLE // 2),
        load_if_exists=True,
    )
    study.get_trials(deepcopy=False)  # reads all of the journal
    return study


def refuse_another(begun: dict[str, Any], fixed: dict[str, Any], folder: Path) -> None:
    """Refuse to work on a study with other settings.

    Args:
        begun: those that it was begun with, by name.
        fixed: those of this process.
        folder: the study's.

    Raises:
        UserError: they differ.
    """
    for name in {**fixed, **begun}:
        value = fixed.get(name)
        original = begun.get(name)
        if value != original:
            raise UserError(
                f"{name} is {value}, but the study in {folder} was begun with {original}: "
                "give that, or choose another --output-dir",
            )


def damaged(journal: Path, reason: str) -> UserError:
    """Return the error that refuses a journal."""
    advice = "restore the file, or choose another --output-dir"
    return UserError(f"the study in {journal} is damaged ({reason}): {advice}")


def trials_to_do(
    study: optuna.Study,
    locks: Locks,
    wanted: int,
    space: dict[str, BaseDistribution],
    first: dict[str, Any],
    seed: int,
) -> Iterator[Trial]:
    """Begin one trial after the other, until all processes together have made enough.

    A running trial is locked by its process. One that is not locked has lost its process, and is
    made up for.

    Args:
        study: the study.
        locks: its locks.
        wanted: trials that the study is to have; those that lost their process do not count.
        space: what is searched.
        first: parameters of the trial that no study is without.
        seed: decides, with a trial's number and those before it, what the trial tries.

    Returns:
        The trials that this process is to make. Each is to be told before the next is asked for.
    """
    # Where standard error is not a terminal there is no bar.
    with tqdm(total=wanted, desc="trials", unit=" trials", disable=None) as progress:
        while True:
            begun = None
            with locks.claiming():
                fail_lost(study, locks)
                trials = study.get_trials(deepcopy=False)
                done = [trial for trial in trials if trial.state in DONE]
                running = [trial for trial in trials if trial.state == TrialState.RUNNING]
                is_first_lost = lacks_first(trials)
                if len(done) + len(running) < wanted or is_first_lost:
                    if is_first_lost:
                        announce_first(study, trials, first)
                    begun = begin(study, locks, space, (seed, len(trials)))
            progress.update(len(done) - progress.n)
            if begun:
                yield begun
                locks.unlock(lock_name(begun.number))
            elif running:
                time.sleep(POLL)  # others may yet die
            else:
                return


def lock_name(number: int) -> str:
    """Return the name that the process of a trial locks."""
    return f"trial-{number}"


def fail_lost(study: optuna.Study, locks: Locks) -> None:
    """Note that the trials have failed whose processes are gone."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        name = lock_name(trial.number)
        if locks.lock(name, wait=False):
            study.tell(trial.number, state=TrialState.FAIL)
            locks.unlock(name)


def lacks_first(trials: list[FrozenTrial]) -> bool:
    """Return whether the trial that no study is without is neither done nor being made."""
    states = [trial.state for trial in trials if FIRST in trial.user_attrs]
    return all(state in (TrialState.FAIL, TrialState.WAITING) for state in states)


def announce_first(study: optuna.Study, trials: list[FrozenTrial], first: dict[str, Any]) -> None:
    """Let the next trial that begins be the one that no study is without.

    Args:
        study: the study.
        trials: all of its trials.
        first: the parameters.
    """
    for trial in trials:
        if FIRST in trial.user_attrs and trial.state == TrialState.WAITING:
            return  # announced by a process that died before it began it
    study.enqueue_trial(first, user_attrs={FIRST: True})


def begin(
    study: optuna.Study,
    locks: Locks,
    space: dict[str, BaseDistribution],
    entropy: tuple[int, int],
) -> Trial:
    """Begin a trial, and lock it.

    Args:
        study: the study.
        locks: its locks.
        space: what is searched.
        entropy: seeds the draw. It is another for each trial: no two are drawn alike, whichever
            process draws them, and one process alone repeats itself.
    """
    (draw,) = np.random.SeedSequence(entropy).generate_state(1)
    study.sampler = optuna.samplers.TPESampler(seed=int(draw))
    trial = study.ask(space)
    locks.lock(lock_name(trial.number))
    return trial
