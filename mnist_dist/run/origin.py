"""Where a result comes from: code, machine, versions, and the command that began it. None of it is compared."""

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
from mnist_dist.shell import shell

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent  # of the repository, unless the package is installed by itself


def about(accelerator: Accelerator) -> dict[str, Any]:
    """JSON values by name: what a reader of a result asks for, and who starts it anew needs."""
    return {
        "set_up": launch.describe(accelerator),
        "num_processes": accelerator.num_processes,
        "command": shell(*sys.orig_argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "code": code_digest(),
        "processor": processor(accelerator.device),
        "threads": torch.get_num_threads(),  # of each process: on a CPU they decide the last bits
        "versions": launch.versions(),
    }


def code_digest() -> str:
    """Hexadecimal SHA-256 of train.py, evaluate.py and all of the package: their names and their bytes."""
    scripts = [path for path in (CHECKOUT / "train.py", CHECKOUT / "evaluate.py") if path.exists()]
    digest = hashlib.sha256()
    for path in sorted([*scripts, *PACKAGE.rglob("*.py")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(CHECKOUT).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of the checkout, with `-dirty` behind it if files differ from it; None without checkout or git."""
    if not (CHECKOUT / ".git").exists():  # or git would answer for a repository that happens to lie around
        return None
    describe = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*".split()
    try:
        found = subprocess.run(describe, cwd=CHECKOUT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def processor(device: torch.device) -> str:
    """The name of the GPU or, on a CPU, of that, as far as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
