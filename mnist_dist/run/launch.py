"""The processes: how they start, and how they leave."""

import contextlib
import os
import platform
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DynamoBackend,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
)

from mnist_dist.core.processes import STATUS, UserError, explain, same_everywhere
from mnist_dist.run import graphs, rendezvous
from mnist_dist.run.neighbour import Neighbour
from mnist_dist.shell import shell

GRACE = 5  # seconds in which the first process of a node can say why all leave
# Of a process on the CPU, unless OMP_NUM_THREADS says otherwise, as torchrun does. Threads wait for each other by
# spinning: with one on every core, a single other program that wants a core holds up all of them (docs/speed.md).
THREADS = max(1, torch.get_num_threads() // 2)
STAY = 2  # seconds in which every torchrun can notice that its processes are to end; each looks every 0.1
NVIDIA = Path("/proc/driver/nvidia/gpus")  # the driver's list
NEIGHBOURS: list[Neighbour] = []  # one, on GPUs, if these processes watch each other
watching = True
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_environment(environ: Mapping[str, str]) -> int:
    """Refuse an environment in which several processes were meant and each would train alone.

    Args:
        environ: the process's environment, as launchers set it.

    Returns:
        The number of processes that the launcher started, 1 without a launcher.

    Raises:
        UserError: the variables contradict each other, or announce processes that do not exist.
    """
    for divided in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if environ.get(f"ACCELERATE_USE_{divided}", "").lower() in ("1", "true"):
            raise UserError(
                f"accelerate is configured for {divided} (ACCELERATE_USE_{divided} is set), which divides a model, and "
                "here each process trains the whole: launch with --config_file accelerate_config.yaml"
            )
    if "WORLD_SIZE" not in environ:
        if "MASTER_PORT" in environ:
            # `accelerate launch --cpu --num_processes N` prepares for N processes and starts one (accelerate #2741).
            raise UserError(
                "several processes were asked for but only this one was started (MASTER_PORT is set, WORLD_SIZE is "
                "not): `accelerate launch` starts one process on CPUs, so use "
                "`torchrun --nproc-per-node N train.py --cpu` (or unset MASTER_PORT to train in one process)"
            )
        if environ.get("SLURM_STEP_NUM_TASKS") not in (None, "", "1"):
            raise UserError(
                f"srun started {environ['SLURM_STEP_NUM_TASKS']} tasks that do not know of each other (WORLD_SIZE is "
                "not set), so each would train its own model: submit slurm/train.sbatch, which tells them"
            )
        if environ.get("SLURM_NTASKS") not in (None, "", "1"):
            print(
                f"warning: this allocation has {environ['SLURM_NTASKS']} tasks, and without srun one process works "
                "alone: the scripts in slurm/ start all",
                file=sys.stderr,
            )
        return 1
    missing = [name for name in RENDEZVOUS if not environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not: start through torchrun or accelerate launch"
        )
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not re.fullmatch("[0-9]{1,9}", value := environ.get(name, "1")):  # `isdecimal` takes other scripts' digits
            raise UserError(f"the environment variable {name}={value!r} is not a whole number")
        numbers[name] = int(value)
    if not 1 <= numbers["MASTER_PORT"] <= 65535:
        raise UserError(f"MASTER_PORT={numbers['MASTER_PORT']} is no port: give a free one from 1 to 65535")
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise UserError(f"RANK={numbers['RANK']} is not below WORLD_SIZE={numbers['WORLD_SIZE']}")
    return numbers["WORLD_SIZE"]


def start(
    cpu: bool = False,
    mixed_precision: str | None = None,
    dtype: torch.dtype = torch.float32,
    compile_mode: str | None = None,
    tf32: bool = False,
) -> Accelerator:
    """Connect the processes and choose the device of each.

    Args:
        cpu: stay on the CPU even if there is a GPU.
        mixed_precision: "no", "fp16", "bf16", or None for what the launcher asked for.
        dtype: the arithmetic of the model, to refuse what contradicts it.
        compile_mode: let torch.compile work on what Accelerate prepares, in this mode of its own; None: do not.
        tf32: let a GPU multiply float32 numbers in TF32, which by itself PyTorch does in convolutions.

    Raises:
        UserError: the environment, the devices or the precision cannot give what was asked for.
    """
    world = check_environment(os.environ)
    cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if not cpu and not torch.accelerator.is_available():
        refuse_a_gpu_that_cannot_be_used(os.environ)
        cpu = True
    if tf32 and (cpu or not torch.cuda.is_available()):
        raise UserError("--tf32 is for NVIDIA GPUs: leave it out")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if not cpu and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if local > torch.cuda.device_count():
            raise UserError(
                f"{local} processes were started on a node with {torch.cuda.device_count()} GPU(s): start one process "
                "per GPU, or use --cpu"
            )
    if cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(THREADS)
    precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "fp16", "bf16"):
        raise UserError(f"mixed precision {precision!r} is not offered: use no, fp16 or bf16")
    if precision == "fp16" and cpu:
        raise UserError("--mixed-precision fp16 needs a GPU for its gradient scaling: use bf16 or no on the CPU")
    if precision != "no" and dtype == torch.float64:
        raise UserError(f"--dtype float64 contradicts --mixed-precision {precision}: choose one of them")
    # One compilation for each size of a share or piece, of which there are a few: exact shapes make faster kernels.
    # Without a plugin Accelerate takes the launcher's.
    backend = DynamoBackend.INDUCTOR if compile_mode else DynamoBackend.NO
    dynamo = TorchDynamoPlugin(backend=backend, mode=compile_mode or "default", dynamic=False)
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            dynamo_plugin=dynamo,
            # The training step weighs and accumulates by sample itself; a number of steps from the environment
            # (ACCELERATE_GRADIENT_ACCUMULATION_STEPS) would divide the loss a second time.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(init_method=rendezvous.METHOD, timeout=rendezvous.TIMEOUT)],
        )
    except dist.DistError as error:
        raise UserError(
            f"the processes could not be connected ({cause(error)}): start all {world}, with MASTER_ADDR and "
            "MASTER_PORT of the first one's node, which the others must reach"
        ) from error
    except (ValueError, RuntimeError, ImportError) as error:
        reason, *_ = str(error).split("\n")
        raise UserError(
            f"Accelerate could not start ({reason}): look at the environment variables that begin "
            "with ACCELERATE_, and at what the launcher set"
        ) from error
    if accelerator.num_processes != world:
        raise UserError(
            f"{world} processes were started but {accelerator.num_processes} are connected, so each would train its "
            "own model: on CPUs add --cpu, on GPUs start through accelerate launch or torchrun"
        )
    if dtype == torch.float64 and accelerator.device.type == "mps":
        raise UserError("--dtype float64 does not exist on Apple GPUs: add --cpu")
    if accelerator.device.type == "cuda" and world > 1 and watching and not NEIGHBOURS:
        NEIGHBOURS.append(Neighbour())
    if accelerator.is_main_process and no_agent_can_join():
        print(
            "warning: torch's agents cannot come back to this run or join it, but fail or wait in vain: start every "
            "torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment",
            file=sys.stderr,
        )
    return accelerator


def refuse_a_gpu_that_cannot_be_used(environ: Mapping[str, str]) -> None:
    """Do not train on the CPU for want of a GPU that is there.

    Raises:
        UserError: there is an NVIDIA driver with a GPU, PyTorch cannot use it, and nobody has hidden it.
    """
    if environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not any(NVIDIA.glob("*")):
        return
    reason = f"this PyTorch, {torch.__version__}, is built without CUDA"
    if torch.version.cuda:
        try:
            torch.cuda.init()
            reason = "PyTorch sees none"
        except (RuntimeError, AssertionError) as error:  # such as a driver that is older than its CUDA
            reason = str(error).splitlines()[0].rstrip(".")
    raise UserError(
        f"there is an NVIDIA GPU that cannot be used ({reason}): look at its driver, which CUDA "
        f"{torch.version.cuda or ''} must find new enough, and at CUDA_VISIBLE_DEVICES, or give --cpu"
    )


def cause(error: Exception) -> str:
    """What a library says went wrong, in a line: the first of its message, and NCCL's own, which comes last."""
    first, *others = str(error).strip().splitlines()
    _, _, last = "\n".join(others).partition("Last error:\n")
    return f"{first.rstrip('.')}; {last.splitlines()[0]}" if last else first.rstrip(".")


def fix_bits(virtual: int, cuda_graph: bool = False) -> dict[str, Any]:
    """Let bits depend on nothing but this: what a run with virtual processes has, and must have when it goes on.

    Args:
        virtual: how many there are; 0 for none, which changes nothing.
        cuda_graph: whether updates are to be graphs, in which several processes cannot send each other their sums.

    Raises:
        UserError: on every process, if they differ in it, or graphs are asked for in vain.
    """
    if not virtual:
        return {}
    if cuda_graph and PartialState().num_processes > 1:
        raise UserError("--cuda-graph with --virtual-processes is for one process: leave one of them out")
    torch.set_num_threads(1)  # sums are cut by threads
    found = {"threads a process": 1, "torch": str(torch.__version__), "CPU": torch.backends.cpu.get_cpu_capability()}
    device = PartialState().device
    if device.type == "cuda":
        # NCCL's choice of an algorithm decides nothing: it sums with zeros alone, and gradients are sent and received.
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        found |= {"GPU": torch.cuda.get_device_name(), "cuDNN": torch.backends.cudnn.version(), "cuBLAS": workspace}
    elif device.type != "cpu":
        found["GPU"] = device.type
    same_everywhere("what decides bits", found)
    return found


def no_agent_can_join() -> bool:
    """Whether torchrun was started for a number of nodes that may change, but each keeps its first store (torch 2.15).

    An agent that comes later then finds no address (`DistStoreError ... MASTER_ADDR`), or the others keep an old one.
    Of MIN:MAX a process is told nothing, so its agent is looked at.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    with contextlib.suppress(psutil.Error):
        words = psutil.Process().parent().cmdline()
        nodes = re.search(r"--nnodes[= ](\d+):(\d+)", " ".join(words)) or re.fullmatch(
            r"(\d+):(\d+)", os.environ.get("PET_NNODES", "")
        )
        return nodes is not None and int(nodes[1]) < int(nodes[2])
    return False


def is_first() -> bool:
    """Whether this process speaks for all; for its node, before the processes are connected."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    rank = os.environ.get("LOCAL_RANK", "")
    return not (rank.isdecimal() and int(rank))


def describe(accelerator: Accelerator) -> str:
    """The set-up in a few words, such as `2 processes on CPU (gloo), no mixed precision`."""
    world, device = accelerator.num_processes, accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    backend = f" ({dist.get_backend()})" if dist.is_initialized() else ""
    precision = "" if accelerator.mixed_precision == "no" else f", mixed precision {accelerator.mixed_precision}"
    return f"{world} process{'es' if world > 1 else ''} on {name}{backend}{precision}"


def versions() -> dict[str, str]:
    """Versions of what a result depends on, by name."""
    found = {"python": platform.python_version()}
    for package in ("mnist-dist", "torch", "torchvision", "accelerate", "wandb", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    if torch.cuda.is_available():
        newer = " (NCCL2)" if os.environ.get("TORCH_DIST_USE_NCCL2") else ""
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) + newer
    return found


def run(
    main: Callable[[], None], name: str, again: str = "run the same command with --output-dir {run} --resume"
) -> None:
    """Run a script's `main` and end the process with the status that the README promises.

    Once the processes are connected, a `UserError` is raised on all of them alike (see `all_or_none`), and the first
    one prints it. Before that every process of a node sees the same error, and the node's first one prints it. What
    else goes wrong is a process's own, and it says so itself.

    Args:
        main: does the work.
        name: what the user called, for messages.
        again: what goes on with a run that was stopped, for its folder.
    """
    status, bug, rank = 0, 0, os.environ.get("RANK", "0")
    # Many ranks share one log: all but the first say who they are.
    who = "" if rank == "0" else f"[rank {rank} on {os.environ.get('SLURMD_NODENAME', platform.node())}]: "
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started this
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    try:
        main()
    except BrokenPipeError:
        status = 1
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        print(f"{name}: error: it ended early, for whoever read its output, such as `head`, has left", file=sys.stderr)
    except (UserError, OSError) as error:
        status = getattr(error, "status", 1)
        if is_first():
            stopped = getattr(error, "run", None)
            folder = shell(stopped) if stopped else ""
            way = f": {again.format(run=folder)} to go on" if stopped else ""
            print(f"{name}: error: {explain(error)}{way}", file=sys.stderr)
        elif not dist.is_initialized():
            time.sleep(GRACE)  # a launcher that saw this one leave would end the first before it has spoken
        elif isinstance(error, OSError):
            print(f"{who}{name}: error: {explain(error)}", file=sys.stderr)
    except Exception as error:
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            print(
                f"{name}: error: process {rank} lost the connection to another, or has none ({cause(error)}): if one "
                "has died its own message says why; a training goes on from its last checkpoint with --resume",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)  # without the others there is nothing to take down together
        status = bug = 1
        message = traceback.format_exc()
        if any(kind.__module__ == "torch._dynamo.exc" for kind in type(error).__mro__):
            reason = str(error).strip().splitlines()[0]
            message = f"{name}: error: torch.compile failed ({reason}): install what it needs, or leave --compile out\n"
        print(textwrap.indent(message, who, lambda _: True), file=sys.stderr, end="")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # the shell's convention for SIGINT; at once, so nothing is finished
    if (connected := dist.is_initialized()) and not bug:
        for neighbour in NEIGHBOURS:
            neighbour.farewell()
        graphs.forget_all()
        dist.destroy_process_group()  # after a bug it would wait for what the others are in, on NCCL for ever
    sys.stdout.flush()
    sys.stderr.flush()
    if status == STATUS and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        # A torchrun that ends its processes for a node that joins makes those of the others end, too. One whose
        # process was gone before it had noticed the node would count a failure, and with none left to count give up.
        time.sleep(STAY)
    if connected:
        # Even then Python's own exit can abort in a thread that the group left behind (1 of 12 runs of two gloo
        # processes, torch 2.15), and a launcher would call a finished run failed. Nothing is left for it to do.
        os._exit(status)
    sys.exit(status)
