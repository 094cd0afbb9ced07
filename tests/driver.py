"""Trains several times in the processes it finds itself in, watched, and with a fault planted where asked.

    torchrun --nproc-per-node W tests/driver.py '{"runs": [[flags of train.py], ...], "record": DIR, "fault": NAME}'

`record`: folder for what each process saw: batches-<rank>.pt (the sample numbers of every update, in order) and
left-<rank>.json (whether the process group was gone at the end).
`fault`: one of the traps of this stack, let back in; see `FAULTS`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from mnist_dist import data, distributed, evaluation, schedules, training

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
original_step = training.train_step


def loader_sharded_twice() -> None:
    """Field note 1: Accelerate deals out again what the DistributedSampler has dealt out."""
    iterate, count = data.GlobalBatchSampler.__iter__, data.GlobalBatchSampler.__len__

    def every_wth(self):
        return (b for n, b in enumerate(iterate(self)) if n % WORLD == RANK) if self.sampler.shuffle else iterate(self)

    data.GlobalBatchSampler.__iter__ = every_wth
    data.GlobalBatchSampler.__len__ = lambda self: count(self) // (WORLD if self.sampler.shuffle else 1)


def order_depends_on_processes() -> None:
    """Field note 3: each process cuts batches from a stretch of its own, so other samples meet in a batch."""
    data.ExactDistributedSampler.indices = lambda self: torch.randperm(
        self.size, generator=data.seeded(self.seed, data.ORDER, self.epoch)
    ).tensor_split(WORLD)[RANK][: len(self)]


def schedule_stepped_by_every_process() -> None:
    """Field note 4: the schedule moves W steps an update."""
    original = schedules.learning_rate
    training.learning_rate = lambda step, total, **settings: original(min(step * WORLD, total - 1), total, **settings)


def processes_weighed_equally() -> None:
    """Field note 5: the mean over each process's share, averaged over the processes."""

    def step(accelerator, model, optimizer, batch, config):
        batch.size = len(batch.labels) * WORLD
        return original_step(accelerator, model, optimizer, batch, config)

    training.train_step = step


def padding_counted() -> None:
    """Field note 6: shares padded with repeated samples to equal length, and all of them counted."""
    original = data.ExactDistributedSampler.indices

    def padded(self):
        mine = original(self)
        return mine if self.shuffle else torch.cat([mine, mine[: -(-self.size // WORLD) - len(mine)]])

    data.ExactDistributedSampler.indices = padded
    cut = data.GlobalBatchSampler.__iter__

    def all_shares(self):
        shares = list(cut(self))
        dealt = sum(len(share.index) for share in shares)
        shares[-1].index = torch.cat([shares[-1].index, self.sampler.indices()[dealt:]])
        return iter(shares)

    data.GlobalBatchSampler.__iter__ = all_shares


FAULTS = {
    fault.__name__: fault
    for fault in (
        loader_sharded_twice,
        order_depends_on_processes,
        schedule_stepped_by_every_process,
        processes_weighed_equally,
        padding_counted,
    )
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec.get("fault"):
        FAULTS[spec["fault"]]()
    step, seen = training.train_step, []

    def watched(accelerator, model, optimizer, batch, config):
        seen.append(batch.index.tolist())
        return step(accelerator, model, optimizer, batch, config)

    training.train_step = watched
    try:
        distributed.run(lambda: [run(flags) for flags in spec["runs"]], "driver.py")
    finally:
        if spec.get("record"):
            torch.save(seen, Path(spec["record"]) / f"batches-{RANK}.pt")
            left = {"process_group_destroyed": not dist.is_initialized()}
            (Path(spec["record"]) / f"left-{RANK}.json").write_text(json.dumps(left))


def run(flags: list[str]) -> None:
    sys.argv = ["train.py", *flags]
    train.main()


if __name__ == "__main__":
    assert evaluation.BATCH == 1000  # the sizes in the tests are chosen around it
    main()
