"""The job that started the processes of a run, by which a restarted attempt finds its run again.

A job is a dict of plain values, as config.json notes it:
    launchers: the names of the launchers of all processes, as `launcher` tells them.
    slurm_job: the cluster and the number of the Slurm job, or None.
    slurm_step: the number of the Slurm job's step, or None.
    slurm_restarts: how often Slurm has requeued the job.
"""

import os
import platform
from typing import Any

import psutil
from accelerate.utils import broadcast_object_list, gather_object


def launcher() -> str | None:
    """Name the launcher of this process, torchrun or accelerate launch, unlike every other.

    Returns:
        Its node, its process id, and its start in seconds since the node was booted. None without
        a launcher.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = psutil.Process().parent()
    if parent is None:
        return None
    # Both times move if the clock is set, but their difference does not.
    started = parent.create_time() - psutil.boot_time()
    return f"{platform.node()}:{parent.pid}:{started:.2f}"


def this_job() -> dict[str, Any]:
    """Describe the job of the processes. Every process must call this.

    `torchrun --rdzv-id` is no name for a job: it is "none" unless somebody chose one.

    Returns:
        The job as the first process sees it, the same on every process.
    """
    names = gather_object([launcher()])
    launchers = {name for name in names if name}
    number = os.environ.get("SLURM_JOB_ID")
    cluster = os.environ.get("SLURM_CLUSTER_NAME")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    job = {
        "launchers": sorted(launchers),
        "slurm_job": f"{cluster}:{number}" if number else None,
        "slurm_step": os.environ.get("SLURM_STEP_ID"),
        "slurm_restarts": int(restarts) if restarts.isdecimal() else 0,
    }
    (job_of_first_process,) = broadcast_object_list([job])
    return job_of_first_process


def has_begun(job: dict[str, Any], noted: dict[str, Any]) -> bool:
    """Tell whether a job has begun a run, because a launcher lives on or Slurm requeued the job.

    Args:
        job: the job of these processes.
        noted: what the run's config.json notes as its job, which may be damaged.

    Returns:
        True if they are attempts of the same job.
    """
    launchers = noted.get("launchers")
    if isinstance(launchers, list):
        for name in job["launchers"]:
            if name in launchers:
                return True
    if job["slurm_job"] is None or noted.get("slurm_job") != job["slurm_job"]:
        return False
    # Within one attempt of a Slurm job each training is a run of its own.
    restarts = noted.get("slurm_restarts")
    return isinstance(restarts, int) and restarts < job["slurm_restarts"]
