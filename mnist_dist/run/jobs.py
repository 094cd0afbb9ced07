"""Identifies the job that started a run, so that a restarted attempt can find its run again.

A job is a dict of plain values, as config.json notes it:
    launchers: the names of the launchers of all processes, as `launcher` tells them.
    workers: the names of what these have started, as `worker` tells them.
    slurm_job: the cluster and the number of the Slurm job, or None.
    slurm_step: the number of the Slurm job's step, or None.
    slurm_restarts: how often Slurm has requeued the job.
    command: the words of the training's command line, which tell the trainings of one script apart.
"""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate.utils import broadcast_object_list, gather_object

from mnist_dist.core.errors import UserError

# Environment variables set by torchrun and accelerate launch, and inherited by child processes.
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK")


def launcher() -> str | None:
    """Return a unique name for this process's launcher (torchrun or accelerate launch).

    Returns:
        Its node, its process id, and its start in seconds since the node was booted. If it cannot
        be seen, as from within a container, the folder that it has made for all its attempts. None
        without a launcher.
    """
    if LAUNCHER_VARIABLES[0] not in os.environ:
        return None
    process, _ = launcher_and_worker()
    if process is not None:
        return name_of(process)
    file_of_errors = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file_of_errors:
        return None
    # FOLDER/attempt_0/0/error.json, where FOLDER has a random name.
    return str(Path(file_of_errors).parents[2])


def worker() -> str | None:
    """Name what the launcher has started, which is this process or a wrapper around it.

    Returns:
        Its name, as for `launcher`. None without a launcher.
    """
    if LAUNCHER_VARIABLES[0] not in os.environ:
        return None
    _, process = launcher_and_worker()
    return name_of(process) if process is not None else None


def launcher_and_worker() -> tuple[psutil.Process | None, psutil.Process | None]:
    """Find the launcher among the parents of this process, beyond shells and other wrappers.

    Returns:
        The nearest ancestor without this process's launcher variables, or None if no such process
        is visible; and its child on the way here, or None if processes cannot be inspected.
    """
    try:
        process = own_process()
        while True:
            parent = process.parent()
            if parent is None or not has_same_launcher_variables(parent):
                return parent, process
            process = parent
    except psutil.Error:
        return None, None


def own_process() -> psutil.Process:
    """Find this process in /proc, where a process in a namespace of its own has another number."""
    try:
        return psutil.Process(int(Path("/proc/self").readlink().name))
    except (OSError, ValueError):  # on other systems
        return psutil.Process()


def has_same_launcher_variables(parent: psutil.Process) -> bool:
    """Whether a parent is a wrapper, with the same launcher variables as this process."""
    try:
        environ = parent.environ()
    except psutil.AccessDenied:
        return False
    return all(environ.get(name) == os.environ.get(name) for name in LAUNCHER_VARIABLES)


def name_of(process: psutil.Process) -> str:
    """Return a name for a process that is unique across nodes and over time."""
    # Both times move if the clock is set, but their difference does not.
    started = process.create_time() - psutil.boot_time()
    return f"{platform.node()}:{process.pid}:{started:.2f}"


def this_job() -> dict[str, Any]:
    """Describe the job of the processes. Every process must call this.

    `torchrun --rdzv-id` does not identify a job: it is "none" unless the user sets it.

    Returns:
        The job as the first process sees it, the same on every process.
    """
    launchers = {name for name in gather_object([launcher()]) if name}
    workers = {name for name in gather_object([worker()]) if name}
    number = os.environ.get("SLURM_JOB_ID")
    cluster = os.environ.get("SLURM_CLUSTER_NAME")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    job = {
        "launchers": sorted(launchers),
        "workers": sorted(workers),
        "slurm_job": f"{cluster}:{number}" if number else None,
        "slurm_step": os.environ.get("SLURM_STEP_ID"),
        "slurm_restarts": int(restarts) if restarts.isdecimal() else 0,
        "command": list(sys.argv),
    }
    (job_of_first_process,) = broadcast_object_list([job])
    return job_of_first_process


def has_begun(job: dict[str, Any], noted: dict[str, Any]) -> bool:
    """Whether a run was started by an earlier attempt of this job, under the same launcher or requeued by Slurm.

    Args:
        job: the job of these processes.
        noted: what the run's config.json notes as its job, which may be damaged.

    Returns:
        True if they are attempts of the same job.
    """
    if have_in_common(job["launchers"], noted.get("launchers")):
        # A wrapper that is still the same one has begun another training, as a script does that
        # trains several times.
        return not have_in_common(job["workers"], noted.get("workers"))
    if job["slurm_job"] is None or noted.get("slurm_job") != job["slurm_job"]:
        return False
    # Within one attempt of a Slurm job each training is a run of its own.
    restarts = noted.get("slurm_restarts")
    return isinstance(restarts, int) and restarts < job["slurm_restarts"]


def have_in_common(names: list[str], noted: Any) -> bool:
    """Tell whether one of the names is among those that were noted, which may be damaged."""
    return isinstance(noted, list) and any(name in noted for name in names)


@dataclass(frozen=True)
class BegunRun:
    """A run that an earlier attempt of a job has begun.

    Attributes:
        folder: the run's folder.
        job: what its config.json notes as its job.
        is_finished: whether it has come to its end.
        is_alike: whether its folder is named as one is that is made for the run looked for, and
            holds a checkpoint.
    """

    folder: Path
    job: dict[str, Any]
    is_finished: bool
    is_alike: bool

    def has_command_of(self, job: dict[str, Any]) -> bool:
        """Whether it was begun with the command line of this job's processes."""
        return self.job.get("command") == job["command"]

    def has_step_of(self, job: dict[str, Any]) -> bool:
        """Whether it was begun by a step of Slurm with the number of this job's."""
        return self.job.get("slurm_step") == job["slurm_step"]


def own_run(job: dict[str, Any], runs: Sequence[BegunRun]) -> BegunRun | None:
    """Tell which of the runs that a job has begun is the one that these processes are to resume.

    Args:
        job: the job of these processes, whose script may train several times.
        runs: those of earlier attempts, the oldest first.

    Returns:
        The run, or None if it was not begun yet.

    Raises:
        UserError: several runs may be the one.
    """
    # A script that is started again repeats its command lines.
    same_command = [run for run in runs if run.has_command_of(job)]
    if same_command:
        # Of several with the same settings, the newest of those that are not finished.
        return max(
            reversed(same_command), key=lambda run: (not run.is_finished, run.has_step_of(job))
        )
    # A command line may differ, by the number of nodes, for example. A run that is not finished is
    # then taken, and if its settings differ, too, its checkpoint is refused in a sentence.
    unfinished = [run for run in runs if run.is_alike and not run.is_finished]
    of_this_step = [run for run in unfinished if run.has_step_of(job)]
    candidates = of_this_step or unfinished
    if len(candidates) > 1:
        names = ", ".join(str(run.folder) for run in candidates)
        raise UserError(
            f"this job has begun several runs that are not finished ({names}), none of them with "
            "this command line: name a folder for each training with --output-dir"
        )
    return candidates[0] if candidates else None
