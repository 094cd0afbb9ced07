"""What several of these programs need: a training to be timed, processes, and results."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_dist.core import ExactAccelerator, MeanLoss
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.provenance import cpu_name
from mnist_dist.task import networks
from mnist_dist.task.objective import make_average, make_loss, make_optimizer, make_scheduler

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCHEDULED = 1_000_000  # updates for which a schedule is made: more than any of these programs makes


class Training:
    """A training of a digit classifier as train.py makes it, of which updates are made on demand.

    Several of them may take turns in one process: each loop over a loader is left before another
    begins.

    Args:
        accelerator: the processes; not shared with another training.
        config: the network, the batch size, and all other settings.
        samples: images and labels, on the accelerator's device.
    """

    def __init__(
        self,
        accelerator: ExactAccelerator,
        config: TrainConfig,
        samples: TensorDataset,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        dtype = getattr(torch, config.dtype)
        torch.manual_seed(0)  # the same first weights on all processes
        network = networks.build(config.model, config.hidden, config.channels)
        self.network = network.to(accelerator.device, dtype)
        optimizer = make_optimizer(self.network, config)
        if config.ema:
            make_average(self.network, optimizer, config.ema)
        self.loss_function = make_loss(self.network, config)
        loader = DataLoader(samples, batch_size=config.batch_size, shuffle=True)
        scheduler = make_scheduler(optimizer, config, updates=SCHEDULED)
        self.model, self.optimizer, self.loader, self.scheduler = accelerator.prepare(
            self.network,
            optimizer,
            loader,
            scheduler,
        )
        self.train_loss = MeanLoss(accelerator)

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """Do with what the loader has just given what train.py's loop does."""
        accelerator = self.accelerator
        loss = self.loss_function(self.model, images, labels, accelerator.micro_batch.rand)
        self.train_loss.update(loss)
        accelerator.backward(loss)
        if self.config.clip_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def make_updates(self, count: int) -> None:
        """Make so many updates, from the beginning of an epoch, over as many as that takes."""
        wanted = self.accelerator.updates + count
        while self.accelerator.updates < wanted:
            for images, labels in self.loader:
                self.learn(images, labels)
                if self.accelerator.updates == wanted:
                    break
        self.train_loss.reset()

    def seconds_of(self, updates: int) -> float:
        """Make so many updates, and return what they took, the device's work included."""
        wait_for(self.accelerator.device)
        begin = time.perf_counter()
        self.make_updates(updates)
        wait_for(self.accelerator.device)
        return time.perf_counter() - begin

    def weights(self) -> Tensor:
        """All weights in one vector, on the CPU."""
        parts = [parameter.detach().flatten() for parameter in self.network.parameters()]
        return torch.cat(parts).cpu()


def random_digits(
    count: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TensorDataset:
    """Images of noise with labels, the same on all processes: for times and bits good enough."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return TensorDataset(images.to(device, dtype), labels.to(device))


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def torchrun(processes: int) -> list[str]:
    """The words that start a script on so many processes; one process needs no launcher."""
    if processes == 1:
        return [sys.executable]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
    ]
    return [*launcher, f"--nproc-per-node={processes}"]


def one_thread() -> dict[str, str]:
    """The environment for processes that have a thread each."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def cores_given() -> int:
    """The cores that this process may use: `taskset` can make them fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name, where Linux tells it, and the number of its cores."""
    name = cpu_name() or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def origin_of_result(*packages: str) -> dict[str, Any]:
    """The date, the hardware, and the versions of Python and of packages."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "accelerate", *packages):
        versions[name] = version(name)
    return {
        "date": date.today().isoformat(),
        "hardware": processor(),
        "versions": versions,
    }


def say_origin(origin: dict[str, Any]) -> None:
    """Print where a result comes from, in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    print(
        f"{origin['date']}, {origin['hardware']}, {versions}\n",
        flush=True,
    )


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios within rounds: a machine's speed changes from minute to minute."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return statistics.median(ratios)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown; the first column is of words, the others are of figures."""
    print(f"| {' | '.join(columns)} |")
    print("|---|" + "---:|" * (len(columns) - 1))
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
