"""Choosing settings: what is searched, how a trial trains, and what a search has found."""

import math
import os
import signal
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
import torch
from accelerate.utils import set_seed
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from mnist_dist.core import GlobalBatches, Stopped, Training, UserError
from mnist_dist.core.processes import SIGNALS, STATUS
from mnist_dist.run import launch, plots
from mnist_dist.run.command_line import as_flags, as_json, flag
from mnist_dist.run.settings import TrainConfig
from mnist_dist.run.weights import load_teachers, teachers_digest
from mnist_dist.shell import shell
from mnist_dist.task import data, networks
from mnist_dist.task.data import Split
from mnist_dist.task.evaluation import classify
from mnist_dist.task.objective import adam, average, loss_of, schedule
from mnist_dist.task.settings import Settings
from mnist_dist.tools.study import DONE, WHOLE, Locks, open_study, trials_to_do
from mnist_dist.usage import require

ENOUGH = 20  # complete trials, below which importances are chance
BATCH_SIZES = IntDistribution(16, 1024, log=True)
SPACE: dict[str, BaseDistribution] = {  # every value as its flag takes it
    "lr": FloatDistribution(1e-4, 3e-2, log=True),
    "hidden": CategoricalDistribution(["128", "256", "512", "1024", "128 64", "256 128", "512 256", "1024 512"]),
    "batch-size": BATCH_SIZES,
    "epochs": IntDistribution(1, 20),
    "schedule": CategoricalDistribution(["constant", "cosine", "one-cycle"]),
    "weight-decay": FloatDistribution(0, 0.3),
    "label-smoothing": FloatDistribution(0, 0.2),
    "affine": FloatDistribution(0, 1.5),
    "elastic": FloatDistribution(0, 1.5),
}


Knob = Literal[
    "lr", "hidden", "batch-size", "epochs", "schedule", "weight-decay", "label-smoothing", "affine", "elastic"
]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Search for settings with Optuna, by accuracy on held-out samples. Several processes can work on one study."""

    val_size: int = 10_000
    """Samples held out of the training set, stratified by class, by which trials are judged."""
    search: tuple[Knob, ...] = get_args(Knob)
    """What is searched, beginning with the values given (by default the original ones); the rest stays as given."""
    trials: int = 40
    """Trials of the whole study, by all processes and calls together."""
    output_dir: Path = Path("runs/tune")
    """The study's folder. Start the same command again to go on with it, or beside it to share the work."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(self.val_size >= 1, "--val-size", self.val_size, "at least 1 sample to judge the trials by")
        require(len(self.search) >= 1, "--search", "nothing", f"some of {', '.join(get_args(Knob))}")
        require(1 <= self.trials <= 1_000_000, "--trials", self.trials, "a number from 1 to 1,000,000")


def main(config: Config) -> None:
    """Work on a study until it has all its trials, alone or beside others; then print and draw what it found.

    Raises:
        UserError: the study, the data or the device cannot be had as asked, or no trial came to its end.
        Stopped: on SIGTERM, SIGINT or SIGUSR1.
    """
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        search(config)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped on request: run the same command to go on with the study in {config.output_dir}", STATUS
        ) from None


def search(config: Config) -> None:
    """Work on a study; see `main`."""
    if launch.check_environment(os.environ) > 1:
        raise UserError(
            "each process of a search works by itself: start the same command several times, without a launcher, and "
            "give each a GPU of its own with CUDA_VISIBLE_DEVICES"
        )
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(config.cpu, config.mixed_precision, dtype, tf32=config.tf32)
    samples = data.obtain(accelerator, config.dataset, config.data_dir, config.val_size, config.seed, dtype)
    train, val = samples.train, samples.val
    assert val  # the test samples go no further than this
    given = TrainConfig(
        **{field.name: getattr(config, field.name) for field in fields(Settings)} | {"dataset": samples.name}
    )
    data.check_shares(samples, given.batch_size, 1)
    space: dict[str, BaseDistribution] = {name: SPACE[name] for name in SPACE if name in config.search}
    if "batch-size" in space and len(train) < BATCH_SIZES.high:
        raise UserError(
            f"--val-size {config.val_size} leaves {len(train)} samples to train on, but batches of up to "
            f"{BATCH_SIZES.high} are searched: give less, or leave batch-size out of --search"
        )
    if accelerator.mixed_precision != "no":
        given = replace(
            given, mixed_precision=accelerator.mixed_precision
        )  # the launcher's, which the command is to say
    first = parameters(given, space)
    teachers = load_teachers(given, samples, accelerator.device)

    config.output_dir.mkdir(parents=True, exist_ok=True)
    common = as_json(given)
    fixed: dict[str, Any] = {"the data's digest": samples.digest, "the teachers' digest": teachers_digest(teachers)}
    fixed |= {
        flag(field.name): common[field.name]
        for field in fields(Settings)
        if not field.metadata.get("may_change") and field.name not in given.unused
    }
    fixed |= {"--search": list(space), "the space": list(map(distribution_to_json, space.values()))}
    with closing(Locks(config.output_dir)) as locks:
        study = open_study(config.output_dir, locks, fixed)
        for trial in trials_to_do(study, locks, config.trials, space, first, config.seed):
            try:
                study.tell(trial, train_trial(trial, replace(given, **settings(trial.params)), train, val, teachers))
            except (optuna.TrialPruned, UserError) as reason:  # the latter if numbers broke
                trial.set_user_attr("reason", str(reason))
                study.tell(trial, state=TrialState.PRUNED)
            tqdm.write(in_words(study.trials[trial.number]))
        with locks.claiming():  # the pictures are drawn by one process at a time
            report(study, config.output_dir, given, len(val))


def parameters(given: TrainConfig, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """What Optuna knows the settings by, each as its flag takes it; the inverse of `settings`.

    Raises:
        UsageError: one of them is not among those that are searched.
    """
    values: dict[str, Any] = {}
    for name, distribution in space.items():
        value: Any = getattr(given, name.replace("-", "_"))
        values[name] = value = " ".join(map(str, value)) if name == "hidden" else value
        if isinstance(distribution, FloatDistribution | IntDistribution):
            inside = distribution.low <= value <= distribution.high
            expected = f"a number from {distribution.low:g} to {distribution.high:g}"
        else:
            assert isinstance(distribution, CategoricalDistribution)
            inside, expected = value in distribution.choices, f"one of {', '.join(map(str, distribution.choices))}"
        require(inside, f"--{name}", value, f"{expected}, which are searched, or leave {name} out of --search")
    return values


def settings(params: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `TrainConfig` that a trial's parameters stand for."""
    return {
        name.replace("-", "_"): tuple(map(int, value.split())) if name == "hidden" else value
        for name, value in params.items()
    }


def train_trial(
    trial: Trial, config: TrainConfig, train: Split, val: Split, teachers: Sequence[torch.nn.Module]
) -> float:
    """Train as train.py does, with nothing kept.

    Returns:
        The accuracy on the held-out samples, in [0, 1].

    Raises:
        TrialPruned: the accuracy is below the median of the trials that are complete, when they had come as far.
        UserError: the numbers broke.
    """
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(config.cpu, config.mixed_precision, dtype, tf32=config.tf32)  # a new scaler
    set_seed(config.seed)
    network = networks.build(config.model, config.hidden, config.channels).to(accelerator.device, dtype)
    optimizer = adam(network, config)
    averaged = average(network, optimizer, config.ema) if config.ema else None
    training = Training(accelerator, network, optimizer, loss_of(network, config, teachers))
    batches = GlobalBatches(train.tensors, config.batch_size, seed=config.seed)
    progress, rate = training.progress, schedule(config, config.epochs * len(batches))
    while True:
        for batch in training.epoch(batches, f"epoch {progress.epoch + 1}/{config.epochs}"):
            training.set_rate(rate(progress.global_step))
            training.update(batch, clip_norm=config.clip_norm)
        trained = averaged.module if averaged else network
        accuracy = classify(accelerator, trained, val).metrics("val")["val_accuracy"]
        trial.set_user_attr("train_seconds", progress.train_seconds)
        # Compared with others when they had come as far: a long schedule begins worse than a short one ends.
        trial.report(accuracy, WHOLE * progress.epoch // config.epochs)
        if progress.epoch == config.epochs:
            return accuracy
        if "first" not in trial.user_attrs and trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {progress.epoch}")


def in_words(trial: FrozenTrial) -> str:
    """A finished trial in a line: its number, its accuracy or why there is none, and its settings."""
    accuracy = f"{100 * trial.value:.2f}%" if trial.value is not None else ""
    flags = " ".join(
        f"--{name} {value:.3g}" if isinstance(value, float) else f"--{name} {value}"
        for name, value in trial.params.items()
    )
    return f"trial {trial.number}: " + ", ".join(filter(None, [accuracy, trial.user_attrs.get("reason"), flags]))


def report(study: optuna.Study, folder: Path, given: TrainConfig, samples: int) -> None:
    """Print the best trial, the first one and the command that trains with the best settings, and draw the pictures.

    Args:
        samples: by how many the trials were judged.

    Raises:
        UserError: no trial came to its end.
    """
    trials = study.get_trials(deepcopy=False, states=DONE)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(f"no trial in {folder} came to its end: choose another --output-dir, and a lower --lr")
    best = max(complete, key=accuracy)
    heading = f"{given.dataset}: {len(trials)} trials, {len(trials) - len(complete)} of them pruned"
    pruned = [trial.state == TrialState.PRUNED for trial in trials]
    numbers, accuracies = [trial.number for trial in trials], [accuracy(trial) for trial in trials]
    plots.history(folder / "history.png", numbers, accuracies, pruned, heading)
    seconds = [trial.user_attrs["train_seconds"] for trial in complete]
    plots.trade_off(folder / "trade_off.png", seconds, [accuracy(trial) for trial in complete], heading)
    if len(complete) >= ENOUGH:
        plots.importances(folder / "importances.png", optuna.importance.get_param_importances(study), heading)

    def exactly(trial: FrozenTrial) -> str:
        if trial.state == TrialState.PRUNED:
            return trial.user_attrs["reason"]
        return f"{100 * accuracy(trial):.2f}% ({round(accuracy(trial) * samples)}/{samples})"

    (first,) = (trial for trial in trials if "first" in trial.user_attrs)
    print(f"{heading}; pictures in {folder}")
    print(f"Validation accuracy with the settings given (trial {first.number}): {exactly(first)}")
    print(f"Validation accuracy with the best settings (trial {best.number}): {exactly(best)}")
    print("Train with them on all training samples:")
    flags = as_flags(replace(given, val_size=0, **settings(best.params)))
    print(shell("python", "train.py", *flags), flush=True)


def accuracy(trial: FrozenTrial) -> float:
    """A trial's last accuracy on the held-out samples, in [0, 1]; not a number if its first epoch broke."""
    return math.nan if trial.value is None else trial.value
