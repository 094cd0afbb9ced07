"""By how much `doctor` slows an update of ResNet-18 down on a CPU, with and without it in turn.

    python benchmarks/doctor_overhead.py [--processes 1 2] [--rounds 5] [--updates 20]

One line for each number of processes: the seconds of computing (of the process, so that other
programs on the machine count little) that an update takes on average, without doctor and with it,
and the ratio in each round. The average holds the updates of which digests are taken.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINING = """
import json, os, sys, time
import torch, torchvision
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torchvision.models.resnet18(num_classes=10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
rows, labels = torch.randn(32, 3, 64, 64), torch.randint(10, (32,))
seconds = []
for _ in range(int(sys.argv[1])):
    begun = time.process_time()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(rows), labels).backward()
    optimizer.step()
    seconds.append(time.process_time() - begun)
if dist.get_rank() == 0:
    open(sys.argv[2], "w").write(json.dumps(seconds[3:]))
dist.destroy_process_group()
"""
FIRST = 3  # updates that are not counted: the first ones are examined all, and warm up


def run(folder: Path, processes: int, updates: int, watched: bool) -> list[float]:
    """Return the seconds of the updates of one training."""
    script = folder / "training.py"
    script.write_text(TRAINING)
    result = folder / "seconds.json"
    doctor = ["-m", "mnist_dist", "doctor"] if watched else []
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words += [*doctor, str(script), str(updates + FIRST), str(result)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if not result.exists():
        sys.exit(done.stdout + done.stderr)
    seconds = [float(word) for word in result.read_text().strip("[]").split(",")]
    result.unlink()
    return seconds


def main() -> None:
    """Measure, in turn, and print a line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20)
    flags = parser.parse_args()
    for processes in flags.processes:
        ratios: list[float] = []
        seconds: dict[bool, list[float]] = {False: [], True: []}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(flags.rounds):
                for watched in (False, True):
                    found = run(Path(folder), processes, flags.updates, watched)
                    seconds[watched].append(statistics.fmean(found))
                ratios.append(seconds[True][-1] / seconds[False][-1])
        alone = statistics.median(seconds[False])
        with_doctor = statistics.median(seconds[True])
        print(
            f"{processes} processes: {alone:.3f} s an update, {with_doctor:.3f} s with doctor; "
            f"ratios of {flags.rounds} rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
