"""Scripts of the kinds that Accelerate's examples are, on several processes; see test_scripts.py.

    python tests/core/scripts_driver.py FOLDER scripts|layers W ...

runs each script, or a training for each layer of layer_cases.py, on W processes, without and with virtual processes,
for each W, and writes what it ends with, or what it is refused with, to FOLDER/W.pt.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import each_in_turn
from layer_cases import train_all
from script_cases import SCRIPTS
from script_refusals import QUESTIONABLE
from script_surprises import QUESTIONABLE_SURPRISES, SURPRISES
from small_training import Script

from mnist_dist.core import ExactAccelerator, UserError

OPTIONS: dict[str, dict[str, Any]] = {"alone": {}, "virtual": {"virtual_processes": 4}}


def answer(script: Script, options: dict[str, Any], folder: Path) -> str:
    """What it is refused with; empty if it is not."""
    try:
        script(options, folder)
    except UserError as error:
        return str(error)
    return ""


def run_all(what: str, folder: Path, processes: int) -> None:
    """Run all scripts, or all layers, on the processes that there are."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for kind, options in OPTIONS.items():
        if what == "layers":
            results |= {f"{kind}: {name}": found for name, found in train_all(options).items()}
            continue
        for name, script in (SCRIPTS | SURPRISES).items():
            results[f"{kind}: {name}"] = script(options, folder)
        for name, script in (QUESTIONABLE | QUESTIONABLE_SURPRISES).items():
            results[f"{kind}: {name}"] = answer(script, options, folder)
    if ExactAccelerator(cpu=True).is_main_process:
        torch.save(results, folder / f"{processes}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def main(folder: Path, what: str, counts: list[int]) -> None:
    """One set of processes after the other, so that everything is imported once."""
    gc.freeze()  # `free_memory` collects garbage, and need not look through all that is imported
    stages = [(processes, processes) for processes in counts]
    each_in_turn(stages, lambda processes: run_all(what, folder, processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]])
