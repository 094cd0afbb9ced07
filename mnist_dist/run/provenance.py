"""The provenance of a result: code, machine, versions, and the command that started it.

A run notes all this for its readers. None of it is compared when the run is resumed.
"""

import hashlib
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mnist_dist.run import launch
from mnist_dist.run.versions import versions
from mnist_dist.shell import shell

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent  # of the repository, unless the package is installed by itself
DESCRIBE = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*"


def about(accelerator: Accelerator) -> dict[str, Any]:
    """Collect what a reader of a result asks for, and what is needed to reproduce it.

    Args:
        accelerator: the Accelerator of this process.

    Returns:
        JSON values by name.
    """
    now = datetime.now(UTC)
    return {
        "set_up": launch.describe(accelerator),
        "num_processes": accelerator.num_processes,
        "command": shell(*sys.orig_argv),
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "code": code_digest(),
        "processor": processor(accelerator.device),
        # Per process. On a CPU, the number of threads affects rounding.
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def code_digest() -> str:
    """Compute a digest of train.py, evaluate.py and all of the package.

    Returns:
        SHA-256 of the files' names, lengths and bytes, hexadecimal.
    """
    files = {path.relative_to(CHECKOUT).as_posix(): path for path in PACKAGE.rglob("*.py")}
    for name in ("train.py", "evaluate.py"):  # by the same names in the repository and in the wheel
        path = files.pop(f"mnist_dist/scripts/{name}", CHECKOUT / name)
        if path.exists():
            files[name] = path
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def commit() -> str | None:
    """Find the commit of the checkout.

    Returns:
        Its hash, with `-dirty` behind it if files differ from it. None without checkout or git.
    """
    # Without this, git would answer for a repository that happens to lie around the package.
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        found = subprocess.run(
            DESCRIBE.split(),
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def processor(device: torch.device) -> str:
    """Find the name of the processor in use.

    Args:
        device: the device of this process.

    Returns:
        The name of the GPU or, on a CPU, of the CPU, as far as the system tells it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    return cpu_name() or platform.processor() or platform.machine()


def cpu_name() -> str | None:
    """Find the name of the CPU as Linux tells it, or None on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("model name"):
            _, _, name = line.partition(":")
            return name.strip()
    return None
