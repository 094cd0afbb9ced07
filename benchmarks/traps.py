"""Five traps of this stack, each walked into on purpose, and what it costs (the sixth starts one process only).

    torchrun --nproc-per-node 2 benchmarks/traps.py

Counts of samples and rates do not depend on the machine; they are of the versions printed, under gloo on CPUs.
"""

import sys
import tempfile
from pathlib import Path

import accelerate
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist.run import launch
from mnist_dist.task import data, networks

TRAINING, TEST, BATCH, STOP = 60_000, 10_000, 64, 1407  # STOP: in the middle of the second epoch of 938 updates


def sharded_twice(accelerator: Accelerator) -> None:
    """A loader that a `DistributedSampler` has sharded, prepared (accelerate #3520, #4199)."""
    world, rank = accelerator.num_processes, accelerator.process_index
    numbers, tests = TensorDataset(torch.arange(TRAINING)), TensorDataset(torch.arange(TEST))
    loader = DataLoader(numbers, BATCH // world, sampler=DistributedSampler(numbers, world, rank))
    seen = [batch for (batch,) in accelerator.prepare(loader)]
    distinct = len(accelerator.gather(torch.cat(seen)).unique())
    loader = DataLoader(tests, BATCH, sampler=DistributedSampler(tests, world, rank, shuffle=False))
    counted = sum(len(accelerator.gather_for_metrics(batch)) for (batch,) in accelerator.prepare(loader))
    accelerator.print(f"sharded twice: {len(seen)} updates, {distinct:,} of {TRAINING:,} samples an epoch")
    accelerator.print(f"sharded twice: an evaluation counts {counted:,} of {TEST:,}")


def schedule_stepped_by_every_process(accelerator: Accelerator) -> None:
    """A schedule of 100 updates, prepared (accelerate #2142, #2318)."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: max(0, 1 - update / 100))
    optimizer, schedule = accelerator.prepare(optimizer, schedule)
    updates = 0
    while schedule.get_last_lr()[0]:
        optimizer.step()
        schedule.step()
        updates += 1
    accelerator.print(f"schedule: a decay over 100 updates is at 0 after {updates}")


def resumed_in_mid_epoch(accelerator: Accelerator) -> None:
    """`load_state` and `skip_first_batches`, as complete_nlp_example.py has them (accelerate #2823, #4195)."""
    (folder,) = broadcast_object_list([tempfile.mkdtemp()])

    def second_epoch(resume: bool) -> torch.Tensor:
        set_seed(42)
        numbers = DataLoader(TensorDataset(torch.arange(TRAINING)), BATCH // accelerator.num_processes, shuffle=True)
        loader, _ = accelerator.prepare(numbers, nn.Linear(1, 1))
        if resume:
            accelerator.load_state(folder)
            loader = accelerator.skip_first_batches(loader, STOP - len(loader))
        found, updates = [], 0
        for _ in range(1 if resume else 2):
            found = []
            for (batch,) in loader:
                found.append(accelerator.gather(batch))
                updates += 1
                if updates == STOP and not resume:
                    accelerator.save_state(folder)
        accelerator.free_memory()
        return torch.cat(found)

    done = second_epoch(resume=False)[: (STOP - TRAINING // BATCH - 1) * BATCH]
    left = second_epoch(resume=True)
    again = int(torch.isin(left, done).sum())
    accelerator.print(f"resumed: of {len(left):,} samples left in the epoch {again:,} had been trained already")


def processes_weighed_equally(accelerator: Accelerator) -> None:
    """DDP with the mean over each process's share, the first one's three times as large (pytorch #67253)."""
    train = data.load("mnist-5k", Path("data"), dtype=torch.float64).train
    world, rank, errors = accelerator.num_processes, accelerator.process_index, []
    sizes = [BATCH - (world - 1) * (BATCH // (2 * world))] + [BATCH // (2 * world)] * (world - 1)
    set_seed(0)
    bare = networks.build("mlp").double()
    parallel = DistributedDataParallel(bare)

    def gradient(model: nn.Module, rows: slice | torch.Tensor) -> torch.Tensor:
        bare.zero_grad()
        F.cross_entropy(model(train.images[rows]), train.labels[rows]).backward()
        return torch.cat([parameter.grad.flatten() for parameter in bare.parameters()])

    for batch in torch.randperm(len(train))[: 20 * BATCH].split(BATCH):
        right, found = gradient(bare, batch), gradient(parallel, batch.split(sizes)[rank])
        errors.append((found - right).norm() / right.norm())
    off = torch.stack(errors).median()
    accelerator.print(f"equal weights: shares of {sizes} put the gradient off by {off:.1%} (median of 20 batches)")


def one_gradient_changed_twice(accelerator: Accelerator) -> None:
    """Two parameters that are added together: autograd may give both the same memory as their gradient."""
    place, kind = nn.Parameter(torch.zeros(50)), nn.Parameter(torch.zeros(50))
    (torch.ones(1, 50) * (place[None] + kind[None])).sum().backward()
    norm = accelerator.clip_grad_norm_([place, kind], 1.0)
    clipped = torch.cat([place.grad, kind.grad]).norm()
    accelerator.print(f"one gradient: a norm of {norm:g} clipped to 1 is {clipped:.1f}")


def main() -> None:
    accelerator = launch.start(cpu=True)
    accelerator.print(
        f"accelerate {accelerate.__version__}, torch {torch.__version__}, on {launch.describe(accelerator)}"
    )
    sharded_twice(accelerator)
    schedule_stepped_by_every_process(accelerator)
    resumed_in_mid_epoch(accelerator)
    processes_weighed_equally(accelerator)
    one_gradient_changed_twice(accelerator)


if __name__ == "__main__":
    launch.run(main, "traps.py")
