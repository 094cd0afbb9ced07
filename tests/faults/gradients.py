"""Faults in the loss, in the gradient and its sum, and in what the optimizer makes of it."""

import contextlib
import dataclasses
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
from mnist_dist.core import ExactAccelerator, exchange, register_hook
from mnist_dist.core.optimizer import ExactScheduler
from mnist_dist.core.sharing import positions_of_share
from mnist_dist.core.update import UpdateGradients
from mnist_dist.scripts import load_script
from mnist_dist.task import networks

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
    parts: list[torch.Tensor] = []

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
                assert parameter.grad is not None
                parameter.grad = parameter.grad.bfloat16().to(parameter.dtype)

    return at_every_step(rounded)


@fault
def gradient_is_no_number():
    """From one update on, on the last process."""

    def spoil(optimizer):
        if is_last():
            gradient = parameters_of(optimizer)[0].grad
            assert gradient is not None
            gradient[:] = torch.nan

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
        next(accelerator.unwrapped_models[0].parameters()).add_(0.01)

    return on_the_last_process(ExactAccelerator, "prepare_model", change)


def other_loss(change):
    """The loss of a training, not that of an evaluation, is made by another function."""
    cross_entropy = F.cross_entropy

    def changed(logits, *arguments, **options):
        if not logits.requires_grad:
            return cross_entropy(logits, *arguments, **options)
        return change(cross_entropy, logits, *arguments, **options)

    return patch.object(F, "cross_entropy", changed)


@fault
def loss_is_a_sum():
    """Over the rows, as a multiple of the mean: a sum itself is refused."""

    def summed(loss, logits, *arguments, **options):
        return len(logits) * loss(logits, *arguments, **options)

    return other_loss(summed)


@fault
def loss_is_no_number():
    """From the start, on all processes."""
    return other_loss(lambda loss, *arguments, **options: torch.nan * loss(*arguments, **options))


@fault
def dropout_in_a_function():
    """The network draws for its own rows, in a way that no layer shows."""
    forward = networks.MNISTNet.forward

    def dropping(self, *inputs):
        return F.dropout(forward(self, *inputs), 0.1, training=self.training)

    return patch.object(networks.MNISTNet, "forward", dropping)


@fault
def float32_weights():
    """On the last process."""
    build = networks.build

    def built(*arguments):
        network = build(*arguments)
        if is_last():
            network.to = lambda device, *_: torch.nn.Module.to(network, device)  # type: ignore[method-assign, assignment]
        return network

    return patch.object(networks, "build", built)


@fault
def float32_arithmetic():
    """On the last process, of what the network gives."""
    forward = networks.MNISTNet.forward

    def rounded(self, *inputs):
        logits = forward(self, *inputs)
        return logits.float().to(logits.dtype) if is_last() else logits

    return patch.object(networks.MNISTNet, "forward", rounded)


@fault
def float32_gradients_rounded():
    """They travel as bfloat16 if they are float32."""

    def rounded(optimizer):
        for parameter in parameters_of(optimizer):
            if parameter.dtype == torch.float32:
                assert parameter.grad is not None
                parameter.grad = parameter.grad.bfloat16().float()

    return at_every_step(rounded)


@fault
def share_counted_twice_with_virtual_processes():
    """The first one of each update."""
    add = exchange.GradientSum.add

    def twice(self, share, gradients, complete):
        if self.sharing.virtual and share == 0:
            gradients = [2 * gradient for gradient in gradients]
        add(self, share, gradients, complete)

    return patch.object(exchange.GradientSum, "add", twice)


@fault
def first_pieces_lost():
    """Of a share that is worked through in pieces, as if gradients were cleared after each."""
    add = UpdateGradients.add_to_sum

    def forgetful(self, micro_batch, parameters, terms):
        if micro_batch.piece < micro_batch.pieces - 1:
            for parameter in parameters:
                parameter.grad = None
        add(self, micro_batch, parameters, terms)

    return patch.object(UpdateGradients, "add_to_sum", forgetful)


def clips(change):
    """Gradients are clipped by another function, of the right one, the parameters and the limit."""
    clip = ExactAccelerator.clip_grad_norm_

    def changed(self, parameters, max_norm):
        return change(functools.partial(clip, self), list(parameters), max_norm)

    return patch.object(ExactAccelerator, "clip_grad_norm_", changed)


@fault
def clipped_to_a_share_of_the_norm():
    """The limit is divided by the number of processes."""
    return clips(lambda clip, parameters, limit: clip(parameters, limit / world()))


@fault
def clipped_tensor_by_tensor():
    """Each tensor's norm is limited."""
    return clips(lambda clip, parameters, limit: [clip([each], limit) for each in parameters])


@fault
@contextlib.contextmanager
def weights_are_no_numbers_after_update_4():
    """On the last process."""

    def spoil(accelerator):
        if is_last() and accelerator.updates == 4:
            next(accelerator.unwrapped_models[0].parameters()).data[0] = torch.nan

    hook = register_hook("update", spoil)
    yield
    hook.remove()


@fault
def last_process_has_another_rate():
    """From the first update on, so that weights differ from the second on."""

    def double(optimizer):
        for group in optimizer.param_groups:
            group["lr"] *= 2 if is_last() else 1

    return at_every_step(double)


@fault
def rate_times_processes():
    """As the linear scaling rule has it for a batch for each process."""
    train = load_script("train")
    make_optimizer = train.make_optimizer

    def scaled(model, settings):
        return make_optimizer(model, dataclasses.replace(settings, lr=settings.lr * world()))

    return patch.object(train, "make_optimizer", scaled)


@fault
def schedule_ahead_of_the_optimizer():
    """It is stepped first."""
    train = load_script("train")
    make_scheduler = train.make_scheduler

    def ahead(optimizer, *arguments, **options):
        found = make_scheduler(optimizer, *arguments, **options)
        found.step()
        return found

    return patch.object(train, "make_scheduler", ahead)
