"""Trains several times in the processes it finds itself in, watched, and with faults planted where asked.

    torchrun --nproc-per-node W tests/driver.py '{"runs": [{"flags": [flags of train.py], "fault": NAME}, ...]}'

A run with `verify`, the name of a file, is no training: `python -m mnist_dist verify` with these flags, its answer
written to that file. Beside `runs`, the document may hold
    record: a folder for what each process saw: batches-<rank>.pt (the sample numbers of every update, in order) and
        left-<rank>.json (how it left);
    timeouts: values for the constants of `mnist_dist.tracking`, in seconds.
`fault` is one of the traps of this stack, let back in for that run; see `FAULTS`.
"""

import contextlib
import errno
import itertools
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from mnist_dist import checkpoint, data, distributed, models, runs, schedules, tracking, training, verify
from mnist_dist.config import VerifyConfig, parse

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def loader_sharded_twice():
    """Field note 1: Accelerate deals out again what the DistributedSampler has dealt out."""
    iterate, count = data.GlobalBatchSampler.__iter__, data.GlobalBatchSampler.__len__

    def every_wth(self):
        return (b for n, b in enumerate(iterate(self)) if n % WORLD == RANK) if self.sampler.shuffle else iterate(self)

    def fewer(self):
        return count(self) // (WORLD if self.sampler.shuffle else 1)

    return patch.multiple(data.GlobalBatchSampler, __iter__=every_wth, __len__=fewer)


def order_depends_on_processes():
    """Field note 3: each process cuts batches from a stretch of its own, so other samples meet in a batch."""
    indices = data.ExactDistributedSampler.indices

    def own_stretch(self):
        if not self.shuffle:
            return indices(self)
        order = torch.randperm(self.size, generator=data.seeded(self.seed, data.ORDER, self.epoch))
        return order.tensor_split(WORLD)[RANK]

    return patch.object(data.ExactDistributedSampler, "indices", own_stretch)


def schedule_stepped_by_every_process():
    """Field note 4: the schedule moves W steps an update."""
    rate = schedules.learning_rate
    return patch.object(
        training, "learning_rate", lambda step, total, **rest: rate(min(step * WORLD, total - 1), total, **rest)
    )


def processes_weighed_equally():
    """Field note 5: the mean over each process's share, averaged over the processes."""
    train_step = training.train_step

    def step(accelerator, model, optimizer, batch, config):
        batch.size = len(batch.labels) * WORLD
        return train_step(accelerator, model, optimizer, batch, config)

    return patch.object(training, "train_step", step)


def dropout_drawn_by_every_process():
    """What `torch.nn.Dropout` does: each process draws for its own samples, from a generator seeded alike."""
    dropout = training.dropout

    def own(shapes, size, positions, **rest):
        count = len(range(size)[positions])
        return dropout(shapes, count, slice(count), **rest)

    return patch.object(training, "dropout", own)


def padding_counted():
    """Field note 6: shares padded with repeated samples to equal length, and all of them counted."""
    iterate = data.GlobalBatchSampler.__iter__

    def padded(self):
        shares = list(iterate(self))
        if not self.sampler.shuffle and len(self.sampler) < -(-self.sampler.size // WORLD):
            shares[-1].index = torch.cat([shares[-1].index, shares[0].index[:1]])
        return iter(shares)

    return patch.object(data.GlobalBatchSampler, "__iter__", padded)


def overflow(model):
    """Let the gradient of this update, and of no other, be infinite."""
    parameter = next(model.parameters())
    handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * torch.inf)[1])


def processes_with_different_seeds():
    """Each process shuffles with a seed of its own."""
    begin = data.ExactDistributedSampler.__init__

    def seeded_by_rank(self, *arguments, seed=0, **options):
        begin(self, *arguments, seed=seed + RANK, **options)

    return patch.object(data.ExactDistributedSampler, "__init__", seeded_by_rank)


def slow_process():
    """The last process takes longer for every batch, as beside another program or on a hot GPU."""
    forward = models.MNISTNet.forward

    def slowly(self, *inputs):
        if RANK == WORLD - 1:
            time.sleep(0.01)
        return forward(self, *inputs)

    return patch.object(models.MNISTNet, "forward", slowly)


def checkpoint_reads_other_weights():
    """A file system gives back something else than was written, under the right digest."""
    newest = checkpoint.newest

    def other(run):
        payload, warnings = newest(run)
        payload["model"]["fc1.bias"] += 1
        return payload, warnings

    return patch.object(checkpoint, "newest", other)


def mixed_precision_breaks():
    """Losses are not finite where the arithmetic is not that of float32."""
    cross_entropy = F.cross_entropy

    @contextlib.contextmanager
    def autocast(*_):
        with patch.object(F, "cross_entropy", lambda *arguments: torch.nan * cross_entropy(*arguments)):
            yield

    return patch.object(torch, "autocast", autocast)


def fp16_scaler():
    """Not a fault: the gradient scaler of fp16, which Accelerate gives to GPUs only, with an overflow now and then."""
    start, train_step = distributed.start, training.train_step

    def scaled(**options):
        accelerator = start(**options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=7)
        return accelerator

    def step(accelerator, model, optimizer, batch, config):
        if batch.index[0] % 20 == 0:
            overflow(model)
        return train_step(accelerator, model, optimizer, batch, config)

    both = contextlib.ExitStack()
    both.enter_context(patch.object(distributed, "start", scaled))
    both.enter_context(patch.object(training, "train_step", step))
    return both


def gradient_breaks_at_update_30():
    """The loss stays finite and the gradient does not, in the last update of an epoch of 30."""
    train_step, updates = training.train_step, itertools.count(1)

    def step(accelerator, model, optimizer, batch, config):
        if next(updates) == 30 and RANK == WORLD - 1:
            overflow(model)
        return train_step(accelerator, model, optimizer, batch, config)

    return patch.object(training, "train_step", step)


def last_process_raises(error):
    """At update 30, on one process alone."""
    train_step, updates = training.train_step, itertools.count(1)

    def step(accelerator, model, optimizer, batch, config):
        if next(updates) == 30 and RANK == WORLD - 1:
            raise error
        return train_step(accelerator, model, optimizer, batch, config)

    return patch.object(training, "train_step", step)


def last_process_raises_at_update_30():
    """An exception that nobody foresaw."""
    return last_process_raises(MemoryError("planted"))


def last_process_cannot_read_at_update_30():
    """A disk that fails."""
    return last_process_raises(OSError(errno.EIO, os.strerror(errno.EIO), "/dev/planted"))


def other_data():
    """Not what the data files held before."""
    read = data.read_mnist_5k
    return patch.object(data, "read_mnist_5k", lambda: (*read()[:2], "other"))


def stuck_in_an_update():
    """An update that does not end."""

    def step(*_):
        print("stuck", flush=True)
        time.sleep(600)

    return patch.object(training, "train_step", step)


def disk_full_at_metrics():
    """Another program fills the disk of the run's folder just before a line of metrics.jsonl is written."""
    append = runs.append_json

    def filled(path, value):
        with contextlib.suppress(OSError), (path.parent / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        append(path, value)

    return patch.object(runs, "append_json", filled)


FAULTS = {
    fault.__name__: fault
    for fault in (
        loader_sharded_twice,
        order_depends_on_processes,
        schedule_stepped_by_every_process,
        processes_weighed_equally,
        dropout_drawn_by_every_process,
        padding_counted,
        processes_with_different_seeds,
        slow_process,
        checkpoint_reads_other_weights,
        mixed_precision_breaks,
        fp16_scaler,
        gradient_breaks_at_update_30,
        last_process_raises_at_update_30,
        last_process_cannot_read_at_update_30,
        other_data,
        stuck_in_an_update,
        disk_full_at_metrics,
    )
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    for name, seconds in spec.get("timeouts", {}).items():
        setattr(tracking, name, seconds)
    train_step, seen = training.train_step, []

    def watched(accelerator, model, optimizer, batch, config):
        seen.append(batch.index.tolist())
        return train_step(accelerator, model, optimizer, batch, config)

    training.train_step = watched

    def train_all() -> None:
        try:
            for run in spec["runs"]:
                with FAULTS[run["fault"]]() if run.get("fault") else nullcontext():
                    if "verify" in run:
                        answer = verify.answer(parse(VerifyConfig, run["flags"]))
                        if RANK == 0:
                            runs.write_json(Path(run["verify"]), answer.as_json())
                    else:
                        sys.argv = ["train.py", *run["flags"]]
                        train.main()
        finally:
            if spec.get("record"):
                torch.save(seen, Path(spec["record"]) / f"batches-{RANK}.pt")

    leave = os._exit

    def recorded(status: int) -> None:
        left = {"process_group_destroyed": not dist.is_initialized(), "status": status}
        (Path(spec["record"]) / f"left-{RANK}.json").write_text(json.dumps(left))
        leave(status)

    with patch.object(os, "_exit", recorded) if spec.get("record") else nullcontext():
        distributed.run(train_all, "train.py")


if __name__ == "__main__":
    main()
