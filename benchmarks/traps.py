"""Six traps of this stack, each walked into on purpose, and what it costs.

    torchrun --nproc-per-node 2 benchmarks/traps.py

All of them are Accelerate's own class, or plain PyTorch.
Counts of samples and rates do not depend on the machine; they are of the versions printed, under
gloo on CPUs.
"""

import tempfile
from pathlib import Path
from typing import Any

import common  # noqa: F401  # finds the package beside this folder
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    TensorDataset,
)

from mnist_dist.run import launch
from mnist_dist.run.versions import versions
from mnist_dist.task import data, networks

TRAINING = 60_000
TEST = 10_000
BATCH = 64
STOP = 1407  # in the middle of the second epoch of 938 updates


def sharded_twice(accelerator: Accelerator) -> None:
    """Prepare a loader that a `DistributedSampler` has sharded (accelerate #3520, #4199)."""
    world = accelerator.num_processes
    rank = accelerator.process_index
    numbers = TensorDataset(torch.arange(TRAINING))
    sampler: DistributedSampler[Any] = DistributedSampler(numbers, world, rank)
    loader = accelerator.prepare(DataLoader(numbers, BATCH // world, sampler=sampler))
    seen = [batch for (batch,) in loader]
    distinct = len(accelerator.gather(torch.cat(seen)).unique())
    tests = TensorDataset(torch.arange(TEST))
    sampler = DistributedSampler(tests, world, rank, shuffle=False)
    loader = accelerator.prepare(DataLoader(tests, BATCH, sampler=sampler))
    counted = 0
    for (batch,) in loader:
        counted += len(accelerator.gather_for_metrics(batch))
    found = f"{len(seen)} updates, {distinct:,} of {TRAINING:,} samples"
    accelerator.print(f"sharded twice: {found} an epoch")
    accelerator.print(f"sharded twice: an evaluation counts {counted:,} of {TEST:,}")


def schedule_stepped_by_every_process(
    accelerator: Accelerator,
) -> None:
    """Prepare a schedule of 100 updates (accelerate #2142, #2318)."""
    parameter = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda update: max(0, 1 - update / 100),
    )
    optimizer, schedule = accelerator.prepare(optimizer, schedule)
    updates = 0
    while schedule.get_last_lr()[0]:
        optimizer.step()
        schedule.step()
        updates += 1
    accelerator.print(f"schedule: a decay over 100 updates is at 0 after {updates}")


def second_epoch(accelerator: Accelerator, folder: str, *, resume: bool) -> torch.Tensor:
    """Give the numbers of the second epoch's samples, in order; from the stop on if it is resumed.

    Args:
        accelerator: the processes.
        folder: of the checkpoint.
        resume: go on from it, or else write it.
    """
    set_seed(42)
    numbers = TensorDataset(torch.arange(TRAINING))
    loader = DataLoader(numbers, BATCH // accelerator.num_processes, shuffle=True)
    loader, _ = accelerator.prepare(loader, nn.Linear(1, 1))
    epochs = 2
    if resume:
        accelerator.load_state(folder)
        loader = accelerator.skip_first_batches(loader, STOP - len(loader))
        epochs = 1
    updates = 0
    for _ in range(epochs):
        found = []
        for (batch,) in loader:
            found.append(accelerator.gather(batch))
            updates += 1
            if updates == STOP and not resume:
                accelerator.save_state(folder)
    accelerator.free_memory()
    return torch.cat(found)


def resumed_in_mid_epoch(accelerator: Accelerator) -> None:
    """Go on as complete_nlp_example.py does, by `skip_first_batches` (accelerate #2823, #4195)."""
    (folder,) = broadcast_object_list([tempfile.mkdtemp()])
    whole = second_epoch(accelerator, folder, resume=False)
    done = whole[: (STOP - TRAINING // BATCH - 1) * BATCH]
    left = second_epoch(accelerator, folder, resume=True)
    again = int(torch.isin(left, done).sum())
    of_them = f"of {len(left):,} samples left in the epoch {again:,}"
    accelerator.print(f"resumed: {of_them} had been trained already")


def processes_weighed_equally(accelerator: Accelerator) -> None:
    """Average over unequal shares by DDP, the first three times as large (pytorch #67253)."""
    train = data.load("mnist-5k", Path("data"), dtype=torch.float64).train
    world = accelerator.num_processes
    small = BATCH // (2 * world)
    sizes = [BATCH - (world - 1) * small] + [small] * (world - 1)
    set_seed(0)
    bare = networks.build("mlp").double()
    parallel = DistributedDataParallel(bare)

    def gradient(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        bare.zero_grad()
        loss = F.cross_entropy(model(train.images[rows]), train.labels[rows])
        loss.backward()
        gradients = [each.grad for each in bare.parameters() if each.grad is not None]
        return torch.cat([each.flatten() for each in gradients])

    errors = []
    for batch in torch.randperm(len(train))[: 20 * BATCH].split(BATCH):
        right = gradient(bare, batch)
        own = batch.split(sizes)[accelerator.process_index]
        found = gradient(parallel, own)
        errors.append((found - right).norm() / right.norm())
    off = torch.stack(errors).median()
    outcome = f"shares of {sizes} put the gradient off by {off:.1%}"
    accelerator.print(f"equal weights: {outcome} (median of 20 batches)")


def one_gradient_changed_twice(accelerator: Accelerator) -> None:
    """Add two parameters together: autograd may give both the same memory as their gradient."""
    place = nn.Parameter(torch.zeros(50))
    kind = nn.Parameter(torch.zeros(50))
    both = place[None] + kind[None]
    (torch.ones(1, 50) * both).sum().backward()
    norm = accelerator.clip_grad_norm_([place, kind], 1.0)
    assert place.grad is not None and kind.grad is not None
    clipped = torch.cat([place.grad, kind.grad]).norm()
    accelerator.print(f"one gradient: a norm of {norm:g} clipped to 1 is {clipped:.1f}")


def main() -> None:
    accelerator = Accelerator(cpu=True)
    found = versions()
    packages = f"accelerate {found['accelerate']}, torch {found['torch']}"
    accelerator.print(f"{packages}, on {launch.describe(accelerator)}")
    sharded_twice(accelerator)
    schedule_stepped_by_every_process(accelerator)
    resumed_in_mid_epoch(accelerator)
    processes_weighed_equally(accelerator)
    one_gradient_changed_twice(accelerator)


if __name__ == "__main__":
    launch.run(main, "traps.py")
