"""Batch normalisation over the global batch, on CPUs as well as on GPUs.

Torch's `SyncBatchNorm` does this on GPUs alone. Here each process computes the mean and the squared
deviations of its own rows, all processes exchange these, and each combines them in the same order,
so that statistics and running statistics have the same bits on every process. A process without
rows takes part with a count of 0.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .connections import gather_from_processes
from .errors import SingleProcessError, UserError


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A `BatchNorm` layer whose statistics are those of the rows of all processes.

    Never constructed: `compute_over_the_global_batch` changes the class of existing layers, which
    keep their parameters, buffers, names and hooks.

    Attributes:
        rows_are_shared: whether each process has rows of its own now, as in a loop over a prepared
            loader. Otherwise all processes have the same rows, and count them once. It is the same
            for all layers, and for copies of them, too.
    """

    rows_are_shared = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the global batch in training, and by the running statistics in evaluation mode.

        Args:
            input: (n, C, ...) on each process, n may be 0 on some of them. All processes make the
                same calls in the same order.

        Returns:
            As the input.

        Raises:
            ValueError: on every process, if there is a single value per channel in all.
        """
        uses_running_statistics = not self.training and self.running_mean is not None
        if uses_running_statistics or process_count() == 1 or not self.rows_are_shared:
            return nn.modules.batchnorm._BatchNorm.forward(self, input)
        return self._normalize_over_processes(input)

    def _normalize_over_processes(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of the batch, over all processes."""
        self._check_input_dim(input)
        output, mean, variance, count = NormalizeOverProcesses.apply(
            input, self.weight, self.bias, self.eps
        )
        if self.training and self.track_running_stats:
            self._move_running_statistics(mean, variance * count / (count - 1))
        return output

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Update the running statistics as `BatchNorm` does.

        With `momentum`, or as the cumulative average over all batches if it is None.
        """
        if self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = (
                0.0 if self.num_batches_tracked is None else 1 / self.num_batches_tracked.item()
            )
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)


class GlobalBatchNorm1d(GlobalBatchNorm, nn.BatchNorm1d):
    """`BatchNorm1d` over the global batch."""


class GlobalBatchNorm2d(GlobalBatchNorm, nn.BatchNorm2d):
    """`BatchNorm2d` over the global batch."""


class GlobalBatchNorm3d(GlobalBatchNorm, nn.BatchNorm3d):
    """`BatchNorm3d` over the global batch."""


class GlobalSyncBatchNorm(GlobalBatchNorm):
    """What `SyncBatchNorm` does, for any number of dimensions, on CPUs too.

    Not derived from it, for `DistributedDataParallel` refuses models with such layers on CPUs.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")


GLOBAL_CLASSES: dict[type[nn.Module], type[GlobalBatchNorm]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
    nn.BatchNorm3d: GlobalBatchNorm3d,
    nn.SyncBatchNorm: GlobalSyncBatchNorm,
}


def compute_over_the_global_batch(model: nn.Module) -> int:
    """Let a model's `BatchNorm` layers compute their statistics over the rows of all processes.

    Args:
        model: changed in place. Layers of classes derived from `BatchNorm`, whose forward pass is
            their own, are left as they are.

    Returns:
        How many layers were changed.
    """
    changed = 0
    for layer in model.modules():
        global_class = GLOBAL_CLASSES.get(type(layer))
        if global_class is not None:
            layer.__class__ = global_class
            changed += 1
    return changed


def global_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers of layers that compute over the global batch, which therefore are the same on every process."""
    layers = [layer for layer in model.modules() if isinstance(layer, GlobalBatchNorm)]
    return [buffer for layer in layers for buffer in layer.buffers()]


def process_count() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


class NormalizeOverProcesses(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over the rows of all processes.

    The gradient by the input is the one of Ioffe and Szegedy (2015), section 3, whose two sums are
    taken over all processes. Those by weight and bias are of this process's rows, as every layer's
    are; `ExactAccelerator` adds them up.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, eps):  # type: ignore[no-untyped-def]
        """Returns the output, and mean, biased variance and count per channel, of all processes."""
        mean, variance, count = global_statistics(input)
        values_here = input.numel() // max(input.shape[1], 1)
        if values_here <= 1 and count <= 1:  # for tiny shares: `count` syncs the GPU
            raise ValueError(
                "Expected more than 1 value per channel when training, over all processes: "
                f"this one has input of size {tuple(input.shape)}"
            )
        ctx.save_for_backward(input, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        if input.numel() == 0:
            output = torch.empty_like(input)
        else:
            output = F.batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):  # type: ignore[no-untyped-def]
        """Returns the gradients by the input, weight and bias; these cannot be differentiated again."""
        input, weight, mean, variance, count = ctx.saved_tensors
        shape = per_channel(input)
        inverse_deviation = torch.rsqrt(variance + ctx.eps)
        scale = inverse_deviation if weight is None else inverse_deviation * weight.to(mean.dtype)
        gradient = gradient.to(mean.dtype)
        centred = input.to(mean.dtype) - mean.view(shape)
        dimensions = all_but_channels(input)
        of_bias = gradient.sum(dimensions)
        of_weight = (gradient * centred).sum(dimensions) * inverse_deviation

        both = sum_over_processes(torch.cat([of_bias, of_weight])) / count
        mean_of_bias, mean_of_weight = both.chunk(2)
        slope = (mean_of_weight * inverse_deviation).view(shape)
        of_input = (gradient - mean_of_bias.view(shape) - centred * slope) * scale.view(shape)
        if weight is None:
            return of_input.to(input.dtype), None, None, None
        return of_input.to(input.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def global_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values per channel, over the rows of all processes.

    Args:
        input: (n, C, ...), n may be 0.

    Returns:
        (C,), (C,) and a scalar. Half precision is computed in float32.
    """
    channels = input.shape[1]
    precise = input.to(torch.promote_types(input.dtype, torch.float32))
    values = input.numel() // channels if channels else 0
    if values:
        own_mean, own_variance = mean_and_variance(precise)
    else:
        own_variance = own_mean = precise.new_zeros(channels)
    of_this_process = torch.cat([own_mean, own_variance * values, precise.new_tensor([values])])
    of_all = gather_from_processes(of_this_process)
    means, squares, counts = of_all.split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    # The squared deviations from one's own mean, and those of that mean (Chan, Golub and LeVeque, 1983).
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, variance, count


def mean_and_variance(input: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each channel, over the rows of this process."""
    if input.is_cpu:  # the kernel of BatchNorm's own forward pass, three times as fast there
        return torch.batch_norm_update_stats(input, None, None, 0.0)
    variance, mean = torch.var_mean(input, all_but_channels(input), correction=0)
    return mean, variance


def all_but_channels(input: Tensor) -> list[int]:
    """The dimensions that statistics are taken over."""
    return [0, *range(2, input.ndim)]


def per_channel(input: Tensor) -> list[int]:
    """The shape with which a (C,) tensor is broadcast over an input."""
    return [1, input.shape[1], *[1] * (input.ndim - 2)]


def sum_over_processes(own: Tensor) -> Tensor:
    """The sum, added up in the order of the ranks on every process, and so with the same bits."""
    return gather_from_processes(own).sum(0)


def refuse_pieces(model: nn.Module) -> None:
    """Raise if a BatchNorm layer would see its batch in pieces.

    Raises:
        UserError: names the layer.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, GlobalBatchNorm) and layer.training:
            raise UserError(
                f"{type(layer).__name__.removeprefix('Global')} {name} needs all rows of a batch at once, and "
                "micro_batches gives them in pieces: leave micro_batches at 1, or use virtual_processes"
            )


def watch_for_single_values(model: nn.Module, shares: int) -> None:
    """Let BatchNorm layers say what to do about a share that is too small to normalise.

    Only the forward pass shows it, because it takes a share of one sample and maps of one pixel.

    Args:
        model: with virtual processes; its layers see a share at a time.
        shares: V.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(partial(refuse_single_values, name, shares))


def refuse_single_values(name: str, shares: int, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise before a layer's forward pass in training if there is one value per channel.

    Raises:
        SingleProcessError: only on the process that works on this share.
    """
    if layer.training and isinstance(inputs[0], Tensor) and inputs[0].shape[:1] == (1,):
        values = inputs[0][0, :1].numel()
        if values == 1:
            raise SingleProcessError(
                f"{type(layer).__name__} {name} got a share with a single value per channel, which it cannot "
                "normalise: set drop_last=True, or choose a batch size whose last batch in an epoch has at least "
                f"2 samples for each of the {shares} virtual processes"
            )
