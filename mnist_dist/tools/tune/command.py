"""The command `tune`: searching for settings, alone or beside other processes."""

import os
import signal
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import optuna
import torch
import tyro
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState
from tqdm import tqdm

from mnist_dist.core import Stopped, UserError
from mnist_dist.core.errors import STOPPED
from mnist_dist.core.files import make_folder
from mnist_dist.core.stopping import signals_heard
from mnist_dist.digits.config import TrainConfig
from mnist_dist.digits.teachers import load_teachers, teachers_digest
from mnist_dist.run import launch
from mnist_dist.run.command_line import as_json, flag
from mnist_dist.task import data
from mnist_dist.task.data import DataSplits
from mnist_dist.task.settings import Settings
from mnist_dist.tools.tune.locks import Locks
from mnist_dist.tools.tune.report import in_words, report
from mnist_dist.tools.tune.space import BATCH_SIZES, SPACE, Knob, fields_of, parameters_of
from mnist_dist.tools.tune.study import open_study, trials_to_do
from mnist_dist.tools.tune.trial import train_trial
from mnist_dist.usage import require

Space = dict[str, BaseDistribution]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Search for settings with Optuna, by accuracy on held-out samples.

    Several processes can work on one study.
    """

    val_size: int = 10_000
    """Samples held out of the training set, stratified by class, by which trials are judged."""
    search: tuple[Knob, ...] = get_args(Knob)
    """What is searched, beginning with the values given (by default the original ones).
    The rest stays as given, and without --search so does what has a flag of its own."""
    trials: int = 40
    """Trials of the whole study, by all processes and calls together."""
    output_dir: Path = Path("runs/tune")
    """The study's folder.
    Start the same command again to resume it, or at the same time to share the work."""
    flags_given: tyro.conf.Suppress[tyro.conf.Fixed[frozenset[str]]] = frozenset()
    """The flags on the command line, with their hyphens, as `parse` notes them."""

    @property
    def searched(self) -> list[str]:
        """Names of the settings that are searched: an explicit flag is a decision."""
        if "--search" in self.flags_given:
            return list(self.search)
        return [name for name in self.search if f"--{name}" not in self.flags_given]

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        knobs = ", ".join(get_args(Knob))
        enough = "at least 1 sample to judge the trials by"
        require(self.val_size >= 1, "--val-size", self.val_size, enough)
        require(len(self.searched) >= 1, "--search", "nothing", f"some of {knobs}")
        possible = 1 <= self.trials <= 1_000_000
        require(possible, "--trials", self.trials, "a number from 1 to 1,000,000")


def main(config: Config) -> None:
    """Work on a study until it has all its trials, then print and draw what it found.

    Args:
        config: the flags.

    Raises:
        UserError: the study, the data or the device cannot be had as asked, or no trial came to its
            end.
        Stopped: on SIGTERM, SIGINT, SIGUSR1 or SIGHUP.
    """
    for number in signals_heard():
        signal.signal(number, signal.default_int_handler)
    try:
        search(config)
    except KeyboardInterrupt:
        again = f"run the same command to resume the study in {config.output_dir}"
        raise Stopped(f"stopped on request: {again}", STOPPED) from None


def search(config: Config) -> None:
    """Do what `main` does, without regard to signals."""
    if launch.check_environment(os.environ) > 1:
        raise UserError(
            "each process of a search works by itself: start the same command several times, "
            "without a launcher, and give each a GPU of its own with CUDA_VISIBLE_DEVICES",
        )
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(config.cpu, config.mixed_precision, dtype, tf32=config.tf32)
    samples = data.obtain(
        accelerator,
        config.dataset,
        config.data_dir,
        config.val_size,
        config.seed,
        dtype,
    )
    train = samples.train
    val = samples.val
    assert val  # the test samples go no further than this
    given = settings_given(config, samples, accelerator.mixed_precision)
    data.check_shares(samples, given.batch_size, 1)
    space: Space = {name: SPACE[name] for name in SPACE if name in config.searched}
    refuse_large_batches(space, config, len(train))
    first = parameters_of(given, space)
    teachers = load_teachers(given, samples, accelerator.device)
    fixed = {
        "the data's digest": samples.digest,
        "the teachers' digest": teachers_digest(teachers),
        **in_common(given, space),
    }

    make_folder(config.output_dir)
    with closing(Locks(config.output_dir)) as locks:
        study = open_study(config.output_dir, locks, fixed)
        for trial in trials_to_do(study, locks, config.trials, space, first, config.seed):
            chosen = replace(given, **fields_of(trial.params))
            try:
                accuracy = train_trial(trial, chosen, train, val, teachers)
                study.tell(trial, accuracy)
            except (optuna.TrialPruned, UserError) as reason:  # the latter if numbers broke
                trial.set_user_attr("reason", str(reason))
                study.tell(trial, state=TrialState.PRUNED)
            tqdm.write(in_words(study.trials[trial.number]))
        with locks.claiming():  # the pictures are drawn by one process at a time
            report(study, config.output_dir, given, len(val))


def settings_given(config: Config, samples: DataSplits, mixed_precision: str) -> TrainConfig:
    """Return the settings that the search begins with.

    Args:
        config: the flags.
        samples: the data that was found.
        mixed_precision: the one in use; the command printed in the end names a launcher's choice.
    """
    values = {field.name: getattr(config, field.name) for field in fields(Settings)}
    values["dataset"] = samples.name
    if mixed_precision != "no":
        values["mixed_precision"] = mixed_precision
    return TrainConfig(**values)


def refuse_large_batches(space: Space, config: Config, samples: int) -> None:
    """Refuse to search batches that are larger than the training set.

    Args:
        space: what is searched.
        config: the flags.
        samples: those to train on.

    Raises:
        UserError: some of the batch sizes that are searched exceed them.
    """
    if "batch-size" in space and samples < BATCH_SIZES.high:
        raise UserError(
            f"--val-size {config.val_size} leaves {samples} samples to train on, but batches of "
            f"up to {BATCH_SIZES.high} are searched: give less, or leave batch-size out of "
            "--search",
        )


def in_common(given: TrainConfig, space: Space) -> dict[str, Any]:
    """Return the settings that all who work on a study must have in common.

    Args:
        given: the settings that the search begins with.
        space: what is searched.

    Returns:
        JSON values by flag.
    """
    values = as_json(given)
    common: dict[str, Any] = {}
    for field in fields(Settings):
        may_change = field.metadata.get("may_change") or field.name in given.unused
        if not may_change:
            common[flag(field.name)] = values[field.name]
    common["--search"] = list(space)
    common["the space"] = [distribution_to_json(values) for values in space.values()]
    return common
