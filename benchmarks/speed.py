"""Training speed of train.py beside the baselines: whole processes, in turn, in one sitting.

    python benchmarks/speed.py --data-dir data --rounds 5 --output benchmarks/results/speed-cpu.json

Of each process the best epoch counts, as samples a second; the table has medians over the rounds, their range, and the
median of the ratios within a round. Writes the JSON and, beside it, the same as Markdown.
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
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def baseline(name: str, data_dir: Path, batch_size: int, epochs: int) -> float:
    """Samples a second of a baseline's best epoch."""
    command = [sys.executable, HERE / "baselines.py", name, "--data-dir", data_dir, "--device", "cpu"]
    return max(json.loads(run(command, batch_size, epochs))["samples_per_second"])


def project(data_dir: Path, batch_size: int, epochs: int) -> float:
    """Samples a second of train.py's best epoch, on its shipped default path with W&B offline."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, HERE.parent / "train.py", "--dataset", "mnist", "--data-dir", data_dir, "--cpu"]
        run([*command, "--wandb", "offline", "--output-dir", Path(folder) / "run"], batch_size, epochs)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["samples_per_second"] for line in lines)


def run(command: list, batch_size: int, epochs: int) -> str:
    """The last line that a command prints."""
    words = [*map(str, command), "--batch-size", str(batch_size), "--epochs", str(epochs)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def processor() -> str:
    """The processor's name, where Linux tells it."""
    names = [line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0].strip() if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    table = []
    for batch_size in (64, 512):
        runs: dict[str, list[float]] = {"train.py": [], "floor": [], "original": []}
        for number in range(args.rounds):
            print(f"batch {batch_size}, round {number + 1} of {args.rounds}", file=sys.stderr)
            runs["train.py"].append(project(args.data_dir, batch_size, 5))
            runs["floor"].append(baseline("floor", args.data_dir, batch_size, 5))
            runs["original"].append(baseline("original", args.data_dir, batch_size, 1))
        for name, speeds in runs.items():
            ratios = [speed / limit for speed, limit in zip(speeds, runs["floor"], strict=True)]
            table.append(
                {
                    "batch_size": batch_size,
                    "program": name,
                    "samples_per_second": round(statistics.median(speeds)),
                    "lowest": round(min(speeds)),
                    "highest": round(max(speeds)),
                    "ratio_to_floor": round(statistics.median(ratios), 3),
                }
            )
    packages = {package: version(package) for package in ("torch", "torchvision", "accelerate", "wandb")}
    setting = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "python": platform.python_version(),
    } | packages
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"setting": setting, "rounds": args.rounds, "table": table}, indent=2) + "\n")
    text = [
        "| batch | program | samples/s (median) | range | of the floor |",
        "|---:|---|---:|---|---:|",
        *(
            f"| {row['batch_size']} | {row['program']} | {row['samples_per_second']:,} | "
            f"{row['lowest']:,} to {row['highest']:,} | {row['ratio_to_floor']:.2f} |"
            for row in table
        ),
        "",
        f"{args.rounds} rounds; " + ", ".join(f"{key} {value}" for key, value in setting.items()),
    ]
    args.output.with_suffix(".md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
