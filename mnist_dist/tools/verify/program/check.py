"""Any training program on one process and on several: is what it leaves the same?

docs/verify.md has the contract that such a program keeps.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mnist_dist.core import UserError
from mnist_dist.tools.doctor.launcher import FOLDER
from mnist_dist.tools.verify.program import doctor as program_doctor
from mnist_dist.tools.verify.program.results import (
    Line,
    compare_figures,
    compare_weights,
    read_figures,
    read_weights,
)
from mnist_dist.tools.verify.program.start import complaint, unlaunched

OF_CONTRACT = ("--dtype", "--output-dir", "nrecognized")  # in words of those that do not know them


def compare(
    program: Path,
    flags: Sequence[str],
    processes: int,
    cpu: bool,
    deadline: float,
) -> list[Line]:
    """Run a program on one process and on several of this machine, in float64, and compare.

    Args:
        program: a Python file.
        flags: the program's own; `--output-dir FOLDER --dtype float64` is added.
        processes: how many are several.
        cpu: whether to hide the GPUs.
        deadline: seconds that a run may take.

    Returns:
        What was found, up to the first run that fails.

    Raises:
        UserError: this process was started as one of several, or the program's files cannot be
            read.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        advice = "call it as `python -m mnist_dist verify --program ...`"
        raise UserError(f"--program starts the processes itself: {advice}")
    start = program_doctor.Start(program, flags, processes, cpu, deadline)
    with tempfile.TemporaryDirectory(prefix="verify-") as place:
        alone = Path(place) / "on-1"
        together = Path(place) / f"on-{processes}"
        lines = []
        for world, folder in ((1, alone), (processes, together)):
            line = run(program, flags, world, folder, cpu, deadline)
            lines.append(line)
            if not line.passed:
                refuses = any(word in line.detail for word in OF_CONTRACT)
                return [*lines, *(program_doctor.explain(start) if refuses else [])]
        weights_alone = read_weights(alone)
        weights_together = read_weights(together)
        figures_alone = read_figures(alone)
        figures_together = read_figures(together)
    compared = [compare_weights(weights_alone, weights_together, processes)]
    if figures_alone or figures_together:
        compared += compare_figures(figures_alone, figures_together, processes)
    if not all(line.passed for line in compared):
        lines += program_doctor.explain(start, contract=True)
    return [*lines, *compared]


def run(
    program: Path,
    flags: Sequence[str],
    world: int,
    folder: Path,
    cpu: bool,
    deadline: float,
) -> Line:
    """Run a program.

    Args:
        program: a Python file.
        flags: its own.
        world: the number of processes.
        folder: where its files are to go.
        cpu: whether to hide the GPUs.
        deadline: seconds that it may take.

    Returns:
        Whether it came to its end.
    """
    name = f"runs on {world}"
    begin = [sys.executable]
    if world > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        begin += [*torchrun, f"--nproc-per-node={world}"]
    words = [str(program), *flags, "--dtype", "float64", "--output-dir"]
    records = folder.with_name(f"records-of-{world}")
    records.mkdir()
    watched = [*begin, "-m", "mnist_dist", "doctor", *words, str(folder)]
    process = subprocess.Popen(
        watched,
        env=environment(cpu) | {FOLDER: str(records)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        end_all(process)
        advice = "give it fewer epochs, or more seconds with --deadline"
        return Line(name, False, f"not finished after {deadline:.0f} s", advice)
    except BaseException:
        end_all(process)
        raise
    if process.returncode:
        detail = f"it ends with status {process.returncode}: {complaint(output)}"
        command = shlex.join([*begin, *words, own_folder(folder)])
        return Line(name, False, detail, f"start it yourself: {variables(cpu)} {command}")
    apart = program_doctor.not_connected(records, world)
    if apart is not None:
        return Line(name, False, *apart)
    count = "1 process" if world == 1 else f"{world} processes"
    return Line(name, True, f"{count}, ran to the end", "")


def own_folder(folder: Path) -> str:
    """Return a folder for a user's own start: that of the check is gone by then."""
    return str(Path(tempfile.gettempdir()) / f"{folder.name}-{os.getpid()}")


def variables(cpu: bool) -> str:
    """Return the variables with which a program is started here, as a shell is told."""
    hidden = "ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES= " if cpu else ""
    return f"{hidden}PYTHONPATH=.${{PYTHONPATH:+:$PYTHONPATH}}"


def environment(cpu: bool) -> dict[str, str]:
    """Return the environment of a program that is run here.

    Args:
        cpu: whether to hide the GPUs.
    """
    variables = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    variables |= unlaunched()
    before = os.environ.get("PYTHONPATH")
    here = os.getcwd()  # noqa: PTH109
    variables["PYTHONPATH"] = f"{here}{os.pathsep}{before}" if before else here
    if cpu:
        variables["ACCELERATE_USE_CPU"] = "true"
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def end_all(process: subprocess.Popen[str]) -> None:
    """End a launcher and all that it has started.

    torchrun gives each process a session, and so a group, of its own.
    """
    with suppress(psutil.NoSuchProcess):
        begun = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # first: it would begin others
        for each in begun:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()
