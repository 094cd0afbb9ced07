"""Teachers for knowledge distillation: trained models whose predictions another model learns."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from mnist_dist.core.agreement import all_or_none, check_same_across_processes
from mnist_dist.core.errors import UserError
from mnist_dist.core.output import warn
from mnist_dist.digits.trained import TrainedModel, locate
from mnist_dist.run.weights import fingerprint, load_weights
from mnist_dist.task.data import DataSplits
from mnist_dist.task.networks import MNISTNet, from_state_dict
from mnist_dist.task.settings import Settings


def load_teachers(settings: Settings, samples: DataSplits, device: torch.device) -> list[MNISTNet]:
    """Load the models that a training is to learn from. Every process must call this.

    Args:
        settings: those of the training, which name the teachers and the arithmetic.
        samples: the data of the training.
        device: where the teachers are to be.

    Returns:
        The teachers, in eval mode and without gradients.

    Raises:
        UserError: on every process, if a teacher is not a model of ours, was trained on other data, or
            differs between the processes.
    """
    dtype = getattr(torch, settings.dtype)
    teachers = []
    with all_or_none():
        for path in settings.teacher:
            trained = locate(path)
            refuse_other_data(path, trained, samples)
            try:
                network = from_state_dict(load_weights(trained.weights))
            except UserError as error:
                raise UserError(f"--teacher {path} cannot teach: {error}") from error
            network.requires_grad_(False)
            teachers.append(network.to(device, dtype))
            warn_of_seen(path, trained, settings, samples)
    check_same_across_processes("the teachers", teachers_digest(teachers))
    return teachers


def refuse_other_data(path: Path, trained: TrainedModel, samples: DataSplits) -> None:
    """Refuse a teacher that would not understand the images.

    Args:
        path: what the user calls the teacher.
        trained: what is known of it.
        samples: the data of the training.

    Raises:
        UserError: the teacher was trained on other data, or on images normalised otherwise.
    """
    if trained.dataset == "auto":  # it is not known on what
        return
    known = (trained.dataset, trained.mean, trained.std)
    if known != (samples.name, samples.mean, samples.std):
        raise UserError(
            f"--teacher {path} was trained on {trained.dataset} "
            f"(mean {trained.mean}, std {trained.std}), but this run uses {samples.name} "
            f"({samples.mean}, {samples.std}): give teachers trained on the same data"
        )


def warn_of_seen(
    path: Path, trained: TrainedModel, settings: Settings, samples: DataSplits
) -> None:
    """Warn if a teacher may have been trained on samples that are held out here.

    Args:
        path: what the user calls the teacher.
        trained: what is known of it.
        settings: those of the training.
        samples: the data of the training.
    """
    if not samples.val or not PartialState().is_main_process:
        return
    held_out = (trained.val_size, trained.seed)
    if held_out != (settings.val_size, settings.seed):
        warn(
            f"--teacher {path} may have seen samples that are held out here: the validation "
            "accuracy will be too optimistic"
        )


def teachers_digest(teachers: Sequence[nn.Module]) -> str | None:
    """Compute a digest of the weights of all teachers, in order.

    Args:
        teachers: the teachers.

    Returns:
        SHA-256, hexadecimal. None if there are no teachers.
    """
    if not teachers:
        return None
    digests = [fingerprint(teacher.state_dict()) for teacher in teachers]
    return hashlib.sha256(repr(digests).encode()).hexdigest()
