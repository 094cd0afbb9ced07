"""Runs the examples several times in one set of real processes, each perhaps with a planted fault.

    torchrun --nproc-per-node W tests/examples/example_driver.py '[{"example": "pictures", "flags": [...]}, ...]'

The last of the flags is the run's folder. Each run may also have

    fault      the name of one of `FAULTS`
    stop       the update after which the last process gets SIGTERM
    refused    a file for what each process said instead of training
    unchecked  true: the example does not look at its own flags

The micro-batches that each process trained on go to seen.json: epoch, batch and the samples' numbers.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import gather_object

from mnist_dist.core import Checkpoints, ExactAccelerator, Stopped, UserError, register_hook
from mnist_dist.core import accelerator as accelerator_module
from mnist_dist.core import buffers as buffers_module
from mnist_dist.core import loader as loader_module
from mnist_dist.core.errors import explain
from mnist_dist.run import launch, locks

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))

TRAINING = 0  # the number of the loader that is prepared first


def mean_of_each_share():
    """The mean over each share, averaged over the shares, however many samples or characters they have."""
    backward = ExactAccelerator.backward

    def weighed_alike(self, loss, **_):
        backward(self, loss, terms=min(1, len(self.micro_batch)))

    return patch.object(ExactAccelerator, "backward", weighed_alike)


def padding_counted():
    """Shares of what is held out are padded to equal length, and all of them counted."""
    sampler = loader_module.MicroBatchSampler
    deal = sampler.divide

    def padded(self, *which, **more):
        found = deal(self, *which, **more)
        for micro_batch in found:
            longest = -(-micro_batch.size // micro_batch.shares)
            if self.number != TRAINING and len(micro_batch.index) < longest:
                padding = torch.zeros(longest - len(micro_batch.index), dtype=torch.long)
                micro_batch.index = torch.cat([micro_batch.index, padding])
                micro_batch.rows = len(micro_batch.index)
        return found

    return patch.object(sampler, "divide", padded)


def buffers_not_put_back():
    """Each share finds the running statistics as the share before it has left them."""
    return patch.object(buffers_module, "put", lambda *_: None)


def generators_not_seeded_for_a_share():
    """Dropout draws whatever comes next on each process."""
    return patch.object(accelerator_module, "seed_generators", lambda *_: None)


def transforms_seeded_by_rank():
    """What crops, mirrors and colours a picture depends on the process that reads it."""
    seed_generators = loader_module.seed_generators
    return patch.object(loader_module, "seed_generators", lambda seed: seed_generators(seed + RANK))


FAULTS = {
    fault.__name__: fault
    for fault in (
        mean_of_each_share,
        padding_counted,
        buffers_not_put_back,
        generators_not_seeded_for_a_share,
        transforms_seeded_by_rank,
    )
}


@contextmanager
def stopping_after(update: int | None) -> Iterator[None]:
    """Send SIGTERM to the last process after an update, and let the processes look after every one."""
    after_update = Checkpoints.after_update

    def stopped(self):
        if (
            self.accelerator.sync_gradients
            and self.accelerator.updates == update
            and RANK == WORLD - 1
        ):
            os.kill(os.getpid(), signal.SIGTERM)
        after_update(self)

    look_after_every_update = patch("mnist_dist.core.stopping.MOST_SECONDS", 0)
    with look_after_every_update, patch.object(Checkpoints, "after_update", stopped):
        yield


@contextmanager
def watching() -> Iterator[list[tuple[int, int, list[int]]]]:
    """Note the micro-batches that this process trains on: epoch, batch and the samples' numbers."""
    seen: list[tuple[int, int, list[int]]] = []

    def note(accelerator):
        micro_batch = accelerator.micro_batch
        if micro_batch.loader == TRAINING:
            seen.append(
                (
                    micro_batch.epoch,
                    micro_batch.batch,
                    [int(number) for number in micro_batch.index],
                )
            )

    handle = register_hook("micro_batch", note)
    try:
        yield seen
    finally:
        handle.remove()


def drive(run: dict[str, Any]) -> None:
    """One run, to its end, its stop or its refusal."""
    example = importlib.import_module(run["example"])
    sys.argv = [f"{run['example']}.py", *run["flags"]]
    said = None
    with ExitStack() as around:
        if "fault" in run:
            around.enter_context(FAULTS[run["fault"]]())
        if run.get("unchecked"):
            around.enter_context(patch.object(example.Config, "check", lambda _: None))
        # Which lasts as long as the process.
        around.enter_context(patch.object(locks, "lock", lambda _: None))
        around.enter_context(stopping_after(run.get("stop")))
        seen = around.enter_context(watching())
        try:
            example.main()
        except Stopped:
            if not run.get("stop"):
                raise
        except (UserError, OSError) as error:
            if "refused" not in run:
                raise
            said = explain(error)
    answers = gather_object([said if "refused" in run else seen])
    if RANK == 0:
        place = Path(run["refused"]) if "refused" in run else Path(run["flags"][-1]) / "seen.json"
        place.write_text(json.dumps(answers))


def main() -> None:
    for run in json.loads(sys.argv[1]):
        drive(run)


if __name__ == "__main__":
    launch.run(main, "example_driver.py")
