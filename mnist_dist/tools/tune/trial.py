"""One trial of a search: a training as train.py makes it, of which only the accuracy is kept."""

from collections.abc import Sequence

import optuna
import torch
from accelerate.utils import set_seed
from optuna.trial import Trial
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import MeanLoss
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.run.progress import progress_bar
from mnist_dist.run.stopwatch import Stopwatch
from mnist_dist.task import networks
from mnist_dist.task.data import Split
from mnist_dist.task.evaluation import classify, evaluation_loader
from mnist_dist.task.objective import make_average, make_loss, make_optimizer, make_scheduler
from mnist_dist.tools.tune.study import FIRST, WHOLE


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
    accelerator = launch.start(
        config.cpu,
        config.mixed_precision,
        dtype,
        tf32=config.tf32,
        virtual_processes=config.virtual_processes,
        seed=config.seed,
    )
    set_seed(config.seed)
    network = networks.build(config.model, config.hidden, config.channels)
    network = network.to(accelerator.device, dtype)
    optimizer = make_optimizer(network, config)
    trained: torch.nn.Module = network
    if config.ema:
        trained = make_average(network, optimizer, config.ema).module
    train_data = TensorDataset(train.images, train.labels)
    train_loader = DataLoader(train_data, batch_size=config.batch_size, shuffle=True)
    scheduler = make_scheduler(optimizer, config, updates=config.epochs * len(train_loader))
    model, optimizer, train_loader, val_loader, scheduler = accelerator.prepare(
        network, optimizer, train_loader, evaluation_loader(val), scheduler
    )
    loss_function = make_loss(network, config, teachers)
    train_loss = MeanLoss(accelerator)
    stopwatch = Stopwatch()
    for epoch in range(config.epochs):
        stopwatch.start_epoch()
        model.train()
        title = f"epoch {epoch + 1}/{config.epochs}"
        for images, labels in progress_bar(accelerator, train_loader, title):
            loss = loss_function(model, images, labels, accelerator.micro_batch.rand)
            train_loss.update(loss)
            accelerator.backward(loss)
            if config.clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        train_loss.reset()  # which refuses numbers that broke
        stopwatch.end_epoch()
        accuracy = classify(accelerator, trained, val_loader).metrics("val")["val_accuracy"]
        trial.set_user_attr("train_seconds", stopwatch.total)
        # Compared with others when they had come as far: a long schedule begins worse than a short
        # one ends.
        trial.report(accuracy, WHOLE * (epoch + 1) // config.epochs)
        is_last = epoch + 1 == config.epochs
        may_be_pruned = FIRST not in trial.user_attrs and not is_last
        if may_be_pruned and trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {epoch + 1}")
    return accuracy
