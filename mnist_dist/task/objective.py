"""What a training of a digit classifier is made of: its optimizer, schedule, loss, and average of the weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mnist_dist.core.batches import Batch
from mnist_dist.core.training import Loss
from mnist_dist.task.distortions import distort, dropout
from mnist_dist.task.networks import MNISTNet
from mnist_dist.task.schedules import learning_rate
from mnist_dist.task.settings import Settings


def adam(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (AdamW, Loshchilov and Hutter 2019); without decay it is Adam, bit for bit."""
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def schedule(settings: Settings, updates: int) -> Callable[[int], float]:
    """The share of the peak rate for each update, by its number from 0, in a run of so many."""
    return lambda step: learning_rate(step, updates, schedule=settings.schedule, warmup=settings.warmup)


def loss_of(network: MNISTNet, settings: Settings) -> Loss:
    """The cross-entropy (nats) summed over a batch's samples, distorted and with dropout as the settings say.

    Args:
        network: bare; says what of it can be dropped.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch.data
        if settings.affine or settings.elastic:
            images = distort(images, batch, affine=settings.affine, elastic=settings.elastic)
        masks = dropout(network.outputs, batch, share=settings.dropout) if settings.dropout else []
        return F.cross_entropy(model(images, *masks), labels, reduction="sum", label_smoothing=settings.label_smoothing)

    return loss


def average(model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> AveragedModel:
    """A moving average of the weights that every update moves on (Polyak and Juditsky 1992).

    Args:
        model: the bare network, on its device.
        decay: share of the average that an update keeps, in [0, 1).

    Returns:
        Has the network with the averaged weights in its attribute `module`; the same on all processes, as the weights.
    """
    averaged = AveragedModel(model)
    mine, theirs = (list[Tensor](each.parameters()) for each in (averaged.module, model))

    @torch.no_grad()
    def follow(*_: object) -> None:
        # fp16's scaler leaves it to the fused optimizer to skip an update whose gradient overflowed; to ask is to wait.
        if not getattr(optimizer, "found_inf", False):
            # `update_parameters` would copy its counter from the CPU to the device, and wait for that.
            torch._foreach_lerp_(mine, theirs, 1 - decay if averaged.n_averaged else 1.0)
            averaged.n_averaged += 1

    optimizer.register_step_post_hook(follow)
    return averaged
