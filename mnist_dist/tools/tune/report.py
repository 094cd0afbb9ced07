"""What a search has found: in words, in pictures, and as a command that trains with it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from mnist_dist import plots
from mnist_dist.core import UserError
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.command_line import as_flags
from mnist_dist.scripts import command
from mnist_dist.shell import shell
from mnist_dist.tools.tune.space import fields_of
from mnist_dist.tools.tune.study import DONE, FIRST

ENOUGH = 20  # complete trials, below which importances are chance


def in_words(trial: FrozenTrial) -> str:
    """Return a finished trial in a line: its number, its accuracy or the reason, its flags."""
    parts = []
    if trial.value is not None:
        parts.append(f"{100 * trial.value:.2f}%")
    if trial.user_attrs.get("reason"):
        parts.append(trial.user_attrs["reason"])
    flags = [f"--{name} {shortened(value)}" for name, value in trial.params.items()]
    parts.append(" ".join(flags))
    return f"trial {trial.number}: {', '.join(parts)}"


def shortened(value: object) -> str:
    """Return a flag's value with few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def report(study: optuna.Study, folder: Path, given: TrainConfig, samples: int) -> None:
    """Print what a search has found, and draw it.

    That is the first trial, the best one, and the command that trains with its settings.

    Args:
        study: the search.
        folder: where the pictures go.
        given: the settings that it began with.
        samples: by how many the trials were judged.

    Raises:
        UserError: no trial came to its end.
    """
    trials = study.get_trials(deepcopy=False, states=DONE)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        advice = "choose another --output-dir, and a lower --lr"
        raise UserError(f"no trial in {folder} came to its end: {advice}")
    pruned = len(trials) - len(complete)
    heading = f"{given.dataset}: {len(trials)} trials, {pruned} of them pruned"
    draw(study, folder, trials, complete, heading)
    best = max(complete, key=accuracy)
    (first,) = [trial for trial in trials if FIRST in trial.user_attrs]
    print(f"{heading}; pictures in {folder}")
    print(f"Validation accuracy with the settings given {result(first, samples)}")
    print(f"Validation accuracy with the best settings {result(best, samples)}")
    print("Train with them on all training samples:")
    chosen = replace(given, val_size=0, **fields_of(best.params))
    print(shell(*command("train"), *as_flags(chosen)), flush=True)


def draw(
    study: optuna.Study,
    folder: Path,
    trials: Sequence[FrozenTrial],
    complete: Sequence[FrozenTrial],
    heading: str,
) -> None:
    """Draw the pictures of a search.

    Args:
        study: the search.
        folder: where the pictures go.
        trials: all that are done.
        complete: those that were not pruned.
        heading: the title of each picture.
    """
    numbers = [trial.number for trial in trials]
    accuracies = [accuracy(trial) for trial in trials]
    is_pruned = [trial.state == TrialState.PRUNED for trial in trials]
    plots.history(folder / "history.png", numbers, accuracies, is_pruned, heading)
    seconds = [trial.user_attrs["train_seconds"] for trial in complete]
    reached = [accuracy(trial) for trial in complete]
    plots.trade_off(folder / "trade_off.png", seconds, reached, heading)
    if len(complete) >= ENOUGH:
        shares = optuna.importance.get_param_importances(study)
        plots.importances(folder / "importances.png", shares, heading)


def result(trial: FrozenTrial, samples: int) -> str:
    """Return a trial's number, and its accuracy or why it was pruned.

    Args:
        trial: the trial.
        samples: by how many it was judged.
    """
    if trial.state == TrialState.PRUNED:
        reason = trial.user_attrs["reason"]
        return f"(trial {trial.number}): {reason}"
    share = accuracy(trial)
    right = round(share * samples)
    return f"(trial {trial.number}): {100 * share:.2f}% ({right}/{samples})"


def accuracy(trial: FrozenTrial) -> float:
    """Return a trial's last accuracy on the held-out samples, in [0, 1].

    It is not a number if the numbers broke in the first epoch.
    """
    return math.nan if trial.value is None else trial.value
