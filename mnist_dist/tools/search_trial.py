"""One trial of a search: a training as train.py makes it, of which only the accuracy is kept."""

from collections.abc import Sequence

import optuna
import torch
from accelerate.utils import set_seed
from optuna.trial import Trial

from mnist_dist.core import GlobalBatches, Training
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.task import networks
from mnist_dist.task.data import Split
from mnist_dist.task.evaluation import classify
from mnist_dist.task.objective import adam, average, loss_of, schedule
from mnist_dist.tools.study import FIRST, WHOLE


def train_trial(
    trial: Trial,
    config: TrainConfig,
    train: Split,
    val: Split,
    teachers: Sequence[torch.nn.Module],
) -> float:
    """Train as train.py does, with nothing kept.

    Args:
        trial: told the accuracy after every epoch.
        config: the settings.
        train: the samples to train on.
        val: the samples held out, to judge it by.
        teachers: trained models to learn from, if any.

    Returns:
        The accuracy on the held-out samples, in [0, 1].

    Raises:
        TrialPruned: the accuracy is below the median of the trials that are complete, when they had
            come as far.
        UserError: the numbers broke.
    """
    dtype = getattr(torch, config.dtype)
    # Anew for each trial, for the scaler of mixed precision has a state.
    accelerator = launch.start(config.cpu, config.mixed_precision, dtype, tf32=config.tf32)
    set_seed(config.seed)
    network = networks.build(config.model, config.hidden, config.channels)
    network = network.to(accelerator.device, dtype)
    optimizer = adam(network, config)
    trained: torch.nn.Module = network
    if config.ema:
        trained = average(network, optimizer, config.ema).module
    loss = loss_of(network, config, teachers)
    training = Training(accelerator, network, optimizer, loss)
    batches = GlobalBatches(train.tensors, config.batch_size, seed=config.seed)
    while True:
        train_epoch(training, batches, config)
        accuracy = classify(accelerator, trained, val).metrics("val")["val_accuracy"]
        epochs = training.progress.epoch
        trial.set_user_attr("train_seconds", training.progress.train_seconds)
        # Compared with others when they had come as far: a long schedule begins worse than a short
        # one ends.
        trial.report(accuracy, WHOLE * epochs // config.epochs)
        if epochs == config.epochs:
            return accuracy
        may_be_pruned = FIRST not in trial.user_attrs
        if may_be_pruned and trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {epochs}")


def train_epoch(training: Training, batches: GlobalBatches, config: TrainConfig) -> None:
    """Train for one epoch.

    Args:
        training: what is trained.
        batches: the global batches of an epoch.
        config: the settings.
    """
    progress = training.progress
    rate = schedule(config, config.epochs * len(batches))
    title = f"epoch {progress.epoch + 1}/{config.epochs}"
    for batch in training.epoch(batches, title):
        training.set_rate(rate(progress.global_step))
        training.update(batch, clip_norm=config.clip_norm)
