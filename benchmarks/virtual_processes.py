"""What the same bits cost: samples/s with virtual processes and without, on one process and on two.

    python benchmarks/virtual_processes.py --output benchmarks/results/virtual-processes.json

One thread a process. In each round all settings take their turn in the same processes, each for
half a second or more. Printed are the median over the rounds without virtual processes and, with
them, the median ratio to it. The images are random: nothing that is measured depends on them.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from common import (
    Training,
    median_ratio,
    one_thread,
    origin_of_result,
    print_table,
    random_digits,
    say_origin,
    torchrun,
    write_result,
)

from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.task import networks

PROCESSES = (1, 2)
VIRTUAL = (0, 1, 2, 4, 8)
MODELS: tuple[networks.Name, ...] = ("mlp", "cnn")
BATCHES = (64, 128, 512)


def worker(path: Path, rounds: int, least: float) -> None:
    """Be one process: measure the samples/s of each setting, by round.

    Args:
        path: where the first process writes them.
        rounds: how often each setting has its turn.
        least: seconds that a measurement takes at least.
    """
    accelerator = launch.start(cpu=True, mixed_precision="no")
    samples = random_digits(8 * max(BATCHES))
    trainings = {}
    counts = {}
    for model, size, virtual in itertools.product(MODELS, BATCHES, VIRTUAL):
        if 0 < virtual < accelerator.num_processes:
            continue
        name = f"{model} {size} {virtual}"
        own = launch.start(cpu=True, mixed_precision="no", virtual_processes=virtual)
        config = TrainConfig(model=model, batch_size=size)
        training = Training(own, config, samples)
        training.make_updates(3)  # to be warm
        each = torch.tensor(training.seconds_of(10) / 10)
        agreed = accelerator.reduce(each, "mean").item()
        counts[name] = max(10, math.ceil(least / agreed))
        trainings[name] = training
    speeds: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(rounds):
        for name, training in trainings.items():
            count = counts[name]
            seconds = training.seconds_of(count)
            speeds[name].append(count * training.config.batch_size / seconds)
    if accelerator.is_main_process:
        path.write_text(json.dumps(speeds))


def measure(processes: int, rounds: int, least: float) -> dict[str, list[float]]:
    """What so many processes, with a thread each, find."""
    with tempfile.NamedTemporaryFile() as file:
        command = [
            *torchrun(processes),
            __file__,
            "--worker",
            file.name,
        ]
        command += ["--rounds", str(rounds), "--least", str(least)]
        subprocess.run(command, check=True, env=one_thread())
        return json.loads(Path(file.name).read_text())


def cells_of(speeds: dict[str, list[float]], model: str, size: int) -> list[str]:
    """A row of the table: the speed without virtual processes, and with them the ratio to it."""
    off = speeds[f"{model} {size} 0"]
    cells = [f"{statistics.median(off):,.0f}"]
    for virtual in VIRTUAL[1:]:
        found = speeds.get(f"{model} {size} {virtual}")
        cells.append(f"{median_ratio(found, off):.2f}" if found else "")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("virtual-processes.json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--least", type=float, default=0.5, help="seconds a measurement")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        launch.run(
            lambda: worker(args.worker, args.rounds, args.least),
            "virtual_processes.py",
        )
    found = {}
    for processes in PROCESSES:
        found[processes] = measure(processes, args.rounds, args.least)
    result = origin_of_result()
    say_origin(result)
    columns = ["processes, network, batch", "off"]
    columns += [f"V = {virtual}" for virtual in VIRTUAL[1:]]
    rows = []
    for processes, model, size in itertools.product(PROCESSES, MODELS, BATCHES):
        title = f"{processes}, {model}, {size}"
        rows.append([title, *cells_of(found[processes], model, size)])
    print_table(columns, rows)
    result["unit"] = "samples/s by round; keys are network, batch and virtual processes (0: off)"
    result["processes"] = found
    write_result(args.output, result)


if __name__ == "__main__":
    main()
