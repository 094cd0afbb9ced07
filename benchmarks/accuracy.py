"""Accuracy of a setting over several seeds: mean, spread, every run, and a picture of how they got there.

    python benchmarks/accuracy.py --output benchmarks/results/accuracy-fast.json -- --cpu --recipe fast
    python benchmarks/accuracy.py --split val --seeds 2 --output try.json -- --cpu --val-size 10000 --affine 0.5

Words after `--` go to train.py as they are. Choose settings with `--split val`, and look at the test set, which is the
default, only when they are chosen. With `--runs` the runs' folders are kept (for evaluate.py), and the same command
goes on where it was stopped; train.py refuses a folder whose run had other settings.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speed import processor

TRAIN = Path(__file__).parents[1] / "train.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=["test", "val"], default="test")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in; default: none are kept")
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time, which share the CPU cores")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the picture is written beside it")
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    if args.split == "val" and not any(flag.startswith(("--val-size", "--val_size")) for flag in args.flags):
        parser.error("--split val needs samples that are held out: add --val-size 10000 after --")
    threads = max(1, (os.cpu_count() or 1) // args.side_by_side)

    def train(folder: Path) -> list[dict[str, Any]]:
        """Train, or go on, to the end; the lines of metrics.jsonl."""
        command = [sys.executable, TRAIN, "--dataset", "mnist", "--data-dir", args.data_dir, "--wandb", "disabled"]
        command += ["--seed", folder.name, "--output-dir", folder, "--resume", *args.flags]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, env=environment).returncode:
            raise SystemExit(1)  # train.py has said why
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        print(f"seed {folder.name}: {100 * lines[-1][f'{args.split}_accuracy']:.2f}%", flush=True)
        return lines

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(args.side_by_side) as pool:
        folders = [(args.runs or Path(temporary)) / str(seed) for seed in range(args.seeds)]
        runs = list(pool.map(train, folders))
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    accuracies = [lines[-1][f"{args.split}_accuracy"] for lines in runs]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "flags": args.flags,
        "hardware": f"{processor()}; {threads} thread(s) a run, {args.side_by_side} run(s) side by side",
        "versions": {name: version(name) for name in ("torch", "accelerate")} | {"python": platform.python_version()},
        "parameters": summaries[0]["parameters"],
        "num_processes": [summary["num_processes"] for summary in summaries],
        "train_seconds": [round(summary["train_seconds"], 1) for summary in summaries],
        f"{args.split}_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    curves = [[100 - 100 * line[f"{args.split}_accuracy"] for line in lines] for lines in runs]
    draw(args.output.with_suffix(".png"), curves, f"{args.split} error, {' '.join(args.flags)}")
    spread = f", standard deviation {100 * result['standard_deviation']:.2f} points" if len(runs) > 1 else ""
    print(f"mean {100 * result['mean']:.2f}%{spread}, {statistics.median(result['train_seconds']):.0f} s of training")


def draw(path: Path, curves: list[list[float]], heading: str) -> None:
    """Error in percent over the epochs, a line a run, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    picture = Figure(figsize=(7, 4), layout="constrained")
    axes = picture.subplots()
    for seed, curve in enumerate(curves):
        axes.plot(range(1, len(curve) + 1), curve, linewidth=1, label=f"seed {seed}: {curve[-1]:.2f}%")
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="error (%)")
    axes.set_title(heading, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
