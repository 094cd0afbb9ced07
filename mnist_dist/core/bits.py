"""What decides the bits of a computation beside its numbers, and how it is fixed for virtual processes."""

import os
from typing import Any

import torch

from .agreement import same_everywhere


def fix_bits(device: torch.device) -> dict[str, Any]:
    """Let bits depend on nothing but the kind of device: one thread a process, and deterministic kernels on a GPU.

    Args:
        device: of this process.

    Returns:
        What bits depend on, by name: all processes have it, and a training that goes on must have
        it again.

    Raises:
        UserError: on every process, if they differ in it.
    """
    torch.set_num_threads(1)  # sums are cut by threads
    found: dict[str, Any] = {
        "threads a process": 1,
        "torch": str(torch.__version__),
        "CPU": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        # NCCL's choice of an algorithm decides nothing: gradients are sent and received, and added
        # here.
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        found["GPU"] = torch.cuda.get_device_name(device)
        found["cuDNN"] = torch.backends.cudnn.version()
        found["cuBLAS"] = workspace
    elif device.type != "cpu":
        found["GPU"] = device.type
    same_everywhere("what decides bits", found)
    return found
