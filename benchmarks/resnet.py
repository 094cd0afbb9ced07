"""What the same training costs a ResNet-18, on one process and on two.

    python benchmarks/resnet.py
    python benchmarks/resnet.py --rounds 1 --updates 1   (smallest)

torchvision's ResNet-18 with ten classes, on random pictures 3x32x32, SGD with momentum, 64 samples
an update, one thread per process on CPUs. In each round all settings take their turn, each in processes
of its own, because `ExactAccelerator` changes how a process keeps freed memory:

stock: Accelerate's `Accelerator`. On two processes DDP averages the gradients, and batch
    normalisation computes statistics of each process's 32 samples alone.
exact, without V: `ExactAccelerator`, with batch normalisation over all 64 samples.
stock, in 4 pieces: Accelerate's gradient accumulation, with pieces of 16 samples, as many as V = 4 has.
exact, V = 2, 4, 8: with virtual processes, the same bits on 1 to V processes.

Printed are medians over the rounds of samples/s, and of the ratios to stock within a round.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from common import (
    RESULTS,
    median_ratio,
    one_thread,
    origin_of_result,
    print_table,
    say_origin,
    torchrun,
    wait_for,
    write_result,
)
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from mnist_dist.core import ExactAccelerator
from mnist_dist.run import launch

BATCH = 64
PROCESSES = (1, 2)


@dataclass(frozen=True)
class Setting:
    """What takes its turn.

    Attributes:
        name: for the table.
        exact: whether it is `ExactAccelerator`, or else Accelerate's own class.
        virtual: the number of virtual processes, 0 for none.
        pieces: of a batch on all processes together, which Accelerate's class accumulates.
    """

    name: str
    exact: bool = True
    virtual: int = 0
    pieces: int = 0


SETTINGS = (
    Setting("stock", exact=False),
    Setting("exact, without V"),
    Setting("stock, in 4 pieces", exact=False, pieces=4),
    Setting("exact, V = 2", virtual=2),
    Setting("exact, V = 4", virtual=4),
    Setting("exact, V = 8", virtual=8),
)


class ResNetTraining:
    """The loop of Accelerate's documentation on a ResNet-18.

    Args:
        setting: which class it runs on.
        pictures: (N, 3, 32, 32) with labels, on the device.
        cpu: stay on the CPU even if there is a GPU.
    """

    def __init__(self, setting: Setting, pictures: TensorDataset, *, cpu: bool) -> None:
        self.accelerator: Accelerator
        if setting.exact:
            self.accelerator = ExactAccelerator(cpu=cpu, virtual_processes=setting.virtual)
            batch_size = BATCH
        else:
            self.accelerator = Accelerator(cpu=cpu)
            pieces = max(1, setting.pieces // self.accelerator.num_processes)
            self.accelerator.gradient_accumulation_steps = pieces
            batch_size = BATCH // (pieces * self.accelerator.num_processes)
        set_seed(0)
        network = resnet18(num_classes=10)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        loader = DataLoader(pictures, batch_size=batch_size, shuffle=True)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            network,
            optimizer,
            loader,
        )
        self.model.train()

    def make_updates(self, count: int) -> None:
        """Make so many updates, over as many epochs as that takes."""
        made = 0
        while made < count:
            for images, labels in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = F.cross_entropy(self.model(images), labels)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    made += 1
                if made == count:
                    break

    def speed(self, updates: int) -> float:
        """Samples a second over so many updates."""
        device = self.accelerator.device
        if dist.is_initialized():
            dist.barrier()
        wait_for(device)
        begin = time.perf_counter()
        self.make_updates(updates)
        wait_for(device)
        seconds = time.perf_counter() - begin
        return updates * BATCH / seconds


def random_pictures(count: int, device: torch.device) -> TensorDataset:
    """Pictures of noise with labels, the same on all processes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return TensorDataset(images.to(device), labels.to(device))


def measure_here(rounds: int, updates: int, *, cpu: bool) -> dict[str, list[float]]:
    """The samples/s of each setting, by round, all in these processes: for GPUs, where starts are dear."""
    device = launch.start(cpu, "no").device
    pictures = random_pictures(8 * BATCH, device)
    trainings = {}
    for setting in SETTINGS:
        training = ResNetTraining(setting, pictures, cpu=cpu)
        training.make_updates(1)  # to be warm
        trainings[setting.name] = training
    speeds: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(rounds):
        for name, training in trainings.items():
            speeds[name].append(training.speed(updates))
    return speeds


def worker(args: argparse.Namespace) -> None:
    """Be one process of a setting's turn; the first one writes the samples/s."""
    device = launch.start(args.cpu, "no").device
    pictures = random_pictures(8 * BATCH, device)
    training = ResNetTraining(SETTINGS[args.setting], pictures, cpu=args.cpu)
    training.make_updates(1)  # to be warm
    speed = training.speed(args.updates)
    if launch.is_first():
        args.worker.write_text(json.dumps(speed))


def measure(processes: int, setting: int, args: argparse.Namespace) -> float:
    """The samples/s of a setting on so many processes, on CPUs with a thread each."""
    with tempfile.NamedTemporaryFile() as file:
        command = [*torchrun(processes), __file__, "--worker", file.name]
        command += ["--setting", str(setting), "--updates", str(args.updates)]
        command.append("--cpu" if args.cpu else "--gpu")
        subprocess.run(command, check=True, env=one_thread(), stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def measure_all(processes: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """The samples/s of every setting on so many processes, by round."""
    speeds: dict[str, list[float]] = {setting.name: [] for setting in SETTINGS}
    for _ in range(args.rounds):
        for number, setting in enumerate(SETTINGS):
            speeds[setting.name].append(measure(processes, number, args))
    return speeds


def rows_of(processes: int, speeds: dict[str, list[float]]) -> list[list[str]]:
    """The rows of the table for so many processes."""
    rows = []
    for setting in SETTINGS:
        own = speeds[setting.name]
        middle = f"{statistics.median(own):,.1f}"
        spread = f"{min(own):,.1f} to {max(own):,.1f}"
        ratio = median_ratio(own, speeds["stock"])
        rows.append(
            [
                setting.name,
                str(processes),
                middle,
                spread,
                f"{ratio:.2f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=10, help="in a measurement")
    parser.add_argument(
        "--gpu",
        dest="cpu",
        action="store_false",
        help="use GPUs if there are any",
    )
    parser.add_argument("--cpu", action="store_true", default=True, help="the default")
    parser.add_argument("--output", type=Path, default=RESULTS / "resnet.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--setting", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        launch.run(lambda: worker(args), "resnet.py")
    result: dict[str, Any] = origin_of_result("torchvision")
    say_origin(result)
    found = {}
    rows = []
    for processes in args.processes:
        found[processes] = measure_all(processes, args)
        rows += rows_of(processes, found[processes])
    columns = [
        "setting",
        "processes",
        "samples/s",
        "range",
        "ratio to stock",
    ]
    print_table(columns, rows)
    result |= {
        "rounds": args.rounds,
        "updates": args.updates,
        "unit": "samples/s by round, by number of processes and setting",
        "speeds": found,
    }
    write_result(args.output, result)


if __name__ == "__main__":
    main()
