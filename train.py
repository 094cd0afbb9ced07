"""Train an MNIST classifier: on a laptop, a workstation or a cluster, the same loop.

python train.py
accelerate launch train.py
torchrun --nproc-per-node 2 train.py --cpu
"""

import torch
from accelerate.utils import set_seed

from mnist_dist import data, distributed, models, plots, runs
from mnist_dist.checkpoint import Keeper, TrainState
from mnist_dist.config import TrainConfig, as_json, parse
from mnist_dist.distributed import announce, from_main, same_everywhere, together
from mnist_dist.evaluation import BATCH, Evaluation, evaluate
from mnist_dist.tracking import Tracker
from mnist_dist.training import adam, average, compile_mode, train_epoch


def main() -> None:
    # The settings, and the processes, which must agree on them.
    config: TrainConfig = parse(TrainConfig)
    dtype = getattr(torch, config.dtype)
    accelerator = distributed.start(
        cpu=config.cpu, mixed_precision=config.mixed_precision, dtype=dtype, compile_mode=compile_mode(config)
    )
    same_everywhere("the settings", as_json(config))

    # The data, whole on every process's device; the loaders deal out each global batch.
    samples = data.obtain(accelerator, config.dataset, config.data_dir, config.val_size, config.seed, dtype)
    data.check_shares(samples, config.batch_size, accelerator.num_processes)
    ranks = (accelerator.num_processes, accelerator.process_index)
    train_batches = data.Loader(samples.train, config.batch_size, *ranks, shuffle=True, seed=config.seed)
    splits = {"test": samples.test} | ({"val": samples.val} if samples.val else {})
    test_batches = {name: data.Loader(split, BATCH, *ranks, shuffle=False) for name, split in splits.items()}

    # The model, the same on every process, and its optimizer.
    set_seed(config.seed)
    bare = models.build(config.model, config.hidden, config.channels).to(accelerator.device, dtype)
    parameters = models.parameter_count(bare)
    optimizer = adam(bare, config)
    averaged = average(bare, optimizer, config.ema) if config.ema else None
    model, optimizer = distributed.prepare(accelerator, bare, optimizer)

    # The run's folder and its settings.
    run = None
    with together():
        if accelerator.is_main_process:
            run = runs.create(config.output_dir, samples.name, config.model, config.resume)
    run = from_main(run)
    folder = run.folder
    settings = as_json(config) | {
        "dataset": samples.name,
        "data_digest": samples.fingerprint,
        "mixed_precision": accelerator.mixed_precision,
        "normalization": {"mean": samples.mean, "std": samples.std},
        "set_up": distributed.describe(accelerator),
        "wandb_id": run.wandb_id,
        "launcher": run.launcher,
        "versions": runs.versions(),
    }

    # Where a stopped run left off, or the start.
    keeper = Keeper(accelerator, folder, bare, optimizer, settings, config.checkpoint_every, averaged)
    announce(
        accelerator,
        f"{samples.name}: {len(samples.train):,} training samples, {len(samples.test):,} test samples; "
        f"{config.model} with {parameters:,} parameters; {settings['set_up']}; writing to {folder}",
    )
    state, history = keeper.resume() if run.resume else (TrainState(), [])

    def evaluate_all() -> dict[str, Evaluation]:
        return {name: evaluate(accelerator, averaged or bare, batches) for name, batches in test_batches.items()}

    with Tracker(accelerator, folder, settings, history) as tracker:
        # The loop.
        results: dict[str, Evaluation] = {}
        while state.epoch < config.epochs:
            trained = train_epoch(accelerator, model, optimizer, train_batches, state, config, tracker, keeper)
            results = evaluate_all()
            line = {"epoch": state.epoch, "global_step": state.global_step} | trained
            for name, result in results.items():
                line |= result.metrics(name)
            tracker.epoch(line)
            announce(
                accelerator,
                f"epoch {state.epoch}/{config.epochs}  loss {line['train_loss']:.4f}  "
                + "".join(f"{name} accuracy {100 * result.accuracy:.2f}%  " for name, result in results.items())
                + f"{line['samples_per_second']:,.0f} samples/s",
            )
            keeper.due(state.global_step)  # an epoch's end always is: this asks whether to stop there
            keeper.keep(state, tracker.history)

        # What remains of it: the weights and the pictures.
        test = (results or evaluate_all())["test"]  # none yet where a run is resumed that had only this left to do
        with together():
            if accelerator.is_main_process:
                runs.save_weights(folder / runs.WEIGHTS, averaged.get_submodule("module") if averaged else bare)
                plots.learning_curves(folder / runs.PLOTS / "learning_curves.png", tracker.lines, samples.name)
                plots.evaluation(folder / runs.PLOTS, test, samples, "test")
        tracker.end(test, samples)

    # The summary is written last: where it is, the run succeeded.
    with together():
        if accelerator.is_main_process:
            summary = tracker.lines[-1] | {
                "samples_per_second": state.epoch * len(samples.train) / state.train_seconds,
                "dataset": samples.name,
                "model": config.model,
                "parameters": parameters,
                "train_samples": len(samples.train),
                "num_processes": accelerator.num_processes,
                "train_seconds": state.train_seconds,
            }
            runs.write_json(folder / runs.SUMMARY, summary)
    announce(accelerator, f"Test Accuracy: {100 * test.accuracy:.2f}% ({test.correct}/{test.total})")


if __name__ == "__main__":
    distributed.run(main, "train.py")
