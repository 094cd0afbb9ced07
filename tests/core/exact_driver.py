"""Trains with nothing but the core on several processes; see test_exact_accelerator.py.

    python tests/core/exact_driver.py FOLDER W

trains every case on W processes, plants the faults, asks for what must be refused, stops and resumes in FOLDER/run,
and writes what came out to FOLDER/results.pt.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from exact_accepted import ACCEPTED
from exact_asking import answer
from exact_cases import CASES, OF_THE_WHOLE_BATCH
from exact_data import accelerator
from exact_differences import PARTED
from exact_evaluations import evaluations
from exact_faults import IN_CASES, dropout_drawn_by_every_process_is_refused
from exact_refused_models import REFUSED_MODELS
from exact_refused_uses import REFUSED_USES
from exact_resumed import stop_and_resume
from exact_training import train
from exact_unusual import adversaries, shared_gradients, thawed
from forked import fork

from mnist_dist.core import ExactAccelerator


def with_ddp() -> dict[str, Any]:
    """The cases that `DistributedDataParallel` can train."""
    return {name: train(case(), ddp=True) for name, case in CASES.items()}


def same_bits_of_cases(shares: int) -> dict[str, Any]:
    """The cases with virtual processes."""
    return {
        name: train(case(), virtual_processes=shares)
        for name, case in CASES.items()
        if name not in OF_THE_WHOLE_BATCH
    }


def main(folder: Path) -> None:
    """Do all of it."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "cases": {name: train(case()) for name, case in CASES.items()},
        "ddp": with_ddp(),
        "virtual": same_bits_of_cases(7),
        "faults": {name: fault() for name, (_, fault) in IN_CASES.items()},
        "thawed": thawed(),
        "thawed, ddp": thawed(ddp=True),
        "shared gradients": shared_gradients(),
        "adversaries": adversaries(accelerator()),
        "adversaries, virtual": adversaries(accelerator(virtual_processes=dist.get_world_size())),
        "evaluations": evaluations()[2],
        "resumed": stop_and_resume(folder),
    }
    asked = {name: ask for name, (ask, _) in (REFUSED_MODELS | REFUSED_USES).items()}
    asked |= PARTED
    asked["a fault"] = dropout_drawn_by_every_process_is_refused
    results["refused"] = {name: gather_object([answer(ask)]) for name, ask in asked.items()}
    results["accepted"] = {name: gather_object([answer(ask)]) for name, ask in ACCEPTED.items()}
    if ExactAccelerator(cpu=True).is_main_process:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    fork(int(sys.argv[2]))
    main(Path(sys.argv[1]))
