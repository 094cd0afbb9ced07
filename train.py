"""Train an MNIST classifier: on a laptop, a workstation or a cluster, the same loop.

python train.py
accelerate launch train.py
torchrun --nproc-per-node 2 train.py --cpu
"""

import mnist_dist.startup  # noqa: F401  # isort: skip  # first: reports a broken environment
import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist import plots, report
from mnist_dist.core import (
    Checkpoints,
    ExactAccelerator,
    ExactDataLoader,
    MeanLoss,
    all_or_none,
    announce,
    as_stored,
    check_same_across_processes,
)
from mnist_dist.digits.config import TrainConfig
from mnist_dist.digits.finished import next_steps
from mnist_dist.digits.teachers import load_teachers, teachers_digest
from mnist_dist.digits.tracking import Tracker
from mnist_dist.run import launch, provenance
from mnist_dist.run.command_line import as_json, flag, parse
from mnist_dist.run.files import write_json
from mnist_dist.run.folder import PLOTS, SUMMARY, WEIGHTS, open_run, restore_run
from mnist_dist.run.progress import progress_bar
from mnist_dist.run.stopwatch import Stopwatch
from mnist_dist.run.weights import save_weights
from mnist_dist.task import data, networks
from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import Evaluation, evaluation_loader, evaluation_of
from mnist_dist.task.objective import make_average, make_loss, make_optimizer, make_scheduler


def main(config: TrainConfig | None = None, samples: DataSplits | None = None) -> None:
    """Train, evaluate after every epoch, and leave the trained model and its metrics in the run's folder.

    Args:
        config: the settings; None parses them from the command line.
        samples: the data, already on the device; None loads the data set named in the settings.
    """
    # Parse the settings, start the processes, and check that they all have the same settings.
    config = config or parse(TrainConfig)
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        dtype=dtype,
        compile_mode=config.compile_mode,
        tf32=config.tf32,
        virtual_processes=config.virtual_processes,
        seed=config.seed,
        # --batch-size counts all samples of an optimizer step, so gradients are accumulated over
        # pieces of one batch, not over several batches.
        micro_batches=config.gradient_accumulation_steps,
    )
    flags = {flag(name): value for name, value in as_json(config).items()}
    check_same_across_processes("the settings", flags)
    announce(launch.describe(accelerator))

    # Every process holds the whole data set on its device. batch_size is the global batch size.
    samples = samples or data.obtain(
        accelerator, config.dataset, config.data_dir, config.val_size, config.seed, dtype
    )
    data.check_shares(samples, config.batch_size, accelerator.num_processes)
    train_data = TensorDataset(samples.train.images, samples.train.labels)
    train_loader = DataLoader(train_data, batch_size=config.batch_size, shuffle=True)
    test_loader = evaluation_loader(samples.test)

    # The model, optimizer, loss function and learning-rate schedule.
    set_seed(config.seed)
    network = networks.build(config.model, config.hidden, config.channels)
    network = network.to(accelerator.device, dtype)
    optimizer = make_optimizer(network, config)
    # An optimizer hook updates the moving average after every step.
    averaged = make_average(network, optimizer, config.ema) if config.ema else None
    evaluated = averaged.module if averaged else network
    teachers = load_teachers(config, samples, accelerator.device)
    loss_function = make_loss(network, config, teachers)
    scheduler = make_scheduler(optimizer, config, updates=config.epochs * len(train_loader))

    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        network, optimizer, train_loader, test_loader, scheduler
    )
    loaders = {"test": test_loader}
    if samples.val:
        loaders["val"] = accelerator.prepare(evaluation_loader(samples.val))

    # Open the run's folder, set up its tracker and checkpoints, and resume if asked to.
    run = open_run(config.output_dir, f"{samples.name}-{config.model}", config.resume)
    settings = as_json(config) | {
        "dataset": samples.name,
        "mixed_precision": accelerator.mixed_precision,
        "data_digest": samples.digest,
        "teachers_digest": teachers_digest(teachers),
        "normalization": {"mean": samples.mean, "std": samples.std},
    }
    tracker = Tracker(accelerator, run, settings | provenance.about(accelerator))
    train_loss = MeanLoss(accelerator)
    stopwatch = Stopwatch()
    accelerator.register_for_checkpointing(tracker, train_loss, stopwatch)
    if averaged:
        accelerator.register_for_checkpointing(averaged)
    fixed = {  # a run is resumed only if none of this has changed
        "the data's digest": settings["data_digest"],
        "the teachers' digest": settings["teachers_digest"],
        **config.fixed(settings),
        **accelerator.bits,
    }
    checkpoints = Checkpoints(accelerator, run.folder, fixed, config.checkpoint_every)
    announce(
        f"{samples.name}: {len(samples.train):,} training samples, {len(samples.test):,} test samples\n"
        f"{config.model} with {networks.parameter_count(network):,} parameters; writing to {run.folder}"
    )
    restore_run(run, checkpoints, train_loader, config.epochs)

    with tracker:
        results: dict[str, Evaluation] = {}
        if tracker.pending:  # the run was stopped during the evaluation of an epoch
            results = end_epoch(accelerator, evaluated, loaders, tracker, checkpoints)
        for epoch in range(train_loader.next_epoch, config.epochs):
            stopwatch.start_epoch()
            model.train()
            title = f"epoch {epoch + 1}/{config.epochs}"
            for images, labels in progress_bar(accelerator, train_loader, title):
                # micro_batch.rand gives each sample the same numbers on any number of processes.
                loss = loss_function(model, images, labels, accelerator.micro_batch.rand)
                train_loss.update(loss)
                accelerator.backward(loss)
                if config.clip_norm:
                    accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
                learning_rate = optimizer.param_groups[0]["lr"]  # before the scheduler moves on
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

                if is_logged(accelerator, len(train_loader), config.log_every):
                    point = {
                        "train/loss": train_loss.compute_recent(),
                        "train/learning_rate": learning_rate,
                    }
                    tracker.log(point, step=accelerator.updates)
                checkpoints.after_update()

            tracker.pending = {
                "epoch": epoch + 1,
                "global_step": accelerator.updates,
                "train_loss": train_loss.compute(),
                "learning_rate": learning_rate,
                "samples_per_second": len(samples.train) / stopwatch.end_epoch(),
            }
            train_loss.reset()
            # Save before the (perhaps long) evaluation, so that a stop during it loses no update.
            checkpoints.save(last=epoch + 1 == config.epochs)
            results = end_epoch(accelerator, evaluated, loaders, tracker, checkpoints)

        if results:
            checkpoints.save(last=True)  # with the metrics of the last epoch
            test = results["test"]
        else:  # resumed after the last epoch: only the files are missing
            test = evaluate(accelerator, evaluated, test_loader, checkpoints)
        save_weights(run.folder / WEIGHTS, evaluated)
        if config.plots:
            save_plots(tracker, test, samples)
        if config.report:
            report.at_end(tracker, test, samples, stopwatch.total)
        tracker.log_evaluation(test, samples)
    save_summary(tracker, samples, networks.parameter_count(network), stopwatch.total)
    announce(next_steps(run.folder))
    announce(f"Test Accuracy: {100 * test.accuracy:.2f}% ({test.correct}/{test.total})")


def is_logged(accelerator: ExactAccelerator, updates_per_epoch: int, every: int) -> bool:
    """Whether to log this update: every `every`-th one, and the last one of each epoch."""
    update = accelerator.updates % updates_per_epoch
    return accelerator.sync_gradients and (update % every == 0 or update == 0)


def end_epoch(
    accelerator: ExactAccelerator,
    network: nn.Module,
    loaders: dict[str, ExactDataLoader],
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> dict[str, Evaluation]:
    """Evaluate the model after an epoch, and record the metrics."""
    results = {}
    figures: dict[str, float] = {}
    for name, loader in loaders.items():
        results[name] = evaluate(accelerator, network, loader, checkpoints)
        figures |= results[name].metrics(name)
    tracker.log_epoch(figures)
    announce_epoch(tracker.lines[-1], results, tracker.settings["epochs"])
    return results


def evaluate(
    accelerator: ExactAccelerator,
    network: nn.Module,
    loader: ExactDataLoader,
    checkpoints: Checkpoints,
) -> Evaluation:
    """Classify every sample exactly once, split across the processes, and gather all logits everywhere."""
    gathered = []
    with as_stored(network):
        for images, labels, indices in loader:
            logits = network(images)
            gathered.append(accelerator.gather_for_metrics((logits, labels, indices)))
            checkpoints.stop_if_asked()
    return evaluation_of(gathered, samples=len(loader.dataset))


def announce_epoch(line: dict[str, float], results: dict[str, Evaluation], epochs: int) -> None:
    """Print an epoch's figures."""
    accuracies = "  val ".join(f"{100 * result.accuracy:.2f}%" for result in results.values())
    announce(
        f"epoch {line['epoch']}/{epochs}  loss {line['train_loss']:.4f}  test accuracy {accuracies}  "
        f"{line['samples_per_second']:,.0f} samples/s"
    )


def save_plots(tracker: Tracker, test: Evaluation, samples: DataSplits) -> None:
    """Draw the learning curves, the confusion matrix and the most confident mistakes, on the main process."""
    folder = tracker.folder
    title = f"{tracker.settings['model']} of {folder.resolve().name}"
    with all_or_none():
        if tracker.accelerator.is_main_process:
            curves = folder / PLOTS / "learning_curves.png"
            plots.learning_curves(curves, tracker.lines, f"{samples.name}: {title}")
            plots.evaluation(folder / PLOTS, test, samples, "test", title)


def save_summary(
    tracker: Tracker, samples: DataSplits, parameters: int, train_seconds: float
) -> None:
    """Write the final metrics to summary.json; a run that has this file has succeeded."""
    settings = tracker.settings
    summary = tracker.lines[-1] | {
        "samples_per_second": settings["epochs"] * len(samples.train) / train_seconds,
        "dataset": samples.name,
        "model": settings["model"],
        "parameters": parameters,
        "train_samples": len(samples.train),
        "num_processes": settings["num_processes"],
        "train_seconds": train_seconds,
    }
    with all_or_none():
        if tracker.accelerator.is_main_process:
            write_json(tracker.folder / SUMMARY, summary)


if __name__ == "__main__":
    launch.run(main, "train.py")
