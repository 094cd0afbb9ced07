"""A run's folder: its files' names, whose it is, and that one process writes it."""

import itertools
import json
import os
import platform
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from filelock import lock_descriptor

from mnist_dist.core import Checkpoints, Progress
from mnist_dist.core.checkpoints import FOLDER as CHECKPOINTS
from mnist_dist.core.processes import UserError, all_or_none
from mnist_dist.run.files import write_json
from mnist_dist.shell import shell

CONFIG, METRICS, SUMMARY, WEIGHTS, EVALUATION = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "mnist_model.pth",
    "evaluation.json",
)
ENDED = "ended.json"  # why a run ended that did not finish: asked to stop, or failed; one that was killed has none
PLOTS = "plots"
JOURNAL = "journal.jsonl"  # of a search, which has a folder of its own among those of runs
ROOT = Path("runs")
LOCKS = list[int]()  # descriptors of the runs that this process writes
TAKE_OVER = 60  # seconds for the first process of the attempt before to end; a launcher kills it after 30


@dataclass(frozen=True)
class Run:
    """A run's place, and what it is known by.

    Attributes:
        folder: where its files are.
        resume: whether it goes on from its newest checkpoint.
        wandb_id: its name within Weights & Biases, the same before and after a stop.
        job: what started its processes and may start them again, as `this_job` tells it.
    """

    folder: Path
    resume: bool
    wandb_id: str
    job: dict[str, Any]


def launcher() -> str | None:
    """What tells the launcher of this process, torchrun or accelerate launch, from every other; None without one."""
    parent = psutil.Process().parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
    if parent is None:
        return None
    started = parent.create_time() - psutil.boot_time()  # both move if the clock is set; their difference does not
    return f"{platform.node()}:{parent.pid}:{started:.2f}"


def this_job() -> dict[str, Any]:
    """What started the processes: the launchers of all of them, and the Slurm job; every process gets the same.

    `torchrun --rdzv-id` is no name for it: it is "none" unless somebody chose one.
    """
    launchers = sorted({name for name in gather_object([launcher()]) if name})
    number, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "")
    name = f"{os.environ.get('SLURM_CLUSTER_NAME')}:{number}" if number else None
    step, count = os.environ.get("SLURM_STEP_ID"), int(restarts) if restarts.isdecimal() else 0
    first = {"launchers": launchers, "slurm_job": name, "slurm_step": step, "slurm_restarts": count}
    return broadcast_object_list([first])[0]


def is_of(job: dict[str, Any], noted: dict[str, Any]) -> bool:
    """Whether a job has begun a run, by what its config.json notes: a launcher lives on, or Slurm requeued the job."""
    launchers, restarts = noted.get("launchers"), noted.get("slurm_restarts")
    if isinstance(launchers, list) and any(name in launchers for name in job["launchers"]):
        return True
    # Within one attempt of a Slurm job each training is a run of its own.
    same = job["slurm_job"] is not None and noted.get("slurm_job") == job["slurm_job"]
    return same and isinstance(restarts, int) and restarts < job["slurm_restarts"]


def begun_by(job: dict[str, Any], folder: Path | None) -> Path | None:
    """The run that a job has begun, in the folder asked for or in runs/; None if there is none to be seen from here."""
    mine = []
    for place in [folder] if folder else sorted(ROOT.glob("*")):
        noted = settings_of(place).get("job")
        if isinstance(noted, dict) and is_of(job, noted):
            mine.append((noted.get("slurm_step") == job["slurm_step"], place))  # a batch script may begin several
    return max(mine)[1] if mine else None


def settings_of(folder: Path) -> dict[str, Any]:
    """What the config.json in a run's folder says; nothing if it cannot be read."""
    try:
        settings = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):  # the last: nested thousands deep
        return {}
    return settings if isinstance(settings, dict) else {}


def open_run(folder: Path | None, name: str, resume: bool, weights: str = WEIGHTS) -> Run:
    """Make the folder of a new run, or find that of one to go on with; every process calls it and gets the same.

    A run that its own job has started again goes on by itself: after `--max-restarts`, with nodes lost or joined, or
    requeued by Slurm. Some process's launcher of the last attempt, or the Slurm job, must still be there.

    Args:
        folder: the one asked for; None for runs/<timestamp>-<name>.
        resume: take a folder that holds a run as it is.
        weights: the name of the file that the trained model will have.

    Raises:
        UserError: the folder holds a run already, or one that has nothing to go on from, or cannot be written to, or
            not seen by the first process.
    """
    run, job, begun = None, this_job(), None
    if PartialState().is_local_main_process:
        begun = begun_by(job, folder)
    seen = [place for place in gather_object([begun]) if place]
    with all_or_none():
        if PartialState().is_main_process:
            if seen and not begun:
                raise UserError(
                    f"this job has begun a run in {seen[0]}, which {platform.node()}, the first process's node, does "
                    "not have: let all nodes share that folder"
                )
            run = find_or_make(begun or folder, begun is not None, job, name, resume, weights)
    return broadcast_object_list([run])[0]


def find_or_make(folder: Path | None, begun: bool, job: dict[str, Any], name: str, resume: bool, weights: str) -> Run:
    """What `open_run` does on the first process; `begun`: the folder holds a run of this job."""
    resume, taken = resume or begun, list[str]()
    if folder is None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
        folder = ROOT / name
        for attempt in itertools.count(2):  # two runs may start in the same second
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                folder = ROOT / f"{name}-{attempt}"
    else:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output-dir {folder} is a file: give a folder")
        taken = [name for name in (CONFIG, METRICS, SUMMARY, weights, CHECKPOINTS) if (folder / name).exists()]
        if taken and not resume:
            raise UserError(
                f"--output-dir {folder} already holds a run ({', '.join(taken)}): choose another folder, or go on with "
                "--resume"
            )
        if weights in taken and not any(folder.glob(f"{CHECKPOINTS}/step-*")):
            raise UserError(f"{folder} holds a run but no intact checkpoint: choose another --output-dir, or delete it")
        folder.mkdir(parents=True, exist_ok=True)
    (take_over if begun else lock)(folder)
    wandb_id = str(settings_of(folder).get("wandb_id") or os.environ.get("WANDB_RUN_ID", ""))
    if not re.fullmatch(r"[\w-]{1,64}", wandb_id):
        wandb_id = secrets.token_hex(4)
    if (begun or not taken) and (job["launchers"] or job["slurm_job"]):
        # At once, for this attempt may end before its first update. A run that another job takes over is still the
        # other's until its checkpoint has been read.
        write_json(folder / CONFIG, settings_of(folder) | {"wandb_id": wandb_id, "job": job})
    return Run(folder, resume, wandb_id, job)


def go_on(run: Run, checkpoints: Checkpoints, epochs: int) -> Progress:
    """Put a run that is to go on back to where it was left off, and say how far the training is.

    Args:
        epochs: how many it is to have in the end.

    Raises:
        UserError: it has done more than that, or its checkpoints cannot be gone on from.
    """
    if run.resume:
        checkpoints.resume()
    at = checkpoints.training.progress
    if (at.epoch, at.step) > (epochs, 0):
        raise UserError(f"--epochs {epochs} is less than what {run.folder} has done: it is in epoch {at.epoch + 1}")
    return at


def take_over(folder: Path) -> None:
    """Lock a run as soon as the attempt before has left it, whose processes may still be about to end."""
    deadline = time.monotonic() + TAKE_OVER
    while True:
        try:
            return lock(folder)
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def lock(folder: Path) -> None:
    """Let no other process write this run before `let_go`, or the end; if the file system has no locks, do nothing.

    Raises:
        UserError: another process holds it.
    """
    descriptor = open_lock(folder)
    try:
        held = try_lock(descriptor)  # released when the process ends, however it ends
    except OSError:
        os.close(descriptor)
        return
    if not held:
        os.close(descriptor)
        raise UserError(f"another process is writing the run in {folder}: wait for it, or choose another folder")
    LOCKS.append(descriptor)


def let_go() -> None:
    """Unlock all runs of this process, which is to go on without them."""
    while LOCKS:
        os.close(LOCKS.pop())


def open_lock(folder: Path) -> int:
    """A descriptor of what stands for a run's folder where it is locked."""
    if hasattr(os, "O_DIRECTORY"):
        return os.open(folder, os.O_RDONLY)
    return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)  # Windows, which opens no folders


def try_lock(descriptor: int) -> bool:
    """Whether this process has locked it: at once, or soon after one that only looked, as `is_running` does."""
    for _ in range(3):
        if lock_descriptor(descriptor, blocking=False):
            return True
        time.sleep(0.05)
    return False


def is_running(folder: Path) -> bool:
    """Whether a process is writing this run, as its lock tells; False if the file system has no locks."""
    descriptor = open_lock(folder)
    try:
        return not try_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)  # and with it the lock


def next_steps(folder: Path) -> str:
    """What can be done with a finished run, in lines that can be pasted into a shell."""
    weights = [] if folder.parent == ROOT else ["--weights", str(folder)]  # without it: the newest run there
    return (
        f"evaluate: {shell('python', 'evaluate.py', folder)}\n"
        f"predict:  {shell('python', '-m', 'mnist_dist', 'predict', *weights)} IMAGE...\n"
        f"pictures: {shell(folder / PLOTS)}"
    )


def newest_run() -> Path:
    """The finished run in runs/ that ended last.

    Raises:
        UserError: there is none.
    """
    finished = sorted(ROOT.glob(f"*/{SUMMARY}"), key=lambda file: file.stat().st_mtime)
    if not finished:
        raise UserError(
            f"there is no finished run in {ROOT}/: train one with `python train.py`, or name it with --weights"
        )
    return finished[-1].parent
