"""A run's folder: its file names, how it is created, and how its run is resumed."""

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

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from mnist_dist.core import Checkpoints, ExactDataLoader, UserError, all_or_none, announce
from mnist_dist.core.checkpointing import FOLDER as CHECKPOINTS
from mnist_dist.core.files import make_folder, refuse_lost_link
from mnist_dist.run import locks
from mnist_dist.run.files import write_json
from mnist_dist.run.jobs import BegunRun, has_begun, own_run, this_job

ROOT = Path("runs")  # where runs go that were given no folder

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"  # written last: a run that has it has finished
WEIGHTS = "mnist_model.pth"
EVALUATION = "evaluation.json"
ENDED = "ended.json"  # why a run stopped or failed; a run that finished or was killed has none
PLOTS = "plots"
REPORT = "report.html"
JOURNAL = "journal.jsonl"  # of a hyperparameter search, whose folder is also in runs/


@dataclass(frozen=True)
class Run:
    """A run's folder and identifiers.

    Attributes:
        folder: where its files are.
        resume: whether it is resumed from its newest checkpoint.
        wandb_id: its name within Weights & Biases, the same before and after a stop.
        job: what started its processes and may start them again, as `this_job` tells it.
        is_guessed: whether its job has begun it with another command line, so that it may be
            another training's.
    """

    folder: Path
    resume: bool
    wandb_id: str
    job: dict[str, Any]
    is_guessed: bool = False


def settings_of(folder: Path) -> dict[str, Any]:
    """Read the config.json in a run's folder.

    Args:
        folder: the run's folder, which need not exist.

    Returns:
        The settings by name. Empty if they cannot be read.
    """
    try:
        settings = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):  # the last is for values nested thousands deep
        return {}
    return settings if isinstance(settings, dict) else {}


def open_run(folder: Path | None, name: str, resume: bool, weights: str = WEIGHTS) -> Run:
    """Create the folder of a new run, or find the folder of a run to resume.

    A run that is restarted by its own job resumes automatically: after a restart by torchrun
    (`--max-restarts`), after nodes were lost or joined, or when Slurm requeues the job. This works
    only while a launcher of the previous attempt, or the Slurm job, still exists. Every process
    must call this.

    Args:
        folder: the folder asked for, or None for runs/<timestamp>-<name>.
        name: what the name of a new folder ends with.
        resume: whether the folder may hold a run already.
        weights: the name of the file that the trained model will have.

    Returns:
        The run, the same on every process.

    Raises:
        UserError: the folder holds a run already, or one without a checkpoint to resume from; or
            it cannot be written to, or the first process does not see it.
    """
    run = None
    begun = None
    job = this_job()
    state = PartialState()
    with all_or_none():
        if state.is_local_main_process:
            begun = begun_by(job, folder, name)
    begun_on_nodes = gather_object([begun])
    seen = [each.folder for each in begun_on_nodes if each]
    with all_or_none():
        if state.is_main_process:
            if begun:
                is_guessed = folder is None and not begun.has_command_of(job)
                run = resume_run_of_job(begun.folder, job, weights, is_guessed)
            elif seen:
                raise UserError(
                    f"this job has started a run in {seen[0]}, a folder that {platform.node()} "
                    "(the first process's node) cannot see: put it on storage that all nodes share"
                )
            else:
                run = begin(folder, job, name, resume, weights)
    (run_of_first_process,) = broadcast_object_list([run])
    return run_of_first_process


def begun_by(job: dict[str, Any], folder: Path | None, name: str) -> BegunRun | None:
    """Find the run that these processes have begun in an earlier attempt of their job.

    Args:
        job: the job of these processes.
        folder: the folder asked for, or None to look at all in runs/.
        name: what the names of folders end with that are made for such a run.

    Returns:
        The run. None if no such run can be seen from this node.

    Raises:
        UserError: several runs may be the one.
    """
    places = [folder] if folder else sorted(ROOT.glob("*"))
    runs = []
    for place in places:
        noted = settings_of(place).get("job")
        if not isinstance(noted, dict) or not has_begun(job, noted):
            continue
        # As `make_new_folder` names it.
        named = re.fullmatch(rf"\d{{8}}-\d{{6}}-{re.escape(name)}(-\d+)?", place.name)
        is_alike = bool(named) and any(place.glob(f"{CHECKPOINTS}/step-*"))
        runs.append(BegunRun(place, noted, (place / SUMMARY).exists(), is_alike))
    if folder:
        return runs[0] if runs else None
    return own_run(job, runs)


def resume_run_of_job(folder: Path, job: dict[str, Any], weights: str, is_guessed: bool) -> Run:
    """Resume a run that an earlier attempt of this job began.

    Args:
        folder: the run's folder.
        job: the job of these processes.
        weights: the name of the file of the trained model.
        is_guessed: as in `Run`. Nothing is noted in such a run before its checkpoint has been read.

    Returns:
        The run, which is locked.

    Raises:
        UserError: the run has no checkpoint to resume from, or another process is writing it.
    """
    check_folder(folder, resume=True, weights=weights)
    locks.take_over(folder)
    wandb_id = wandb_id_of(folder)
    if not is_guessed:
        note_job(folder, wandb_id, job)
    return Run(folder, resume=True, wandb_id=wandb_id, job=job, is_guessed=is_guessed)


def begin(folder: Path | None, job: dict[str, Any], name: str, resume: bool, weights: str) -> Run:
    """Make the folder of a new run, or resume a run that another job has left.

    Args:
        folder, name, resume, weights: as for `open_run`.
        job: the job of these processes.

    Returns:
        The run, which is locked.

    Raises:
        UserError: the folder cannot be used, or another process is writing the run in it.
    """
    is_new = True
    if folder is None:
        folder = make_new_folder(name)
    else:
        is_new = check_folder(folder, resume, weights)
        make_folder(folder)
    locks.lock(folder)
    wandb_id = wandb_id_of(folder)
    # A run started by another job stays recorded as that job's until its checkpoint has been read.
    if is_new:
        note_job(folder, wandb_id, job)
    return Run(folder, resume, wandb_id, job)


def make_new_folder(name: str) -> Path:
    """Make a folder in runs/ that did not exist.

    Args:
        name: what its name ends with, behind the time.

    Returns:
        The folder.

    Raises:
        UserError: runs is a symbolic link to nowhere.
        OSError: the folder cannot be made.
    """
    make_folder(ROOT)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    folder = ROOT / name
    for attempt in itertools.count(2):  # two runs may start in the same second
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = ROOT / f"{name}-{attempt}"
    return folder


def check_folder(folder: Path, resume: bool, weights: str) -> bool:
    """Refuse a folder in which no run can be begun or gone on with.

    Args:
        folder: the folder asked for, which need not exist.
        resume: whether it may hold a run already.
        weights: the name of the file of the trained model.

    Returns:
        Whether a run in it is new.

    Raises:
        UserError: it is a file or a dangling symbolic link, or its checkpoints folder is such a
            link; or it already holds a run, or a run without any checkpoint.
    """
    refuse_lost_link(folder / CHECKPOINTS)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder} is a file: give a folder")
    names = (CONFIG, METRICS, SUMMARY, weights, CHECKPOINTS)
    taken = [name for name in names if (folder / name).exists()]
    if taken and not resume:
        raise UserError(
            f"--output-dir {folder} already holds a run ({', '.join(taken)}): "
            "choose another folder, or resume the run with --resume"
        )
    if weights in taken and not any(folder.glob(f"{CHECKPOINTS}/step-*")):
        problem = f"{folder} holds a run but no intact checkpoint"
        raise UserError(f"{problem}: choose another --output-dir, or delete it")
    return not taken


def wandb_id_of(folder: Path) -> str:
    """Find the name of a run within Weights & Biases, or make one up.

    An id in the environment belongs to another run, unless a W&B sweep agent has just assigned it
    to this one.

    Args:
        folder: the run's folder.

    Returns:
        The name in config.json, or the agent's, or a new one of 8 hexadecimal digits.
    """
    wandb_id = str(settings_of(folder).get("wandb_id") or "")
    if not wandb_id and os.environ.get("WANDB_SWEEP_ID"):
        wandb_id = os.environ.get("WANDB_RUN_ID", "")
    if re.fullmatch(r"[\w-]{1,64}", wandb_id):
        return wandb_id
    return secrets.token_hex(4)


def note_job(folder: Path, wandb_id: str, job: dict[str, Any]) -> None:
    """Record right away which job a run belongs to, as this attempt may end before its first update.

    Args:
        folder: the run's folder.
        wandb_id: the run's name within Weights & Biases.
        job: the job of these processes. One that nothing will start again is not noted.
    """
    if job["launchers"] or job["slurm_job"]:
        settings = settings_of(folder)
        write_json(folder / CONFIG, settings | {"wandb_id": wandb_id, "job": job})


def restore_run(run: Run, checkpoints: Checkpoints, loader: ExactDataLoader, epochs: int) -> None:
    """Restore a resumed run to where it left off.

    Args:
        run: the run; nothing happens if it is not to be resumed.
        checkpoints: those of the run.
        loader: the prepared loader of the training data, whose `next_epoch` then says how far the
            training is.
        epochs: how many epochs the run is to have in the end.

    Raises:
        UserError: it has done more epochs than that, or its checkpoints cannot be restored.
    """
    if not run.resume:
        return
    try:
        if not checkpoints.resume():
            return
    except UserError as error:
        if not run.is_guessed:
            raise
        raise UserError(
            f"{error}; this job has begun that run with another command line, so give every "
            "training of the job a folder of its own with --output-dir"
        ) from error
    epoch, batch = loader.next_epoch, loader.first_batch
    if (epoch, batch) > (epochs, 0):
        problem = f"--epochs {epochs} is too few: the run in {run.folder} is already in epoch"
        raise UserError(f"{problem} {epoch + 1}")
    where = f"epoch {epoch + 1}" if epoch < epochs else f"all {epochs} epochs are done"
    announce(f"resuming from update {checkpoints.accelerator.updates} ({where})")
