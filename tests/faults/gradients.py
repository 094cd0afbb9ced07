"""Faults in the loss, in the gradient and its sum, and in what the optimizer makes of it."""

import functools
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F

from faults.registry import (
    all_of,
    at_every_micro_batch,
    at_every_step,
    fault,
    is_last,
    on_the_last_process,
    parameters_of,
    world,
)
from mnist_dist.core import ExactAccelerator, exchange
from mnist_dist.core.optimizer import ExactScheduler
from mnist_dist.core.sharing import positions_of_share

LARGE = 1 << 20  # bytes of a gradient


@fault
def schedule_stepped_by_every_process():
    """Field note 4: the schedule moves W steps an update."""
    step = ExactScheduler.step

    def by_all(self):
        for _ in range(world()):
            step(self)

    return patch.object(ExactScheduler, "step", by_all)


@fault
def processes_weighed_equally():
    """Field note 5: the mean over each process's share, averaged over the processes."""

    def weigh(accelerator):
        micro_batch = accelerator.micro_batch
        share = positions_of_share(
            micro_batch.share, micro_batch.start, micro_batch.size, micro_batch.shares
        )
        micro_batch.update_size = max(1, len(share)) * world()

    return at_every_micro_batch(weigh)


@fault
def share_dropped():
    """The gradient of a share of the last process is lost on the way."""
    add = exchange.GradientSum.add

    def forgetful(self, share, gradients, complete):
        if is_last() and share == self.sharing.shares - 1:
            gradients = [torch.zeros_like(gradient) for gradient in gradients]
        add(self, share, gradients, complete)

    return patch.object(exchange.GradientSum, "add", forgetful)


@fault
def summed_as_they_arrive():
    """The sums that each process has sent are added one after the other."""

    def in_order_of_rank(sums, first, stop):
        arrived = [
            sums[stretch] for stretch in sorted(sums) if first <= stretch[0] and stretch[1] <= stop
        ]
        return [functools.reduce(torch.add, gradients) for gradients in zip(*arrived, strict=True)]

    return patch.object(exchange, "tree_sum", in_order_of_rank)


@fault
def clipped_before_the_reduction():
    """Each process limits the norm of its own part, and the mean of these is taken."""
    add_up = exchange.GradientSum.total
    parts = []

    def noting(self):
        (own,) = self.sums.values()
        parts[:] = [part.clone() for part in own]
        return add_up(self)

    def clip(self, parameters, max_norm):
        if not self.sync_gradients:
            return
        parameters = list(parameters)
        own = [part * world() for part in parts[: len(parameters)]]
        norm = torch.cat([part.flatten() for part in own]).norm().item()
        for parameter, part in zip(parameters, own, strict=True):
            part.mul_(min(1.0, max_norm / (norm + 1e-6)))
            dist.all_reduce(part)
            parameter.grad = part / world()

    return all_of(
        patch.object(exchange.GradientSum, "total", noting),
        patch.object(ExactAccelerator, "clip_grad_norm_", clip),
    )


@fault
def large_gradients_rounded():
    """They travel as bfloat16 if they are large."""

    def rounded(optimizer):
        parameters = parameters_of(optimizer)
        if sum(parameter.nbytes for parameter in parameters) > LARGE:
            for parameter in parameters:
                parameter.grad = parameter.grad.bfloat16().to(parameter.dtype)

    return at_every_step(rounded)


@fault
def gradient_is_no_number():
    """From one update on, on the last process."""

    def spoil(optimizer):
        if is_last():
            parameters_of(optimizer)[0].grad[:] = torch.nan

    return at_every_step(spoil)


@fault
def weights_decay_twice():
    """By the optimizer, and once more."""

    def decay(optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.detach().mul_(1 - group["lr"] * group["weight_decay"])

    return at_every_step(decay)


@fault
def label_smoothing_ignored():
    """The loss is that of the labels alone."""
    cross_entropy = F.cross_entropy

    def of_the_labels(*arguments, **options):
        return cross_entropy(*arguments, **options | {"label_smoothing": 0})

    return patch.object(F, "cross_entropy", of_the_labels)


@fault
def average_stands_still():
    """On the last process, after the first update."""
    move = torch._foreach_lerp_

    def stand(mine, theirs, share):
        if share == 1 or not is_last():
            move(mine, theirs, share)

    return patch.object(torch, "_foreach_lerp_", stand)


@fault
def other_first_weights():
    """On the last process, after it has compared them with the others."""

    @torch.no_grad()
    def change(accelerator):
        next(accelerator.bare_models[0].parameters()).add_(0.01)

    return on_the_last_process(ExactAccelerator, "prepare_model", change)
