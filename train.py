"""Train an MNIST classifier: on a laptop, a workstation or a cluster, the same loop.

python train.py
accelerate launch train.py
torchrun --nproc-per-node 2 train.py --cpu
"""

import mnist_dist  # noqa: F401  # isort: skip  # first: it says in words if the environment lets nothing be imported
import torch
from accelerate.utils import set_seed

from mnist_dist import plots
from mnist_dist.core import Checkpoints, GlobalBatches, Training, all_or_none, announce, same_everywhere
from mnist_dist.digits.config import TrainConfig
from mnist_dist.digits.finished import next_steps
from mnist_dist.digits.teachers import load_teachers, teachers_digest
from mnist_dist.digits.tracking import Tracker
from mnist_dist.run import graphs, launch, origin
from mnist_dist.run.command_line import as_json, flag, parse
from mnist_dist.run.files import write_json
from mnist_dist.run.folder import PLOTS, SUMMARY, WEIGHTS, go_on, open_run
from mnist_dist.run.weights import save_weights
from mnist_dist.task import data, networks
from mnist_dist.task.evaluation import Evaluation, classify
from mnist_dist.task.objective import adam, average, loss_of, schedule


def main() -> None:
    # The settings, and the processes, which must agree on them.
    config: TrainConfig = parse(TrainConfig)
    dtype, virtual = getattr(torch, config.dtype), config.virtual_processes
    accelerator = launch.start(config.cpu, config.mixed_precision, dtype, config.compile_mode, config.tf32)
    for name, value in as_json(config).items():
        same_everywhere("the settings", f"{flag(name)} {value}")
    announce(launch.describe(accelerator))
    bits = launch.fix_bits(virtual, config.cuda_graph)

    # The data, whole on every process's device, dealt out by global batches.
    samples = data.obtain(accelerator, config.dataset, config.data_dir, config.val_size, config.seed, dtype)
    data.check_shares(samples, config.batch_size, accelerator.num_processes)
    train = GlobalBatches(samples.train.tensors, config.batch_size, accelerator, seed=config.seed, virtual=virtual)
    splits = {"test": samples.test} | ({"val": samples.val} if samples.val else {})

    # The model, the same on every process, its optimizer, and what is minimised.
    set_seed(config.seed)
    network = networks.build(config.model, config.hidden, config.channels).to(accelerator.device, dtype)
    optimizer = adam(network, config)
    averaged = average(network, optimizer, config.ema) if config.ema else None
    teachers = load_teachers(config, samples, accelerator.device)
    kind_of_training = graphs.GraphTraining if config.cuda_graph else Training
    training = kind_of_training(accelerator, network, optimizer, loss_of(network, config, teachers))
    trained, rate = averaged.module if averaged else network, schedule(config, config.epochs * len(train))

    # The run's folder, and where a stopped run left off.
    run = open_run(config.output_dir, f"{samples.name}-{config.model}", config.resume)
    values = as_json(config) | {"dataset": samples.name, "mixed_precision": accelerator.mixed_precision}
    about = {
        "data_digest": samples.digest,
        "teachers_digest": teachers_digest(teachers),
        "normalization": {"mean": samples.mean, "std": samples.std},
    } | origin.about(accelerator)
    tracker = Tracker(accelerator, run, values | about)
    parts = {"tracker": tracker} | ({"averaged": averaged} if averaged else {})
    digests = {"the data's digest": samples.digest, "the teachers' digest": about["teachers_digest"]}
    fixed = digests | config.fixed(values) | bits
    checkpoints = Checkpoints(run.folder, training, parts, fixed, config.checkpoint_every)
    announce(
        f"{samples.name}: {len(samples.train):,} training samples, {len(samples.test):,} test samples\n"
        f"{config.model} with {networks.parameter_count(network):,} parameters; writing to {run.folder}"
    )
    progress, results = go_on(run, checkpoints, config.epochs), dict[str, Evaluation]()

    def evaluate() -> dict[str, Evaluation]:
        return {name: classify(accelerator, trained, split, virtual=virtual) for name, split in splits.items()}

    with tracker:
        while progress.epoch < config.epochs:
            for batch in training.epoch(train, f"epoch {progress.epoch + 1}/{config.epochs}"):
                training.set_rate(rate(progress.global_step))
                training.update(batch, pieces=config.gradient_accumulation_steps, clip_norm=config.clip_norm)
                if progress.step % config.log_every == 0 or training.epoch_is_complete:
                    point = {"train/loss": training.recent_loss(), "train/learning_rate": training.rate}
                    tracker.curve({"global_step": progress.global_step} | point)
                checkpoints.after_update()
            results = evaluate()
            line = {"epoch": progress.epoch, "global_step": progress.global_step} | training.figures
            for name, result in results.items():
                line |= result.metrics(name)
            tracker.epoch(line)
            accuracies = "  val ".join(f"{100 * result.accuracy:.2f}%" for result in results.values())
            announce(
                f"epoch {progress.epoch}/{config.epochs}  loss {line['train_loss']:.4f}  test accuracy {accuracies}  "
                f"{line['samples_per_second']:,.0f} samples/s"
            )
            checkpoints.save(last=progress.epoch == config.epochs)

        # What remains of it: the weights, the pictures, and the summary. It is written last: a run with it succeeded.
        test = (results or evaluate())["test"]  # none yet if a run is resumed that had only this left to do
        save_weights(run.folder / WEIGHTS, trained)
        with all_or_none():
            if accelerator.is_main_process:
                title, place = f"{config.model} of {run.folder.resolve().name}", run.folder / PLOTS
                plots.learning_curves(place / "learning_curves.png", tracker.lines, f"{samples.name}: {title}")
                plots.evaluation(place, test, samples, "test", title)
        tracker.end(test, samples)
    summary = tracker.lines[-1] | {
        "samples_per_second": progress.epoch * len(samples.train) / progress.train_seconds,
        "dataset": samples.name,
        "model": config.model,
        "parameters": networks.parameter_count(network),
        "train_samples": len(samples.train),
        "num_processes": accelerator.num_processes,
        "train_seconds": progress.train_seconds,
    }
    with all_or_none():
        if accelerator.is_main_process:
            write_json(run.folder / SUMMARY, summary)
    announce(next_steps(run.folder))
    announce(f"Test Accuracy: {100 * test.accuracy:.2f}% ({test.correct}/{test.total})")


if __name__ == "__main__":
    launch.run(main, "train.py")
