"""Starts the processes of a program: creates the accelerator on the requested devices.

The names in `__all__` are what a script needs. Some of them are defined in the modules beside this
one: how the processes leave is in `leaving`.
"""

import os
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DynamoBackend,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
)

from mnist_dist.core import ExactAccelerator, UserError
from mnist_dist.core.output import warn
from mnist_dist.run import rendezvous
from mnist_dist.run.devices import (
    check_one_gpu_per_process,
    choose_precision,
    must_use_cpu,
    set_float32_multiplication,
)
from mnist_dist.run.environment import check_environment, check_libraries, no_agent_can_join
from mnist_dist.run.leaving import cause, is_first, is_lost_connection, run
from mnist_dist.run.neighbour import NEIGHBOURS, Neighbour
from mnist_dist.run.versions import versions

__all__ = [
    "NEIGHBOURS",
    "THREADS",
    "cause",
    "check_environment",
    "describe",
    "is_first",
    "no_agent_can_join",
    "run",
    "start",
    "versions",
    "watching",
]

# Threads of a process on the CPU, unless OMP_NUM_THREADS says otherwise, as torchrun does. Threads
# wait for each other by spinning: with one on every core, a single other program that wants a core
# holds up all of them (docs/speed.md).
THREADS = max(1, torch.get_num_threads() // 2)

watching = True  # whether processes on GPUs watch each other; verify has a watch of its own


def start(
    cpu: bool = False,
    mixed_precision: str | None = None,
    dtype: torch.dtype = torch.float32,
    compile_mode: str | None = None,
    tf32: bool = False,
    *,
    virtual_processes: int = 0,
    seed: int = 0,
    micro_batches: int = 1,
) -> ExactAccelerator:
    """Connect the processes and choose the device of each.

    Args:
        cpu: stay on the CPU even if there is a GPU.
        mixed_precision: "no", "fp16", "bf16", or None for what the launcher asked for.
        dtype: the arithmetic of the model, to refuse what contradicts it.
        compile_mode: the mode in which torch.compile works on what Accelerate prepares, or None to
            leave it uncompiled.
        tf32: let a GPU multiply float32 numbers in TF32.
        virtual_processes, seed, micro_batches: as for `ExactAccelerator`.

    Returns:
        The accelerator of this process, connected with all others.

    Raises:
        UserError: the environment, the devices or the precision cannot give what was asked for.
    """
    world = check_environment(os.environ)
    cpu = must_use_cpu(cpu)
    set_float32_multiplication(tf32, cpu)
    if not cpu:
        check_one_gpu_per_process()
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(THREADS)
    if cpu and world > 1:
        check_libraries(os.environ, psutil.net_if_addrs())
    precision = choose_precision(mixed_precision, dtype, cpu)
    accelerator = connect(
        world,
        cpu=cpu,
        mixed_precision=precision,
        dynamo_plugin=dynamo_plugin(compile_mode),
        virtual_processes=virtual_processes,
        seed=seed,
        micro_batches=micro_batches,
    )
    if dtype == torch.float64 and accelerator.device.type == "mps":
        raise UserError("--dtype float64 does not exist on Apple GPUs: add --cpu")
    if accelerator.device.type == "cuda" and world > 1 and watching and not NEIGHBOURS:
        NEIGHBOURS.append(Neighbour())
    if accelerator.is_main_process and no_agent_can_join():
        warn(
            "torchrun agents cannot join or rejoin this run; they would fail or hang: start every "
            "torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )
    return accelerator


def connect(world: int, **options: Any) -> ExactAccelerator:
    """Make the accelerator, which connects the processes.

    Args:
        world: the number of processes that were started.
        options: for `ExactAccelerator`.

    Returns:
        The accelerator of this process.

    Raises:
        UserError: the processes could not be connected, or Accelerate refused the set-up.
    """
    meeting = InitProcessGroupKwargs(init_method=rendezvous.METHOD, timeout=rendezvous.TIMEOUT)
    # A number of steps from the environment (ACCELERATE_GRADIENT_ACCUMULATION_STEPS) would make an
    # update of several batches, which no flag has asked for.
    no_accumulation = GradientAccumulationPlugin(num_steps=1)
    try:
        accelerator = ExactAccelerator(
            gradient_accumulation_plugin=no_accumulation, kwargs_handlers=[meeting], **options
        )
    except dist.DistError as error:
        raise UserError(
            f"the processes could not be connected ({cause(error)}): start all {world}, with "
            "MASTER_ADDR and MASTER_PORT of the first one's node, which the others must reach"
        ) from error
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(why_not(error)) from error
    if accelerator.num_processes != world:
        raise UserError(
            f"{world} processes were started but {accelerator.num_processes} are connected, so "
            "each would train its own model: on CPUs add --cpu, on GPUs start through accelerate "
            "launch or torchrun"
        )
    return accelerator


def why_not(error: Exception) -> str:
    """Explain why Accelerate could not start, or the processes could not be connected.

    Args:
        error: what was raised while they were to be connected.

    Returns:
        A sentence with the reason, and where to look.
    """
    reason = cause(error) if str(error).strip() else type(error).__name__
    if is_lost_connection(error):
        return (
            f"the processes could not be connected ({reason}): look at the network of their nodes, "
            "and at the environment variables that begin with GLOO_ or NCCL_"
        )
    names = [name for name in os.environ if name.startswith("ACCELERATE_")]
    if names:
        return (
            f"Accelerate could not start ({reason}): look at the environment variables that "
            f"begin with ACCELERATE_ ({', '.join(sorted(names))}), and at what the launcher set"
        )
    return f"Accelerate could not start ({reason}): look at what the shell and the launcher set in the environment"


def dynamo_plugin(compile_mode: str | None) -> TorchDynamoPlugin:
    """Make the plugin that tells Accelerate whether to compile.

    Args:
        compile_mode: as in `start`.

    Returns:
        A plugin also if nothing is to be compiled: without one Accelerate takes the launcher's.
    """
    backend = DynamoBackend.INDUCTOR if compile_mode else DynamoBackend.NO
    # Shares and pieces of a batch have only a few different sizes. One compilation for each size
    # makes faster kernels than one for sizes that may change.
    return TorchDynamoPlugin(backend=backend, mode=compile_mode or "default", dynamic=False)


def describe(accelerator: Accelerator) -> str:
    """Describe the set-up in a few words.

    Args:
        accelerator: the Accelerator of this process.

    Returns:
        Words such as `2 processes on CPU (gloo), no mixed precision`.
    """
    world = accelerator.num_processes
    device = accelerator.device
    text = "1 process" if world == 1 else f"{world} processes"
    if device.type == "cuda":
        text += f" on {torch.cuda.get_device_name(device)}"
    else:
        text += f" on {device.type.upper()}"
    if dist.is_initialized():
        text += f" ({dist.get_backend()})"
    if accelerator.mixed_precision != "no":
        text += f", mixed precision {accelerator.mixed_precision}"
    return text
