"""What decides the bits of a run with virtual processes, and that all processes have the same."""

import os
from typing import Any

import torch
from accelerate import PartialState

from mnist_dist.core.agreement import same_everywhere
from mnist_dist.core.errors import UserError


def fix_bits(virtual: int, cuda_graph: bool = False) -> dict[str, Any]:
    """Let the bits of a run with virtual processes depend only on what this returns.

    Args:
        virtual: the number of virtual processes. With 0 there are none, and nothing is changed.
        cuda_graph: whether updates will be CUDA graphs. Several processes cannot send each other
            their sums from within one.

    Returns:
        What a run must have again when it is resumed, by name. Empty without virtual processes.

    Raises:
        UserError: on every process, if the processes differ in it, or if graphs cannot be had.
    """
    if not virtual:
        return {}
    state = PartialState()
    if cuda_graph and state.num_processes > 1:
        reason = "--cuda-graph with --virtual-processes is for one process"
        raise UserError(f"{reason}: leave one of them out")
    torch.set_num_threads(1)  # threads divide a sum among them, which decides its rounding
    found: dict[str, Any] = {
        "threads a process": 1,
        "torch": str(torch.__version__),
        "CPU": torch.backends.cpu.get_cpu_capability(),
    }
    if state.device.type == "cuda":
        found |= fix_bits_of_cuda()
    elif state.device.type != "cpu":
        found["GPU"] = state.device.type
    same_everywhere("what decides bits", found)
    return found


def fix_bits_of_cuda() -> dict[str, Any]:
    """Let an NVIDIA GPU compute the same bits every time.

    NCCL's choice of an algorithm decides nothing here: it adds zeros alone, and gradients are sent
    and received.

    Returns:
        What else the bits depend on, by name.
    """
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return {
        "GPU": torch.cuda.get_device_name(),
        "cuDNN": torch.backends.cudnn.version(),
        "cuBLAS": workspace,
    }
