"""What the same bits cost: samples/s with virtual processes and without, on one process and on two.

    python benchmarks/virtual_processes.py --output benchmarks/results/virtual-processes.json

One thread a process. In each round all settings take their turn in the same processes, each for half a second or more.
Printed are the median over the rounds without virtual processes and, with them, the median ratio to it. The images are
random: nothing that is measured depends on them.
"""

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist.core import GlobalBatches, Training
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.task import networks
from mnist_dist.task.objective import adam, loss_of

PROCESSES, VIRTUAL, MODELS, BATCHES = (1, 2), (0, 1, 2, 4, 8), ("mlp", "cnn"), (64, 128, 512)
LEAST = 0.5  # seconds a measurement


def worker(path: Path, rounds: int) -> None:
    """One process: samples/s of each setting, by round."""
    accelerator = launch.start(cpu=True, mixed_precision="no")
    torch.manual_seed(0)  # the same on all processes
    samples = torch.randn(8 * max(BATCHES), 1, 28, 28), torch.randint(0, 10, (8 * max(BATCHES),))
    updates: dict[str, Callable[[int], float]] = {}
    for model, size, virtual in itertools.product(MODELS, BATCHES, VIRTUAL):
        if not virtual or virtual >= accelerator.num_processes:
            torch.manual_seed(0)
            network, config = networks.build(model), TrainConfig(model=model)
            training = Training(accelerator, network, adam(network, config), loss_of(network, config))
            batches = GlobalBatches(samples, size, accelerator, seed=0, virtual=virtual)
            updates[f"{model} {size} {virtual}"] = partial(seconds_of, training, batches)
    counts = {}
    for name, take in updates.items():
        take(3)  # warm
        each = accelerator.reduce(torch.tensor(take(10) / 10), "mean").item()  # so that all agree on the number
        counts[name] = max(10, math.ceil(LEAST / each))
    found: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds):
        for name, take in updates.items():
            found[name].append(counts[name] * int(name.split()[1]) / take(counts[name]))
    if accelerator.is_main_process:
        path.write_text(json.dumps(found))


def seconds_of(training: Training, batches: GlobalBatches, updates: int) -> float:
    """What so many updates take."""
    dealt = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
    begin = time.perf_counter()
    for batch in itertools.islice(dealt, updates):
        training.update(batch)
    training.latest.clear()
    return time.perf_counter() - begin


def measure(processes: int, rounds: int) -> dict[str, list[float]]:
    """What so many processes, with a thread each, find."""
    with tempfile.NamedTemporaryFile() as file:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, __file__, "--worker", file.name, "--rounds", str(rounds)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("virtual-processes.json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        launch.run(lambda: worker(args.worker, args.rounds), "virtual_processes.py")
    found = {processes: measure(processes, args.rounds) for processes in PROCESSES}
    print("| processes, network, batch | off | V = 1 | V = 2 | V = 4 | V = 8 |\n|---|---:|---:|---:|---:|---:|")
    for processes, model, size in itertools.product(PROCESSES, MODELS, BATCHES):
        speeds = {virtual: found[processes].get(f"{model} {size} {virtual}") for virtual in VIRTUAL}
        off = statistics.median(speeds[0])
        cells = [f"{off:,.0f}"]
        for virtual in VIRTUAL[1:]:
            rounds = speeds[virtual] and [one / other for one, other in zip(speeds[virtual], speeds[0], strict=True)]
            cells.append(f"{statistics.median(rounds):.2f}" if rounds else "")
        print(f"| {processes}, {model}, {size} | {' | '.join(cells)} |")
    about = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "unit": "samples/s by round; keys are network, batch and virtual processes (0: off)",
    }
    args.output.write_text(json.dumps(about | {"processes": found}) + "\n")


if __name__ == "__main__":
    main()
