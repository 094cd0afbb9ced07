"""What differs between the processes' devices, and what is like on a GPU."""

import contextlib
import time
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F

from faults.registry import all_of, before_backward, fault, is_last, overflow, world
from mnist_dist.run import launch
from mnist_dist.run.neighbour import Neighbour
from mnist_dist.task import networks


@fault
def threads_of_the_machine():
    """The number of threads is the environment's, in which several processes have fewer each."""
    set_threads = torch.set_num_threads
    return patch.object(torch, "set_num_threads", lambda _: set_threads(world()))


@fault
def another_kind_of_processor():
    """The last process rounds float32 otherwise than the others do."""
    forward = networks.MNISTNet.forward

    def rounded(self, *inputs):
        logits = forward(self, *inputs)
        return logits * (1 + 2e-7) if is_last() and logits.dtype == torch.float32 else logits

    return patch.object(networks.MNISTNet, "forward", rounded)


@fault
def slow_process():
    """The last process takes longer for every batch, as beside another program or on a hot GPU."""
    forward = networks.MNISTNet.forward

    def slowly(self, *inputs):
        if is_last():
            time.sleep(0.01)
        return forward(self, *inputs)

    return patch.object(networks.MNISTNet, "forward", slowly)


@fault
def slow_link():
    """What the last process sends is long on its way."""
    send = dist.send

    def slowly(*words, **options):
        if is_last():
            time.sleep(0.1)
        send(*words, **options)

    return patch.object(dist, "send", slowly)


@fault
@contextlib.contextmanager
def slow_and_of_another_kind():
    """What is wrong with a last process that is right: three things, each with its own line."""
    # One after the other, for two of them change the same function.
    with slow_process(), slow_link(), another_kind_of_processor():
        yield


@fault
def mixed_precision_breaks():
    """Losses are not finite if the arithmetic is not that of float32."""
    cross_entropy = F.cross_entropy

    @contextlib.contextmanager
    def autocast(*_):
        with patch.object(
            F, "cross_entropy", lambda *arguments: torch.nan * cross_entropy(*arguments)
        ):
            yield

    return patch.object(torch, "autocast", autocast)


@fault
def a_process_is_watched():
    """Not a fault: what is made on GPUs."""
    start = launch.start

    def watched(*words, **options):
        accelerator = start(*words, **options)
        launch.NEIGHBOURS.append(Neighbour())
        return accelerator

    return patch.object(launch, "start", watched)


@fault
def fp16_scaler():
    """Not a fault: fp16's gradient scaler, as on GPUs alone, with an overflow now and then."""
    start = launch.start

    def scaled(*words, **options):
        accelerator = start(*words, **options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=7)
        return accelerator

    def now_and_then(accelerator):
        micro_batch = accelerator.micro_batch
        if micro_batch.opens_batch and micro_batch.index[0] % 20 == 0:
            overflow(accelerator)

    return all_of(patch.object(launch, "start", scaled), before_backward(now_and_then))
