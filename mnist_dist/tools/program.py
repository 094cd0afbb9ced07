"""Any training program on one process and on several: is what it leaves the same? (docs/verify.md has the contract.)"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from mnist_dist.core import UserError

TOLERANCE = 1e-9  # between float64 results, whose rounding gives 1e-14 in hundreds of updates
TIMES = (
    "second",
    "time",
    "date",
    "duration",
    "throughput",
    "process",
    "world",
    "memory",
)  # in names of what may differ
LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "SLURM_",
    "PMI",
    "OMPI_",
    "MPI_",
)
Line = tuple[str, bool, str, str]  # name, whether it passed, what was found, what to do


def unlaunched() -> dict[str, str]:
    """This process's environment without what a launcher put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}


def compare(program: Path, flags: Sequence[str], processes: int, cpu: bool, deadline: float) -> list[Line]:
    """Run a program on one process and on so many of this machine, in float64, and compare what they leave.

    Args:
        flags: the program's own; `--output-dir FOLDER --dtype float64` is added.
        cpu: hide the GPUs.
        deadline: seconds that a run may take.

    Raises:
        UserError: this process was started as one of several.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--program starts the processes itself: call it as `python -m mnist_dist verify --program ...`")
    with tempfile.TemporaryDirectory(prefix="verify-") as place:
        folders = {world: Path(place) / f"on-{world}" for world in (1, processes)}
        lines: list[Line] = []
        for world, folder in folders.items():
            lines.append(run(program, flags, world, folder, cpu, deadline))
            if not lines[-1][1]:
                return lines
        one, several = (read_weights(folder) for folder in folders.values())
        mine, its = (read_figures(folder) for folder in folders.values())
    lines.append(compare_weights(one, several, processes))
    if mine or its:
        lines += compare_figures(mine, its, processes)
    return lines


def run(program: Path, flags: Sequence[str], world: int, folder: Path, cpu: bool, deadline: float) -> Line:
    """One run, and whether it came to its end."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    command = [sys.executable, *launch, str(program), *flags, "--output-dir", str(folder), "--dtype", "float64"]
    here = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])  # noqa: PTH109
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | unlaunched() | {"PYTHONPATH": here}
    if cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    name, advice = f"runs on {world}", f"start it yourself: {' '.join(command[1:])}"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        end_all(process)
        return name, False, f"not done after {deadline:.0f} s", "give it fewer epochs, or more seconds with --deadline"
    except BaseException:
        end_all(process)
        raise
    if process.returncode:
        errors = [line.strip() for line in said.splitlines() if "rror" in line] or said.strip().splitlines()[-1:]
        return name, False, f"it ends with status {process.returncode}: {errors[0] if errors else 'no word'}", advice
    return name, True, f"{world} process{'es' if world > 1 else ''}, to the end", ""


def end_all(process: subprocess.Popen[str]) -> None:
    """End a launcher and all that it has started; torchrun gives each process a session, and so a group, of its own."""
    with suppress(psutil.NoSuchProcess):
        begun = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # first: it would begin others
        for each in begun:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the .pth and .safetensors files in a folder, by file and name, read as data: nothing can run."""
    found: dict[str, Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                collect(f"{name} {key}", item)

    for path in sorted([*folder.rglob("*.pth"), *folder.rglob("*.safetensors")]):
        try:
            collect(
                os.fspath(path.relative_to(folder)),
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True),
            )
        except Exception as error:  # the file is foreign: whatever the parser trips over, it cannot be compared
            raise UserError(
                f"{path.name} cannot be read as data ({type(error).__name__}): save a state_dict"
            ) from error
    return found


def compare_weights(one: dict[str, Tensor], several: dict[str, Tensor], processes: int) -> Line:
    """The trained weights."""
    numbers = [name for name, tensor in one.items() if tensor.is_floating_point()]
    if not numbers:
        return (
            "weights",
            False,
            "no .pth or .safetensors file in its output folder",
            "save the model's state_dict there",
        )
    shapes = [{name: tuple(tensor.shape) for name, tensor in it.items()} for it in (one, several)]
    if shapes[0] != shapes[1]:
        unlike = sorted(name for name in {**one, **several} if shapes[0].get(name) != shapes[1].get(name))
        advice = "save the bare model: without the prefix `module.` and under the same name"
        return (
            "weights",
            False,
            f"1 and {processes} processes leave other names or shapes: {', '.join(unlike[:3])}",
            advice,
        )
    narrow = sorted({str(one[name].dtype) for name in numbers if one[name].dtype != torch.float64})
    if narrow:
        advice = "obey --dtype float64: in float32 rounding alone changes weights by 0.05 in an epoch"
        return "weights", False, f"they are {', '.join(narrow)}, in which nothing can be told", advice
    gaps = {name: (one[name].double() - several[name].double()).abs() for name in one if one[name].numel()}
    apart = {name: float(gap.nan_to_num(nan=math.inf).max()) for name, gap in gaps.items()}
    name = max(apart, key=apart.__getitem__)
    size = float(one[name].double().abs().max())
    detail = (
        f"on {processes} processes they differ from those on 1 by {apart[name]:.1e} at most (of {size:.2g}, {name})"
    )
    advice = (
        "it is another training on several processes: share each global batch of the same samples, divide the summed "
        "loss by its size, and draw at random for the whole batch (GlobalBatches and Training of mnist_dist.core do)"
    )
    return "weights", apart[name] <= TOLERANCE, detail, advice


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of all .jsonl files, flat, of figures that time does not change."""

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {key: item for part, inner in value.items() for key, item in flat(inner, f"{name}{part} ").items()}
        return {name.strip(): value} if isinstance(value, int | float) else {}

    found = []
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                figures = flat(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path.name} does not hold JSON lines: {line[:80]!r}") from error
            found.append({key: it for key, it in figures.items() if not any(word in key.lower() for word in TIMES)})
    return found


def compare_figures(one: list[dict[str, Any]], several: list[dict[str, Any]], processes: int) -> list[Line]:
    """Counts, which must be the same, and measures, which may differ by rounding, of all epochs or updates."""
    counts, measures = list[str](), list[str]()
    if len(one) != len(several):
        counts.append(f"{len(one)} lines on 1 process, {len(several)} on {processes}")
    for number, (line, other) in enumerate(zip(one, several, strict=False), 1):
        for key in {**line, **other}:
            mine, its = line.get(key, math.nan), other.get(key, math.nan)
            whole = isinstance(mine, int) and isinstance(its, int)
            if not abs(mine - its) <= (0 if whole else TOLERANCE * max(1, abs(mine))):
                fault = f"{key} of line {number} is {mine:.6g} on 1 process and {its:.6g} on {processes}"
                (counts if whole else measures).append(fault)
    lines = len(one)
    advice = "every update must be made, and every sample counted, once whatever the number of processes"
    right = f"epochs, updates and samples of {lines} lines are the same"
    return [
        ("counts", not counts, "; ".join(counts[:2]) or right, advice),
        ("metrics", not measures, "; ".join(measures[:2]) or f"{lines} lines are the same", advice),
    ]
