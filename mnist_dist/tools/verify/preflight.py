"""Before a training can be compared: what must be equal on all processes, and what must not."""

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from mnist_dist.core import UserError
from mnist_dist.core.errors import explain
from mnist_dist.run import launch, provenance, weights
from mnist_dist.task import data, datasets
from mnist_dist.task.data import DataSplits, Split
from mnist_dist.task.datasets import MNIST_NORMALIZATION
from mnist_dist.task.settings import DataConfig
from mnist_dist.tools.verify.answer import Check, Process

LOOKED_AT = 1000  # samples of a split whose pixels are checked, evenly spaced
WHITE = 255  # the largest grey value
ROUNDING = 1e-6  # of a grey value that was normalised, and back
LARGEST_LABEL = 9
LONG = 200  # letters of a value that is not printed whole


def introduce(accelerator: Accelerator) -> Process:
    """Return what this process says of itself.

    Args:
        accelerator: the processes.
    """
    device = accelerator.device
    gpu = ""
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        gpu = str(getattr(properties, "uuid", ""))
    versions = [f"{name} {version}" for name, version in launch.versions().items()]
    return Process(
        rank=accelerator.process_index,
        node=platform.node(),
        device=device.type,
        gpu=gpu,
        gpus=torch.cuda.device_count(),
        backend=dist.get_backend() if dist.is_initialized() else "none",
        threads=torch.get_num_threads(),
        versions=", ".join(versions),
        code=provenance.code_digest(),
        data="",
    )


def digests(samples: DataSplits) -> dict[str, str]:
    """Return digests of the files, and of every tensor that a training and its tests are given."""
    found = {"files": samples.digest}
    splits = {"train": samples.train, "test": samples.test, "validation": samples.val}
    for name, split in splits.items():
        if split:
            found[f"{name} labels"] = weights.fingerprint({"": split.labels})
            found[f"{name} pixels"] = weights.fingerprint({"": split.images})
    return found


def faults_in_data(samples: DataSplits) -> list[str]:
    """Find what is not a normalised image of grey values from 0 to 255, or a label from 0 to 9.

    Args:
        samples: the data set.

    Returns:
        What is wrong, in words.
    """
    mean = samples.mean
    std = samples.std
    if samples.name.startswith("mnist"):  # in which case it must be this, whatever is claimed
        mean, std = MNIST_NORMALIZATION
    faults = []
    for name, split in {"train": samples.train, "test": samples.test}.items():
        if not has_grey_values(split, mean, std):
            faults.append(f"{name} pixels are not grey values less {mean}, divided by {std}")
        are_labels = (split.labels >= 0) & (split.labels <= LARGEST_LABEL)
        if not bool(are_labels.all()):
            faults.append(f"{name} labels are not from 0 to {LARGEST_LABEL}")
    return faults


def has_grey_values(split: Split, mean: float, std: float) -> bool:
    """Return whether the images of a split were made of whole grey values.

    Args:
        split: images and labels.
        mean, std: what the images should be normalised with.
    """
    step = max(1, len(split) // LOOKED_AT)
    grey = (split.images[::step] * std + mean) * WHITE
    is_whole = (grey - grey.round()).abs() < ROUNDING
    is_in_range = grey.min() > -1 and grey.max() < WHITE + 1
    return bool(is_whole.all() and is_in_range)


def own_files(choice: DataConfig) -> str:
    """Return what this process's own files are, in words.

    Args:
        choice: which data, and where they are.
    """
    name: str = choice.dataset
    if name == "auto":
        is_there = datasets.on_disk("mnist", choice.data_dir)
        name = "mnist" if is_there else "mnist-5k"
    try:
        samples = data.load(name, choice.data_dir)
    except (UserError, OSError) as error:
        return f"{name}, which cannot be read: {explain(error)}"
    digest = hashlib.sha256(samples.digest.encode()).hexdigest()  # of those of all files
    return f"{name} with digest {digest[:12]}"


def check_processes(processes: Sequence[Process], meant: int, set_up: str) -> Check:
    """Check that there are as many processes as meant, each on a device of its own, all alike.

    Args:
        processes: all of them.
        meant: their number; 0: any.
        set_up: what they are, in words.

    Returns:
        A line, which fails also if some processes work on a GPU and others on the CPU.
    """
    faults = []
    if meant and len(processes) != meant:
        advice = "start them through torchrun, accelerate launch or slurm/train.sbatch"
        count = f"{meant} processes were expected, and {len(processes)} connected"
        faults.append(f"{count}: {advice}")
    faults += shared_gpus(processes)
    faults += odd_devices(processes)
    nodes = Counter(process.node for process in processes)
    places = ", ".join(f"{count} on {node}" for node, count in nodes.items())
    detail = f"{set_up}; {places}; {threads_in_words(processes)}"
    return Check("processes", not faults, detail, "; ".join(faults))


def threads_in_words(processes: Sequence[Process]) -> str:
    """Return with how many threads each process calculates."""
    ranks: dict[int, list[str]] = {}
    for process in processes:
        ranks.setdefault(process.threads, []).append(str(process.rank))
    if len(ranks) == 1:
        return f"{processes[0].threads} thread(s) each"
    parts = [f"{count} thread(s) on process {' '.join(who)}" for count, who in ranks.items()]
    return ", ".join(parts)


def shared_gpus(processes: Sequence[Process]) -> list[str]:
    """Find GPUs that several processes share, in words."""
    faults = []
    users = Counter(process.gpu for process in processes if process.gpu)
    for gpu, count in users.items():
        if count > 1:
            sharing = [process.rank for process in processes if process.gpu == gpu]
            faults.append(f"processes {sharing} share one GPU ({gpu}): start one process per GPU")
    return faults


def odd_devices(processes: Sequence[Process]) -> list[str]:
    """Find processes on another kind of device than most, in words."""
    devices = Counter(process.device for process in processes)
    if len(devices) <= 1:
        return []
    rare = min(devices, key=devices.__getitem__)
    odd = in_words(process for process in processes if process.device == rare)
    return [f"process {odd} runs on {rare}: look at its driver and CUDA_VISIBLE_DEVICES"]


def in_words(processes: Iterable[Process]) -> str:
    """Return some processes by number and node."""
    return ", ".join(f"{process.rank} on {process.node}" for process in processes)


def check_equal(processes: Sequence[Process]) -> list[Check]:
    """Check that versions and code are the same everywhere.

    Args:
        processes: all of them.
    """
    return [
        equal(
            "versions",
            processes,
            lambda process: process.versions,
            "install the same environment on every node",
        ),
        equal(
            "code",
            processes,
            lambda process: process.code,
            "put the same checkout on every node",
        ),
    ]


def equal(
    name: str,
    processes: Sequence[Process],
    value: Callable[[Process], str],
    advice: str,
) -> Check:
    """Check that all processes have the value that most have.

    Args:
        name: what is checked.
        processes: all of them.
        value: what a process has.
        advice: what to do if they differ.
    """
    values = Counter(value(process) for process in processes)
    ((common, _),) = values.most_common(1)
    odd = [process for process in processes if value(process) != common]
    if odd:
        return Check(name, False, f"process {in_words(odd)} differs", advice)
    is_readable = len(common) < LONG and " " in common
    shown = common if is_readable else f"digest {common[:12]}"
    return Check(name, True, f"{shown} everywhere", advice)
