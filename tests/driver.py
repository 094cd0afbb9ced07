"""Trains several times in the processes it finds itself in, and with faults planted where asked.

    torchrun --nproc-per-node W tests/driver.py '{"runs": [{"flags": [...], "fault": NAME}, ...]}'

The flags are those of train.py. A run with `verify`, the name of a file, is not a training:
`python -m mnist_dist verify` with these flags, its answer written to that file. Beside `runs`, the
document may hold
    record: a folder for what each process saw: batches-<rank>.pt (the sample numbers of every
        update, in order) and left-<rank>.json (how it left);
    timeouts: values for the constants of `mnist_dist.run.wandb_run`, in seconds;
    updates: the most in an epoch of a training that `verify` is given;
    forked: so many processes to go on as, instead of those that a launcher has started.
`fault` is one of the traps of this stack, let back in for that run; see `faults`.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # as every optimizer does; once, before processes are forked
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import FAULTS
from faults.registry import rank
from forked import fork

import train
from mnist_dist import plots, report
from mnist_dist.core import ExactAccelerator, register_hook
from mnist_dist.run import launch, wandb_run
from mnist_dist.run.command_line import parse
from mnist_dist.run.files import write_json
from mnist_dist.tools.verify import command as verify
from mnist_dist.tools.verify import trainings as verify_trainings

TRAINING = 0  # the number of the loader of the training data


class Record:
    """What this process sees and how it leaves, in files of a folder.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.updates: list[list[int]] = []
        self.leave = os._exit
        register_hook("micro_batch", self.note)

    def note(self, accelerator: ExactAccelerator) -> None:
        """Note the numbers of the samples of a micro-batch."""
        micro_batch = accelerator.micro_batch
        if micro_batch.loader != TRAINING:
            return
        if micro_batch.opens_batch:
            self.updates.append([])
        self.updates[-1] += micro_batch.index.tolist()

    def write_batches(self) -> None:
        """Write what was noted."""
        torch.save(self.updates, self.folder / f"batches-{rank()}.pt")

    def exit(self, status: int) -> None:
        """In place of `os._exit`."""
        left = {"process_group_destroyed": not dist.is_initialized(), "status": status}
        (self.folder / f"left-{rank()}.json").write_text(json.dumps(left))
        self.leave(status)


def run_all(runs: list[dict[str, Any]]) -> None:
    """Train, or verify, once for each document."""
    for run in runs:
        name = run.get("fault")
        with FAULTS[name]() if name else nullcontext():
            if "verify" in run:
                answer = verify.answer(parse(verify.Config, run["flags"]))
                if rank() == 0:
                    write_json(Path(run["verify"]), answer.as_json())
            else:
                sys.argv = ["train.py", *run["flags"]]
                train.main()


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec.get("forked"):
        fork(spec["forked"])
    for name, seconds in spec.get("timeouts", {}).items():
        setattr(wandb_run, name, seconds)
    verify_trainings.MOST = spec.get("updates", verify_trainings.MOST)
    record = Record(Path(spec["record"])) if spec.get("record") else None

    def work() -> None:
        try:
            run_all(spec["runs"])
        finally:
            if record:
                record.write_batches()

    # Pictures take six times as long as the small trainings here.
    undrawn = patch.multiple(plots, learning_curves=lambda *_: None, evaluation=lambda *_: None)
    unwritten = patch.object(report, "at_end", lambda *_: None)
    recorded = patch.object(os, "_exit", record.exit) if record else nullcontext()
    with undrawn, unwritten, recorded:
        launch.run(work, "train.py")


if __name__ == "__main__":
    main()
