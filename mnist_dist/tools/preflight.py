"""Before a training can be compared: what must be equal on all processes, and what must not."""

import hashlib
import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from mnist_dist.core import UserError
from mnist_dist.core.processes import explain
from mnist_dist.run import launch, origin, weights
from mnist_dist.task import data, datasets
from mnist_dist.task.data import DataSet
from mnist_dist.task.settings import DataConfig
from mnist_dist.tools.answer import Check, Process


def introduce(accelerator: Accelerator) -> Process:
    """What this process says of itself."""
    device = accelerator.device
    properties: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Process(
        rank=accelerator.process_index,
        node=platform.node(),
        device=device.type,
        gpu=str(getattr(properties, "uuid", "")),
        gpus=torch.cuda.device_count(),
        backend=dist.get_backend() if dist.is_initialized() else "none",
        threads=torch.get_num_threads(),
        versions=", ".join(f"{name} {version}" for name, version in launch.versions().items()),
        code=origin.code_digest(),
        data="",
    )


def digests(samples: DataSet) -> dict[str, str]:
    """Of the files, and of every tensor that a training and its tests are given."""
    found = {"files": samples.digest}
    for name, split in {"train": samples.train, "test": samples.test, "validation": samples.val}.items():
        if split:
            found[f"{name} labels"] = weights.fingerprint({"": split.labels})
            found[f"{name} pixels"] = weights.fingerprint({"": split.images})
    return found


def strange(samples: DataSet) -> list[str]:
    """What is not a normalised image of grey values from 0 to 255, or a label from 0 to 9, in words."""
    mean, std = (0.1307, 0.3081) if samples.name.startswith("mnist") else (samples.mean, samples.std)
    faults = []
    for name, split in {"train": samples.train, "test": samples.test}.items():
        pixels = (split.images[:: max(1, len(split) // 1000)] * std + mean) * 255
        if not bool(((pixels - pixels.round()).abs() < 1e-6).all() and pixels.min() > -1 and pixels.max() < 256):
            faults.append(f"{name} pixels are not grey values less {mean}, divided by {std}")
        if not bool(((split.labels >= 0) & (split.labels <= 9)).all()):
            faults.append(f"{name} labels are not from 0 to 9")
    return faults


def reading(choice: DataConfig) -> str:
    """What this process's own files are, in words."""
    name = choice.dataset
    if name == "auto":
        name = "mnist" if datasets.on_disk("mnist", choice.data_dir) else "mnist-5k"
    try:
        digest = hashlib.sha256(data.load(name, choice.data_dir).digest.encode()).hexdigest()  # of those of all files
        return f"{name} with digest {digest[:12]}"
    except (UserError, OSError) as error:
        return f"{name}, which cannot be read: {explain(error)}"


def check_processes(processes: list[Process], meant: int, set_up: str) -> Check:
    """As many as meant, unless that is 0, each on a device of its own, all on the same kind."""
    nodes = Counter(process.node for process in processes)
    detail = f"{set_up}; " + ", ".join(f"{count} on {node}" for node, count in nodes.items())
    threads = Counter(process.threads for process in processes)
    same = f"{processes[0].threads} thread(s) each"
    ranks = {count: [str(p.rank) for p in processes if p.threads == count] for count in threads}
    other = ", ".join(f"{count} thread(s) on process {' '.join(who)}" for count, who in ranks.items())
    detail += f"; {same if len(threads) == 1 else other}"
    faults: list[str] = []
    if meant and len(processes) != meant:
        faults.append(
            f"{meant} processes were meant and {len(processes)} are connected: start them through torchrun, "
            "accelerate launch or slurm/train.sbatch"
        )
    shared = [gpu for gpu, count in Counter(p.gpu for p in processes if p.gpu).items() if count > 1]
    for gpu in shared:
        sharing = [process.rank for process in processes if process.gpu == gpu]
        faults.append(f"processes {sharing} share one GPU ({gpu}): start one process per GPU")
    devices = Counter(process.device for process in processes)
    if len(devices) > 1:
        rare = min(devices, key=lambda device: devices[device])
        odd = [f"{process.rank} on {process.node}" for process in processes if process.device == rare]
        faults.append(f"process {', '.join(odd)} runs on {rare}: look at its driver and CUDA_VISIBLE_DEVICES")
    return Check("processes", not faults, detail, "; ".join(faults))


def check_equal(processes: list[Process]) -> list[Check]:
    """The same versions and code everywhere."""
    return [
        equal("versions", processes, lambda process: process.versions, "install the same environment on every node"),
        equal("code", processes, lambda process: process.code, "put the same checkout on every node"),
    ]


def equal(name: str, processes: list[Process], value: Callable[[Process], str], advice: str) -> Check:
    """That all processes have the value that most have."""
    values = Counter(value(process) for process in processes)
    common = values.most_common(1)[0][0]
    odd = [f"{process.rank} on {process.node}" for process in processes if value(process) != common]
    shown = common if len(common) < 200 and " " in common else f"digest {common[:12]}"
    return Check(name, not odd, f"{shown} everywhere" if not odd else f"process {', '.join(odd)} differs", advice)
