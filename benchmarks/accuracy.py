"""Test accuracy of a setting over several seeds: mean, spread and every run.

    python benchmarks/accuracy.py --data-dir data --seeds 5 --output benchmarks/results/accuracy-original.json -- --cpu

Words after `--` go to train.py as they are. The setting must have been chosen before: this looks at the test set.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    accuracies = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, TRAIN, "--dataset", "mnist", "--data-dir", args.data_dir, "--seed", seed]
            command += ["--wandb", "disabled", "--output-dir", Path(folder) / "run", *args.flags]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
            accuracies.append(json.loads((Path(folder) / "run" / "summary.json").read_text())["test_accuracy"])
        print(f"seed {seed}: {100 * accuracies[-1]:.2f}%")
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "flags": args.flags,
        "versions": {name: version(name) for name in ("torch", "accelerate")} | {"python": platform.python_version()},
        "test_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"mean {100 * result['mean']:.2f}%, standard deviation {100 * result['standard_deviation']:.2f} points")


if __name__ == "__main__":
    main()
