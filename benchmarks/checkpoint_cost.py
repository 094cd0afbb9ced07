"""What a checkpoint costs: the same training with and without checkpoints in its epochs, in turn.

    python benchmarks/checkpoint_cost.py --data-dir data --rounds 5

Many a second are taken, so that their cost stands out from the noise, and the cost of one a second
is computed from it. Checkpoints at epoch ends are outside the clock of both sides.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
UPDATES = {"mnist": 938, "mnist-5k": 63}  # an epoch at batch 64
FLAGS = "--cpu --wandb disabled"


def seconds(folder: Path, args: argparse.Namespace, every: int) -> float:
    """The training's own clock over all epochs at batch 64, with a checkpoint every so often."""
    command = [sys.executable, str(TRAIN), *FLAGS.split()]
    command += [
        "--dataset",
        args.dataset,
        "--data-dir",
        str(args.data_dir),
    ]
    command += [
        "--epochs",
        str(args.epochs),
        "--checkpoint-every",
        str(every),
    ]
    command += ["--output-dir", str(folder)]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    summary = json.loads((folder / "summary.json").read_text())
    return summary["train_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--dataset", choices=list(UPDATES), default="mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--every",
        type=int,
        default=100,
        help="updates between checkpoints",
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    checkpoints = args.epochs * (UPDATES[args.dataset] // args.every)
    costs = []
    for number in range(args.rounds):
        # Beside the user's runs: /tmp may be memory.
        with tempfile.TemporaryDirectory(dir=".") as root:
            without = seconds(Path(root, "without"), args, 0)
            with_them = seconds(Path(root, "with"), args, args.every)
        costs.append((with_them - without) / checkpoints)
        print(
            f"round {number + 1}: {without:.2f} s without, {with_them:.2f} s with {checkpoints}",
            flush=True,
        )
    cost = statistics.median(costs)
    print(f"a checkpoint takes {1000 * cost:.1f} ms (median)")
    print(f"one a second takes {100 * cost:.1f} % of the time")


if __name__ == "__main__":
    main()
