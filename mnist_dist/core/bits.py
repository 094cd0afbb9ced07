"""Everything besides its inputs that affects a computation's exact result, pinned for virtual processes."""

import os
from typing import Any

import torch

from .agreement import check_same_across_processes


def make_deterministic(device: torch.device) -> dict[str, Any]:
    """Make results depend only on the type of device: one thread per process, deterministic GPU kernels.

    Args:
        device: of this process.

    Returns:
        The settings that still affect exact results, by name. They are equal on all processes, and
        must be equal again when the training is resumed.

    Raises:
        UserError: on every process, if they differ in it.
    """
    torch.set_num_threads(1)  # the thread count decides how sums are split
    found: dict[str, Any] = {
        "threads per process": 1,
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
    check_same_across_processes("the numerical environments", found)
    return found
