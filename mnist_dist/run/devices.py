"""The device and the arithmetic of a process: what is chosen, and what is refused."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from mnist_dist.core.errors import UserError
from mnist_dist.run.environment import TRUE

NVIDIA = Path("/proc/driver/nvidia/gpus")  # where the NVIDIA driver lists the GPUs of a machine


def must_use_cpu(cpu: bool) -> bool:
    """Decide whether this process works on the CPU.

    Args:
        cpu: whether the user asked for it.

    Returns:
        True if the user or the launcher asked for the CPU, or if the machine has no GPU.

    Raises:
        UserError: there is a GPU, but PyTorch cannot use it.
    """
    if cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE:
        return True
    if torch.accelerator.is_available():
        return False
    refuse_a_gpu_that_cannot_be_used(os.environ)
    return True


def refuse_a_gpu_that_cannot_be_used(environ: Mapping[str, str]) -> None:
    """Do not fall back to the CPU on a machine that has a GPU.

    Args:
        environ: the environment variables of the process.

    Raises:
        UserError: the NVIDIA driver lists a GPU which nobody has hidden, and PyTorch cannot use it.
    """
    is_hidden = environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if is_hidden or not any(NVIDIA.glob("*")):
        return
    raise UserError(
        f"there is an NVIDIA GPU that cannot be used ({why_cuda_is_missing()}): check its driver "
        f"(this PyTorch needs CUDA {torch.version.cuda or 'support'}) and CUDA_VISIBLE_DEVICES, or "
        "give --cpu"
    )


def why_cuda_is_missing() -> str:
    """Say in a few words why PyTorch does not see a GPU."""
    if not torch.version.cuda:
        return f"this PyTorch, {torch.__version__}, is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # such as a driver that is older than its CUDA
        first_line, *_ = str(error).splitlines()
        return first_line.rstrip(".")
    return "PyTorch sees none"


def set_float32_multiplication(tf32: bool, cpu: bool) -> None:
    """Decide how a GPU multiplies float32 numbers. PyTorch by itself uses TF32 in convolutions.

    Args:
        tf32: whether to use TF32, which is faster and less exact.
        cpu: whether this process works on the CPU.

    Raises:
        UserError: TF32 was asked for without an NVIDIA GPU.
    """
    if tf32 and (cpu or not torch.cuda.is_available()):
        raise UserError("--tf32 is for NVIDIA GPUs: leave it out")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def check_one_gpu_per_process() -> None:
    """Refuse more processes on a node than it has NVIDIA GPUs.

    Raises:
        UserError: some processes would have to share a GPU.
    """
    if not torch.cuda.is_available():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if processes > gpus:
        found = f"{processes} processes were started on a node with {gpus} GPU(s)"
        raise UserError(f"{found}: start one process per GPU, or use --cpu")


def choose_precision(asked_for: str | None, dtype: torch.dtype, cpu: bool) -> str:
    """Choose the mixed precision of Accelerate.

    Args:
        asked_for: "no", "fp16", "bf16", or None for what the launcher asked for.
        dtype: the arithmetic of the model.
        cpu: whether this process works on the CPU.

    Returns:
        "no", "fp16" or "bf16".

    Raises:
        UserError: the precision is not offered, or contradicts the device or the arithmetic.
    """
    precision = asked_for or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "fp16", "bf16"):
        raise UserError(f"mixed precision {precision!r} is not offered: use no, fp16 or bf16")
    if precision == "fp16" and cpu:
        reason = "--mixed-precision fp16 needs a GPU for its gradient scaling"
        raise UserError(f"{reason}: use bf16 or no on the CPU")
    if precision != "no" and dtype == torch.float64:
        reason = f"--dtype float64 contradicts --mixed-precision {precision}"
        raise UserError(f"{reason}: choose one of them")
    return precision
