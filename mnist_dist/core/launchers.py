"""Launchers other than torch's, such as mpirun: several processes that do not know of each other."""

from collections.abc import Mapping

from accelerate import PartialState

from .errors import UserError

# The variables in which launchers tell the number of processes, and that of this one.
SIZES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI
    "PMI_SIZE",  # MPICH, Intel MPI, and others with Hydra
    "MPI_LOCALNRANKS",  # of the node
    "MV2_COMM_WORLD_SIZE",  # MVAPICH
    "JSM_NAMESPACE_SIZE",  # jsrun
    "FLUX_JOB_SIZE",
)
RANKS = (
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "FLUX_TASK_RANK",
    "PALS_RANKID",
    "PMIX_RANK",
)
WAY_OUT = "start through torchrun, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of each process"


def refuse_a_process_of_several(environ: Mapping[str, str]) -> None:
    """Refuse to be one of several processes, each of which would train alone.

    Args:
        environ: the environment variables of a process that torch believes to be alone.

    Raises:
        UserError: a launcher says that there are others.
    """
    world = "1" if environ.get("WORLD_SIZE") else "not set"
    for name in SIZES:
        size = environ.get(name, "")
        if size not in ("", "1"):
            raise UserError(
                f"mpirun or another launcher started several processes ({name} is {size}) that do "
                f"not know of each other (WORLD_SIZE is {world}), so each would train its own "
                f"model: {WAY_OUT}"
            )
    for name in RANKS:
        rank = environ.get(name, "")
        if rank not in ("", "0"):
            raise UserError(
                f"mpirun or another launcher started this process beside others ({name} is {rank}) "
                f"of which it does not know (WORLD_SIZE is {world}), so each would train its own "
                f"model: {WAY_OUT}"
            )


def refuse_unconnected(environ: Mapping[str, str]) -> None:
    """Refuse to train alone although torch's launcher has started several processes.

    Args:
        environ: the environment variables that the launcher has set.

    Raises:
        UserError: there are more.
    """
    started = environ.get("WORLD_SIZE", "")
    world = PartialState().num_processes
    if started.isdigit() and int(started) > world:
        raise UserError(
            f"{started} processes were started but {world} is connected, so each would train its own model: if "
            "something that uses Accelerate's state, such as a tracker of your own, is created before the "
            "accelerator, create it afterwards"
        )
