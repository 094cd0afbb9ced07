"""Evaluate a trained model exactly: accuracy, per-class accuracy, calibration, confusion matrix, mistakes.

python evaluate.py runs/20261122-101500-mnist-mlp
python evaluate.py runs/first runs/second runs/third --output-dir runs/ensemble
torchrun --nproc-per-node 2 evaluate.py mnist_model.pth --cpu
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor

from mnist_dist import data, distributed, models, plots, runs
from mnist_dist.augment import distort, shift
from mnist_dist.config import EvaluateConfig, parse
from mnist_dist.distributed import announce, same_everywhere, together
from mnist_dist.errors import UserError
from mnist_dist.evaluation import BATCH, evaluate, mean


def main() -> None:
    config: EvaluateConfig = parse(EvaluateConfig)
    accelerator = distributed.start(cpu=config.cpu, mixed_precision="no")

    # The models, from their weights alone; the data they were trained on, as their runs' settings tell.
    with together():
        trained = [runs.locate(path) for path in config.models]
        weights = [runs.load_weights(one.weights) for one in trained]
        networks = [models.from_state_dict(one) for one in weights]
        first, dtype = trained[0], next(networks[0].parameters()).dtype
        for other in trained:
            if (other.dataset, other.mean, other.std) != (first.dataset, first.mean, first.std):
                raise UserError(
                    f"{other.weights} was trained on other data than {first.weights}, or does not say on which: "
                    "evaluate it by itself"
                )
            held_out = other.val_size or first.val_size
            if config.split != "test" and held_out and (other.val_size, other.seed) != (first.val_size, first.seed):
                raise UserError(f"{other.weights} held out other samples than {first.weights}: use --split test")
        if config.split == "val" and config.dataset not in (None, first.dataset):
            raise UserError(f"--split val: {first.weights} held out samples of {first.dataset}: leave --dataset out")
        if config.split == "val" and not first.val_size:
            raise UserError(f"--split val: the run of {first.weights} held no samples out: use --split test")
    same_everywhere("the weights", [runs.fingerprint(one) for one in weights])
    samples = data.obtain(
        accelerator,
        config.dataset or first.dataset,
        config.data_dir or Path(first.data_dir),
        0 if config.split == "test" or config.dataset not in (None, "auto", first.dataset) else first.val_size,
        first.seed,
        dtype,
    )

    # Every sample counted once, each process its share; and the same again for every shifted or distorted copy.
    split = getattr(samples, config.split)
    batches = data.Loader(split, BATCH, accelerator.num_processes, accelerator.process_index, shuffle=False)

    def distorted(copy: int, number: int, batch: data.Batch) -> Tensor:
        generator, strength = data.seeded(data.VIEW, copy, number), {"affine": config.affine, "elastic": config.elastic}
        return distort(batch.images, batch.size, batch.positions, generator=generator, **strength)

    def shifted(down: int, right: int, _: int, batch: data.Batch) -> Tensor:
        return shift(batch.images, down, right)

    shifts = ((-1, 0), (1, 0), (0, -1), (0, 1)) if config.shifts else ()
    views = [None, *(partial(shifted, *by) for by in shifts)]
    views += [partial(distorted, copy) for copy in range(config.distortions)]
    result = mean(
        [
            evaluate(accelerator, network.to(accelerator.device, dtype), batches, view)
            for network in networks
            for view in views
        ]
    )

    result.metrics(config.split)  # refuses a loss that is not finite, before anything is written
    folder = config.output_dir or first.weights.parent
    with together():
        if accelerator.is_main_process:
            (folder / runs.PLOTS).mkdir(parents=True, exist_ok=True)
            plots.evaluation(folder / runs.PLOTS, result, samples, config.split)
            runs.write_json(
                folder / runs.EVALUATION,
                {
                    "models": [str(one.weights) for one in trained],
                    "shifts": config.shifts,
                    "distortions": config.distortions,
                    "affine": config.affine,
                    "elastic": config.elastic,
                    "dataset": samples.name,
                    "split": config.split,
                    "num_processes": accelerator.num_processes,
                    "loss": result.loss,
                    "accuracy": result.accuracy,
                    "correct": result.correct,
                    "total": result.total,
                    "calibration_error": result.calibration_error,
                    "reliability": [asdict(bin) for bin in result.reliability()],
                    "class_accuracy": dict(zip(samples.classes, result.class_accuracy, strict=True)),
                    "confusion_matrix": result.confusion.tolist(),
                },
            )
    for name, accuracy, row in zip(samples.classes, result.class_accuracy, result.confusion.tolist(), strict=True):
        share = "   no sample" if accuracy is None else f"{100 * accuracy:8.2f}% "
        announce(accelerator, f"{name:>8} {share} {' '.join(f'{count:5d}' for count in row)}")
    announce(
        accelerator,
        f"expected calibration error {100 * result.calibration_error:.2f}%; {folder / runs.EVALUATION} and "
        f"{folder / runs.PLOTS} have the confusion matrix, the reliability and the mistakes",
    )
    announce(
        accelerator,
        f"{config.split.capitalize()} Accuracy: {100 * result.accuracy:.2f}% ({result.correct}/{result.total})",
    )


if __name__ == "__main__":
    distributed.run(main, "evaluate.py")
