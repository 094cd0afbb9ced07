"""Checks of the environment variables by which a launcher tells a process about the others."""

import contextlib
import os
import re
import sys
from collections.abc import Mapping

import psutil

from mnist_dist.core.errors import UserError

RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
DIVIDING_STRATEGIES = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
TRUE = ("1", "true")


def check_environment(environ: Mapping[str, str]) -> int:
    """Refuse an environment in which several processes were meant but each would train alone.

    Args:
        environ: the environment variables of the process, as launchers set them.

    Returns:
        The number of processes that the launcher started, which is 1 without a launcher.

    Raises:
        UserError: the variables contradict each other, or announce processes that do not exist.
    """
    refuse_a_divided_model(environ)
    if "WORLD_SIZE" not in environ:
        check_that_one_process_was_meant(environ)
        return 1
    missing = [name for name in RENDEZVOUS if not environ.get(name)]
    if missing:
        reason = f"WORLD_SIZE is set but {', '.join(missing)} is not"
        raise UserError(f"{reason}: start through torchrun or accelerate launch")
    numbers = {name: whole_number(name, environ.get(name, "1")) for name in NUMBERS}
    port = numbers["MASTER_PORT"]
    rank = numbers["RANK"]
    world = numbers["WORLD_SIZE"]
    if not 1 <= port <= 65535:
        raise UserError(f"MASTER_PORT={port} is no port: give a free one from 1 to 65535")
    if rank >= world:
        raise UserError(f"RANK={rank} is not below WORLD_SIZE={world}")
    return world


def refuse_a_divided_model(environ: Mapping[str, str]) -> None:
    """Refuse configurations of Accelerate that divide a model among the processes.

    Args:
        environ: the environment variables of the process.

    Raises:
        UserError: Accelerate is configured for DeepSpeed, FSDP or Megatron-LM.
    """
    for strategy in DIVIDING_STRATEGIES:
        variable = f"ACCELERATE_USE_{strategy}"
        if environ.get(variable, "").lower() in TRUE:
            raise UserError(
                f"accelerate is configured for {strategy} ({variable} is set), "
                "which divides a model, and here each process trains the whole: "
                "launch with --config_file accelerate_config.yaml"
            )


def check_that_one_process_was_meant(environ: Mapping[str, str]) -> None:
    """Look for signs that a process without WORLD_SIZE was meant to be one of several.

    One sign does not prove it: a Slurm allocation may have tasks that are not used. For that this
    prints a warning.

    Args:
        environ: the environment variables of the process, without WORLD_SIZE.

    Raises:
        UserError: the launcher, or Slurm, was asked for several processes.
    """
    if "MASTER_PORT" in environ:
        # `accelerate launch --cpu --num_processes N` prepares the environment for N processes and
        # then starts one of them (accelerate #2741).
        raise UserError(
            "several processes were asked for but only this one was started (MASTER_PORT is set, "
            "WORLD_SIZE is not): `accelerate launch` starts one process on CPUs, so use "
            "`torchrun --nproc-per-node N train.py --cpu` "
            "(or unset MASTER_PORT to train in one process)"
        )
    tasks_of_step = environ.get("SLURM_STEP_NUM_TASKS")
    if tasks_of_step not in (None, "", "1"):
        raise UserError(
            f"srun started {tasks_of_step} tasks that do not know of each other "
            "(WORLD_SIZE is not set), so each would train its own model: "
            "submit slurm/train.sbatch, which tells them"
        )
    tasks_of_job = environ.get("SLURM_NTASKS")
    if tasks_of_job not in (None, "", "1"):
        print(
            f"warning: this allocation has {tasks_of_job} tasks, and without srun one process "
            "works alone: the scripts in slurm/ start all",
            file=sys.stderr,
        )


def whole_number(name: str, value: str) -> int:
    """Read an environment variable that holds a number.

    Args:
        name: the name of the variable, for the message.
        value: its value.

    Returns:
        The number.

    Raises:
        UserError: the value is not a whole number of at most nine digits.
    """
    # `str.isdecimal` would also accept the digits of other scripts.
    if not re.fullmatch("[0-9]{1,9}", value):
        raise UserError(f"the environment variable {name}={value!r} is not a whole number")
    return int(value)


def no_agent_can_join() -> bool:
    """Find out whether an elastic torchrun was started in a way that lets no agent join later.

    If each torchrun keeps its first store (torch 2.15), an agent that comes later finds no address
    (`DistStoreError ... MASTER_ADDR`), or the others keep an old one. That matters only if the
    number of nodes may change.

    Returns:
        True if torchrun shares its store and was given a range of nodes, `--nnodes MIN:MAX`.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    # A process is not told the range, so the command line of its agent is looked at.
    with contextlib.suppress(psutil.Error):
        agent = psutil.Process().parent()
        command = " ".join(agent.cmdline())
        by_flag = re.search(r"--nnodes[= ](\d+):(\d+)", command)
        by_variable = re.fullmatch(r"(\d+):(\d+)", os.environ.get("PET_NNODES", ""))
        nodes = by_flag or by_variable
        return nodes is not None and int(nodes[1]) < int(nodes[2])
    return False
