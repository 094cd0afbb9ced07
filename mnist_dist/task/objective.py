"""Building blocks for training a digit classifier: optimizer, schedule, loss, and weight averaging."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from mnist_dist.task.distortions import Rand, distort, dropout
from mnist_dist.task.networks import MNISTNet
from mnist_dist.task.schedules import learning_rate
from mnist_dist.task.settings import Settings

Loss = Callable[[nn.Module, Tensor, Tensor, Rand], Tensor]


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (AdamW, Loshchilov and Hutter 2019); without decay it is Adam, bit for bit."""
    return torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )


def make_scheduler(optimizer: torch.optim.Optimizer, settings: Settings, updates: int) -> LambdaLR:
    """The learning-rate scheduler of a run with a given number of updates; step it after each one."""

    def share_of_peak(update: int) -> float:
        # The scheduler asks once more, after the last update.
        return learning_rate(
            min(update, updates - 1), updates, schedule=settings.schedule, warmup=settings.warmup
        )

    return LambdaLR(optimizer, share_of_peak)


def make_loss(network: MNISTNet, settings: Settings, teachers: Sequence[nn.Module] = ()) -> Loss:
    """Make the loss function: mean cross-entropy (nats), with distortions and dropout as configured.

    Args:
        network: the unwrapped network, whose `outputs` give the shapes of the dropout masks.
        settings: of the training.
        teachers: models in eval mode, whose `divergence` is a share of the loss as the settings
            say.

    Returns:
        A function of the model, images (n, 1, 28, 28), labels (n,), and what draws random numbers
        for these n samples, such as `accelerator.micro_batch.rand`. It gives a scalar.
    """

    def loss(model: nn.Module, images: Tensor, labels: Tensor, rand: Rand) -> Tensor:
        if settings.affine or settings.elastic:
            images = distort(images, rand, affine=settings.affine, elastic=settings.elastic)
        masks = dropout(network.outputs, rand, share=settings.dropout) if settings.dropout else []
        logits = model(images, *masks)
        of_labels = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if not teachers:
            return of_labels
        of_teachers = divergence(logits, images, teachers, settings.temperature)
        share = settings.teacher_share
        return (1 - share) * of_labels + share * of_teachers

    return loss


def divergence(
    logits: Tensor, images: Tensor, teachers: Sequence[nn.Module], temperature: float
) -> Tensor:
    """The distillation loss: divergence from the teachers' mean prediction (Hinton et al. 2015).

    Args:
        logits: (n, 10), the network's.
        images: (n, 1, 28, 28), distorted as the network saw them.
        temperature: T, by which all logits are divided.

    Returns:
        T^2 times the Kullback-Leibler divergence (nats), averaged over the samples; the factor
        keeps the scale of the gradient independent of T.
    """
    with torch.no_grad():
        of_each = [F.softmax(teacher(images) / temperature, dim=1) for teacher in teachers]
        taught = torch.stack(of_each).mean(dim=0)
    learned = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(learned, taught, reduction="batchmean")


def make_average(model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> AveragedModel:
    """Make a moving average of the weights, which every update moves on (Polyak and Juditsky 1992).

    Args:
        model: the unwrapped network, on its device.
        optimizer: the optimizer of its weights; a hook on its step updates the average.
        decay: share of the average that an update keeps, in [0, 1).

    Returns:
        An `AveragedModel`, whose `module` is the network with the averaged weights.
    """
    averaged = AveragedModel(model)
    mine, theirs = (list[Tensor](each.parameters()) for each in (averaged.module, model))

    @torch.no_grad()
    def follow(*_: object) -> None:
        # With fp16, the fused optimizer itself skips an update whose gradient overflowed. Reading
        # `found_inf` waits for the device.
        if not getattr(optimizer, "found_inf", False):
            # `update_parameters` would copy its counter from the CPU to the device, and wait for
            # that.
            torch._foreach_lerp_(mine, theirs, 1 - decay if averaged.n_averaged else 1.0)
            averaged.n_averaged.fill_(1)  # begun

    optimizer.register_step_post_hook(follow)
    return averaged
