"""Accuracy of a setting over several seeds: mean, spread, every run, and a picture of the runs.

    python benchmarks/accuracy.py --output benchmarks/results/accuracy-fast.json -- --cpu \\
        --recipe fast
    python benchmarks/accuracy.py --split val --seeds 2 --output try.json -- --cpu \\
        --val-size 10000 --affine 0.5

Words after `--` go to train.py as they are. Choose settings with `--split val`, and look at the
test set, which is the default, only when they are chosen. With `--runs` the runs' folders are kept
(for evaluate.py), and the same command goes on where it was stopped; train.py refuses a folder
whose run had other settings.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, origin_of_result, write_result


def train(args: argparse.Namespace, threads: int, folder: Path) -> list[dict[str, Any]]:
    """Train, or go on, to the end, and return the lines of metrics.jsonl.

    Args:
        args: the command line.
        threads: of the run.
        folder: of the run; its name is the seed.
    """
    command = [sys.executable, str(ROOT / "train.py")]
    command += [
        "--dataset",
        args.dataset,
        "--data-dir",
        str(args.data_dir),
    ]
    command += ["--wandb", "disabled", "--seed", folder.name]
    command += ["--output-dir", str(folder), "--resume", *args.flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment)
    if done.returncode:
        raise SystemExit(1)  # train.py has said why
    lines = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        lines.append(json.loads(line))
    accuracy = lines[-1][f"{args.split}_accuracy"]
    print(f"seed {folder.name}: {100 * accuracy:.2f}%", flush=True)
    return lines


def collect(
    args: argparse.Namespace,
    threads: int,
    runs: list[list[dict[str, Any]]],
    summaries: list[dict[str, Any]],
) -> dict[str, Any]:
    """The result of all runs.

    Args:
        args: the command line.
        threads: of each run.
        runs: the lines of each one's metrics.jsonl.
        summaries: what each one's summary.json holds.
    """
    accuracies = [lines[-1][f"{args.split}_accuracy"] for lines in runs]
    several = len(accuracies) > 1
    result = origin_of_result()
    result["hardware"] += f"; {threads} thread(s) a run, {args.side_by_side} run(s) side by side"
    return result | {
        "flags": args.flags,
        "parameters": summaries[0]["parameters"],
        "num_processes": [summary["num_processes"] for summary in summaries],
        "train_seconds": [round(summary["train_seconds"], 1) for summary in summaries],
        f"{args.split}_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if several else None,
    }


def say(result: dict[str, Any]) -> None:
    """Print the mean, the spread and the time of training."""
    spread = ""
    if result["standard_deviation"] is not None:
        spread = f", standard deviation {100 * result['standard_deviation']:.2f} points"
    seconds = statistics.median(result["train_seconds"])
    print(f"mean {100 * result['mean']:.2f}%{spread}, {seconds:.0f} s of training")


def draw(path: Path, curves: list[list[float]], heading: str) -> None:
    """Draw the error in percent over the epochs, a line a run, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    picture = Figure(figsize=(7, 4), layout="constrained")
    axes = picture.subplots()
    for seed, curve in enumerate(curves):
        epochs = range(1, len(curve) + 1)
        label = f"seed {seed}: {curve[-1]:.2f}%"
        axes.plot(epochs, curve, linewidth=1, label=label)
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="error (%)")
    axes.set_title(heading, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=["test", "val"], default="test")
    parser.add_argument(
        "--runs",
        type=Path,
        help="folder to keep the runs in; default: none",
    )
    parser.add_argument(
        "--side-by-side",
        type=int,
        default=1,
        help="runs at a time, which share the CPU cores",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="JSON file; the picture is written beside it",
    )
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    holds_out = any(flag.startswith(("--val-size", "--val_size")) for flag in args.flags)
    if args.split == "val" and not holds_out:
        parser.error("--split val needs samples that are held out: add --val-size 10000 after --")
    threads = max(1, (os.cpu_count() or 1) // args.side_by_side)
    with tempfile.TemporaryDirectory() as temporary:
        place = args.runs or Path(temporary)
        folders = [place / str(seed) for seed in range(args.seeds)]
        with ThreadPoolExecutor(args.side_by_side) as pool:
            runs = list(pool.map(partial(train, args, threads), folders))
        summaries = []
        for folder in folders:
            summaries.append(json.loads((folder / "summary.json").read_text()))
    result = collect(args, threads, runs, summaries)
    write_result(args.output, result)
    curves = []
    for lines in runs:
        curves.append([100 - 100 * line[f"{args.split}_accuracy"] for line in lines])
    heading = f"{args.split} error, {' '.join(args.flags)}"
    draw(args.output.with_suffix(".png"), curves, heading)
    say(result)


if __name__ == "__main__":
    main()
