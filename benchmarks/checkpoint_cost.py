"""What a checkpoint costs: the same training with and without checkpoints inside its epochs, in turn.

    python benchmarks/checkpoint_cost.py --data-dir data --rounds 5

Many a second are taken, so that their cost stands out from the noise, and the cost of one a second is computed from it.
Checkpoints at epoch ends are outside the clock of both sides.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
EPOCHS, UPDATES, EVERY = 5, 938, 100


def seconds(folder: Path, data_dir: Path, every: int) -> float:
    """The training's own clock over `EPOCHS` epochs of MNIST at batch 64."""
    flags = f"--cpu --dataset mnist --wandb disabled --epochs {EPOCHS} --checkpoint-every {every}".split()
    command = [sys.executable, TRAIN, *flags, "--data-dir", data_dir, "--output-dir", folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "summary.json").read_text())["train_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    checkpoints = EPOCHS * (UPDATES // EVERY)
    costs = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=".") as root:  # beside the user's runs: /tmp may be memory
            without = seconds(Path(root) / "without", args.data_dir, 0)
            with_them = seconds(Path(root) / "with", args.data_dir, EVERY)
        costs.append((with_them - without) / checkpoints)
        print(f"round {number + 1}: {without:.2f} s without, {with_them:.2f} s with {checkpoints}", flush=True)
    cost = statistics.median(costs)
    print(f"a checkpoint takes {1000 * cost:.1f} ms (median), so one a second takes {100 * cost:.1f} % of the time")


if __name__ == "__main__":
    main()
