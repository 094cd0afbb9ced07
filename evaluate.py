"""Evaluate a trained model exactly: accuracy, per-class accuracy, confusion matrix, most confident mistakes.

python evaluate.py runs/20261122-101500-mnist-mlp
torchrun --nproc-per-node 2 evaluate.py mnist_model.pth --cpu
"""

from dataclasses import asdict
from pathlib import Path

from mnist_dist import data, distributed, models, plots, runs
from mnist_dist.config import EvaluateConfig, parse
from mnist_dist.distributed import announce, same_everywhere, together
from mnist_dist.errors import UserError
from mnist_dist.evaluation import BATCH, evaluate


def main() -> None:
    config: EvaluateConfig = parse(EvaluateConfig)
    accelerator = distributed.start(cpu=config.cpu, mixed_precision="no")

    # The model, from its weights alone; the data it was trained on, as its run's settings tell.
    with together():
        trained = runs.locate(config.model)
        weights = runs.load_weights(trained.weights)
        model = models.from_state_dict(weights)
        if config.split == "val" and not trained.val_size:
            raise UserError(f"--split val: the run of {trained.weights} held no samples out: use --split test")
    same_everywhere("the weights", runs.fingerprint(weights))
    samples = data.obtain(
        accelerator,
        config.dataset or trained.dataset,
        config.data_dir or Path(trained.data_dir),
        trained.val_size,
        trained.seed,
        next(model.parameters()).dtype,
    )

    # Every sample counted once, each process its share.
    split = getattr(samples, config.split)
    batches = data.Loader(split, BATCH, accelerator.num_processes, accelerator.process_index, shuffle=False)
    result = evaluate(accelerator, model.to(accelerator.device), batches)

    folder = config.output_dir or trained.weights.parent
    with together():
        if accelerator.is_main_process:
            (folder / runs.PLOTS).mkdir(parents=True, exist_ok=True)
            plots.evaluation(folder / runs.PLOTS, result, samples, config.split)
            runs.write_json(
                folder / runs.EVALUATION,
                {
                    "model": str(trained.weights),
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
