"""The versions of the software that a result depends on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("mnist-dist", "torch", "torchvision", "accelerate", "wandb", "numpy")


def versions() -> dict[str, str]:
    """Find the versions of Python, of packages, and of CUDA's libraries if there is a GPU.

    Returns:
        A version, or a remark that there is none, by name.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = package_version(package)
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["nccl"] = nccl_version()
    return found


def package_version(package: str) -> str:
    """Find the version of an installed package, or say that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def nccl_version() -> str:
    """Find the version of NCCL, and whether PyTorch uses its second interface to it."""
    number = ".".join(map(str, torch.cuda.nccl.version()))
    if os.environ.get("TORCH_DIST_USE_NCCL2"):
        return f"{number} (NCCL2)"
    return number
