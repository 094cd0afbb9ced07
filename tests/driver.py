"""Trains several times in the processes it finds itself in, watched, and with faults planted where asked.

    torchrun --nproc-per-node W tests/driver.py '{"runs": [{"flags": [flags of train.py], "fault": NAME}, ...]}'

A run with `verify`, the name of a file, is no training: `python -m mnist_dist verify` with these flags, its answer
written to that file. Beside `runs`, the document may hold
    record: a folder for what each process saw: batches-<rank>.pt (the sample numbers of every update, in order) and
        left-<rank>.json (how it left);
    timeouts: values for the constants of `mnist_dist.run.wandb_run`, in seconds;
    updates: the most in an epoch of a training that `verify` is given;
    forked: so many processes to go on as, instead of those that a launcher has started.
`fault` is one of the traps of this stack, let back in for that run; see `FAULTS`.
"""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1]))

from forked import fork

import train
from mnist_dist import plots
from mnist_dist.core import GlobalBatches, Training, checkpoints, gradients, processes, stream
from mnist_dist.core.batches import Batch
from mnist_dist.run import launch, tracking, wandb_run
from mnist_dist.run.command_line import parse
from mnist_dist.run.files import write_json
from mnist_dist.run.neighbour import Neighbour
from mnist_dist.task import data, datasets, networks, objective
from mnist_dist.tools import verify, watched

if forked := json.loads(sys.argv[1]).get("forked"):
    import torch._dynamo  # as every optimizer does

    fork(forked)
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def loader_sharded_twice():
    """Field note 1: Accelerate deals out again what the DistributedSampler has dealt out."""
    deal = GlobalBatches.epoch

    def every_wth(self, *which, **first):
        batches = deal(self, *which, **first)
        return batches if self.seed is None else (batch for n, batch in enumerate(batches) if n % WORLD == RANK)

    return patch.object(GlobalBatches, "epoch", every_wth)


def order_depends_on_processes():
    """Field note 3: each process cuts batches from a stretch of its own, so other samples meet in a batch."""
    order = GlobalBatches.order

    def own_stretches(self, epoch):
        whole = order(self, epoch)
        if self.seed is None:
            return whole
        # Put so that dealing position by position gives process r the r-th stretch.
        places = torch.cat([torch.arange(len(whole))[rank::WORLD] for rank in range(WORLD)])
        dealt = torch.empty_like(whole)
        dealt[places] = whole
        return dealt

    return patch.object(GlobalBatches, "order", own_stretches)


def schedule_stepped_by_every_process():
    """Field note 4: the schedule moves W steps an update."""
    rate = objective.learning_rate
    return patch.object(
        objective, "learning_rate", lambda step, total, **rest: rate(min(step * WORLD, total - 1), total, **rest)
    )


def processes_weighed_equally():
    """Field note 5: the mean over each process's share, averaged over the processes."""
    update = Training.update

    def equally(self, batch, **options):
        batch.terms = len(batch.index) * WORLD
        update(self, batch, **options)

    return patch.object(Training, "update", equally)


def dropout_drawn_by_every_process():
    """What `torch.nn.Dropout` does: each process draws for its own samples, from a generator seeded alike."""

    def own(self, purpose, *shape, normal=False):
        draw = torch.randn if normal else torch.rand
        return draw(len(self.index), *shape, generator=stream(purpose, *self.words))

    drawn = contextlib.ExitStack()
    drawn.enter_context(patch.object(Batch, "rand", own))
    drawn.enter_context(patch.object(Training, "check_data_and_loss", lambda *_: None))  # else it sees it
    return drawn


def padding_counted():
    """Field note 6: shares padded with repeated samples to equal length, and all of them counted."""
    deal = GlobalBatches.epoch

    def padded(self, *which, **first):
        batches = list(deal(self, *which, **first))
        if self.seed is None and sum(len(batch.index) for batch in batches) < -(-self.samples // WORLD):
            last = batches[-1]
            last.index, last.positions = (
                torch.cat([last.index, batches[0].index[:1]]),
                torch.arange(len(last.index) + 1),
            )
            last.lengths = [len(last.index)]
        return iter(batches)

    return patch.object(GlobalBatches, "epoch", padded)


def summed_as_they_arrive():
    """The sums that each process has sent are added one after the other."""

    def in_order_of_rank(sums, first, stop):
        arrived = [sums[at] for at in sorted(sums) if first <= at[0] and at[1] <= stop]
        return [functools.reduce(torch.add, each) for each in zip(*arrived, strict=True)]

    return patch.object(gradients, "total", in_order_of_rank)


def shares_put_together():
    """A process works through all its shares at once, so their shapes depend on the number of processes."""
    split = Batch.split

    def together(self, pieces):
        if isinstance(pieces, list):
            pieces = [sum(pieces), *[0] * (len(pieces) - 1)]
        return split(self, pieces)

    return patch.object(Batch, "split", together)


def share_dropped():
    """The gradient of a share of the last process is lost on the way."""
    take = gradients.GradientSum.take

    def forgetful(self, share, last=True):
        if RANK == WORLD - 1 and share == self.sharing.shares - 1:
            for parameter in self.parameters:
                parameter.grad.zero_()
        take(self, share, last)

    return patch.object(gradients.GradientSum, "take", forgetful)


def threads_of_the_machine():
    """The number of threads is left to the environment, in which several processes have fewer each."""
    set_threads = torch.set_num_threads
    return patch.object(torch, "set_num_threads", lambda _: set_threads(WORLD))


def overflow(model):
    """Let the gradient of this update, and of no other, be infinite."""
    parameter = next(model.parameters())
    handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * torch.inf)[1])


def processes_with_different_seeds():
    """Each process shuffles with a seed of its own."""
    order = GlobalBatches.order

    def seeded_by_rank(self, epoch):
        if self.seed is None:
            return order(self, epoch)
        return torch.randperm(self.samples, generator=stream("order", self.seed + RANK, epoch))

    return patch.object(GlobalBatches, "order", seeded_by_rank)


def another_kind_of_processor():
    """The last process rounds float32 otherwise than the others do."""
    forward = networks.MNISTNet.forward

    def rounded(self, *inputs):
        logits = forward(self, *inputs)
        return logits * (1 + 2e-7) if RANK == WORLD - 1 and logits.dtype == torch.float32 else logits

    return patch.object(networks.MNISTNet, "forward", rounded)


def slow_process():
    """The last process takes longer for every batch, as beside another program or on a hot GPU."""
    forward = networks.MNISTNet.forward

    def slowly(self, *inputs):
        if RANK == WORLD - 1:
            time.sleep(0.01)
        return forward(self, *inputs)

    return patch.object(networks.MNISTNet, "forward", slowly)


def checkpoint_reads_other_weights():
    """A file system gives back something else than was written, under the right digest."""
    newest = checkpoints.newest_checkpoint

    def other(run):
        payload, warnings = newest(run)
        payload["parts"]["training"]["model"]["fc1.bias"] += 1
        return payload, warnings

    return patch.object(watched, "newest_checkpoint", other)


def mixed_precision_breaks():
    """Losses are not finite if the arithmetic is not that of float32."""
    cross_entropy = F.cross_entropy

    @contextlib.contextmanager
    def autocast(*_):
        with patch.object(F, "cross_entropy", lambda *arguments: torch.nan * cross_entropy(*arguments)):
            yield

    return patch.object(torch, "autocast", autocast)


def at_every_step(change):
    """Something that happens between an update's gradient and its step, to an optimizer."""

    @contextlib.contextmanager
    def planted():
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_: change(optimizer))
        yield
        hook.remove()

    return planted()


def parameters_of(optimizer):
    """All of an optimizer's."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clipped_before_the_reduction():
    """Each process limits the norm of its own part, and the mean of these is taken."""
    update, parts = Training.update, []

    def clipping(self, batch, *, clip_norm=0.0, **options):
        parts.clear()
        if clip_norm:
            loss = self.loss(self.bare, batch) * WORLD / batch.terms
            parts.extend(torch.autograd.grad(loss, list(self.bare.parameters())))
            norm = torch.cat([part.flatten() for part in parts]).norm()
            for part in parts:
                part.mul_(min(1.0, clip_norm / (norm.item() + 1e-6)))
                dist.all_reduce(part)
                part.div_(WORLD)
        update(self, batch, clip_norm=0.0, **options)

    def replace(optimizer):
        for parameter, part in zip(parameters_of(optimizer), parts, strict=False):
            parameter.grad = part

    both = contextlib.ExitStack()
    both.enter_context(patch.object(Training, "update", clipping))
    both.enter_context(at_every_step(replace))
    return both


def large_gradients_rounded():
    """They travel as bfloat16 if they are large."""

    def rounded(optimizer):
        if sum(p.numel() * p.element_size() for p in parameters_of(optimizer)) > 1 << 20:
            for parameter in parameters_of(optimizer):
                parameter.grad = parameter.grad.bfloat16().to(parameter.dtype)

    return at_every_step(rounded)


def weights_decay_twice():
    """By the optimizer, and once more."""

    def decay(optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.detach().mul_(1 - group["lr"] * group["weight_decay"])

    return at_every_step(decay)


def gradient_is_no_number():
    """From one update on, on the last process."""

    def spoil(optimizer):
        if RANK == WORLD - 1:
            parameters_of(optimizer)[0].grad[:] = torch.nan

    return at_every_step(spoil)


def label_smoothing_ignored():
    """The loss is that of the labels alone."""
    cross_entropy = F.cross_entropy
    return patch.object(
        F, "cross_entropy", lambda *words, **more: cross_entropy(*words, **more | {"label_smoothing": 0})
    )


def on_the_last_process(where, name, change):
    """After a method has been called there."""
    method = getattr(where, name)

    def changed(self, *words, **options):
        found = method(self, *words, **options)
        if RANK == WORLD - 1:
            change(self)
        return found

    return patch.object(where, name, changed)


def average_stands_still():
    """On the last process, after the first update."""
    move = torch._foreach_lerp_
    return patch.object(
        torch,
        "_foreach_lerp_",
        lambda mine, theirs, share: move(mine, theirs, share) if RANK < WORLD - 1 or share == 1 else None,
    )


def other_first_weights():
    """On the last process."""

    def change(training):
        with torch.no_grad():
            next(training.bare.parameters()).add_(0.01)

    return on_the_last_process(Training, "__init__", change)


def other_labels():
    """On the last process, of the same files."""
    load = data.load

    def shifted(*words, **options):
        samples = load(*words, **options)
        labels = (samples.train.labels + 1) % 10 if RANK == WORLD - 1 else samples.train.labels
        return dataclasses.replace(samples, train=data.Split(samples.train.images, labels))

    return patch.object(data, "load", shifted)


def other_normalisation():
    """On the last process."""
    normalized = data.normalized
    return patch.object(
        data,
        "normalized",
        lambda images, labels, mean, std, dtype: normalized(
            images, labels, mean, std + RANK // (WORLD - 1) / 100, dtype
        ),
    )


def checkpoint_without_optimizer():
    """Its state is not saved."""
    state_dict = Training.state_dict

    def bare(self):
        state = state_dict(self)
        return state | {"optimizer": state["optimizer"] | {"state": {}}}

    return patch.object(Training, "state_dict", bare)


def optimizer_lost_at_resume():
    """On the last process."""
    return on_the_last_process(Training, "load_state_dict", lambda training: training.optimizer.state.clear())


def resume_skips_a_batch():
    """On all processes."""
    load = Training.load_state_dict

    def skipping(self, state):
        load(self, state)
        self.progress.step += 1

    return patch.object(Training, "load_state_dict", skipping)


def stop_seen_by_one_process():
    """Each process asks itself alone."""
    return patch.object(processes.StopRequest, "agreed", lambda self: self.received is not None)


def slow_link():
    """What the last process sends is long on its way."""
    send = dist.send

    def slowly(*words, **options):
        if RANK == WORLD - 1:
            time.sleep(0.1)
        send(*words, **options)

    return patch.object(dist, "send", slowly)


def slow_and_of_another_kind():
    """What is wrong with a last process that is right: three things of which none is seen in another's line."""
    all_three = contextlib.ExitStack()
    for fault in (slow_process, slow_link, another_kind_of_processor):
        all_three.enter_context(fault())
    return all_three


def in_update_5_of_the_last_process(harm):
    """Something that happens to one process alone."""
    update = Training.update

    def harmed(self, batch, **options):
        if self.progress.global_step == 4 and RANK == WORLD - 1:
            harm()
        update(self, batch, **options)

    return patch.object(Training, "update", harmed)


def last_process_has_a_bug():
    """An exception of its own."""

    def fail():
        raise ZeroDivisionError("planted")

    return in_update_5_of_the_last_process(fail)


def last_process_is_killed():
    """As by the kernel, if memory is short."""
    return in_update_5_of_the_last_process(lambda: os.kill(os.getpid(), signal.SIGKILL))


def a_process_is_watched():
    """Not a fault: what is made on GPUs."""
    start = launch.start

    def watched(*words, **options):
        accelerator = start(*words, **options)
        launch.NEIGHBOURS.append(Neighbour())
        return accelerator

    return patch.object(launch, "start", watched)


def last_process_is_killed_while_the_others_wait_in_c():
    """As in a CUDA stream that never ends; with what is made on GPUs."""
    update = Training.update

    def harmed(self, batch, **options):
        if self.progress.global_step == 5 and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.progress.global_step == 5:
            ctypes.CDLL(None).sleep(100)
        update(self, batch, **options)

    both = contextlib.ExitStack()
    both.enter_context(a_process_is_watched())
    both.enter_context(patch.object(Training, "update", harmed))
    return both


def last_process_hangs():
    """It never comes to the exchange of gradients."""
    return in_update_5_of_the_last_process(lambda: time.sleep(600))


def fp16_scaler():
    """Not a fault: the gradient scaler of fp16, which Accelerate gives to GPUs only, with an overflow now and then."""
    start, update = launch.start, Training.update

    def scaled(*words, **options):
        accelerator = start(*words, **options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=7)
        return accelerator

    def overflowing(self, batch, **options):
        if batch.index[0] % 20 == 0:
            overflow(self.model)
        update(self, batch, **options)

    both = contextlib.ExitStack()
    both.enter_context(patch.object(launch, "start", scaled))
    both.enter_context(patch.object(Training, "update", overflowing))
    return both


def before_update_30_of_the_last_process(harm):
    """Something that happens to one process alone, in the last update of an epoch of 30."""
    update = Training.update

    def harmed(self, batch, **options):
        if self.progress.global_step == 29 and RANK == WORLD - 1:
            harm(self)
        update(self, batch, **options)

    return patch.object(Training, "update", harmed)


def evaluation_fails():
    """That of the first epoch, on a disk that fails, when all its updates have been done."""

    def fail(*_, **__):
        raise OSError(errno.EIO, "planted")

    return patch.object(train, "classify", fail)


def gradient_breaks_at_update_30():
    """The loss stays finite and the gradient does not."""
    return before_update_30_of_the_last_process(lambda training: overflow(training.model))


def last_process_raises(error):
    """At update 30."""

    def fail(_):
        raise error

    return before_update_30_of_the_last_process(fail)


def last_process_raises_at_update_30():
    """An exception that nobody foresaw."""
    return last_process_raises(MemoryError("planted"))


def last_process_cannot_read_at_update_30():
    """A disk that fails."""
    return last_process_raises(OSError(errno.EIO, os.strerror(errno.EIO), "/dev/planted"))


def other_data():
    """Not what the data files held before."""
    read = datasets.read_mnist_5k
    return patch.object(datasets, "read_mnist_5k", lambda: (*read()[:2], "other"))


def stuck_in_an_update():
    """An update that does not end."""

    def step(*_, **__):
        print("stuck", flush=True)
        time.sleep(600)

    return patch.object(Training, "update", step)


def disk_full_at_metrics():
    """Another program fills the disk of the run's folder just before a line of metrics.jsonl is written."""
    append = tracking.append_json

    def filled(path, value):
        with contextlib.suppress(OSError), (path.parent / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        append(path, value)

    return patch.object(tracking, "append_json", filled)


FAULTS = {
    fault.__name__: fault
    for fault in (
        a_process_is_watched,
        last_process_is_killed_while_the_others_wait_in_c,
        loader_sharded_twice,
        order_depends_on_processes,
        schedule_stepped_by_every_process,
        processes_weighed_equally,
        dropout_drawn_by_every_process,
        padding_counted,
        summed_as_they_arrive,
        shares_put_together,
        share_dropped,
        threads_of_the_machine,
        processes_with_different_seeds,
        slow_process,
        another_kind_of_processor,
        checkpoint_reads_other_weights,
        mixed_precision_breaks,
        clipped_before_the_reduction,
        large_gradients_rounded,
        weights_decay_twice,
        gradient_is_no_number,
        label_smoothing_ignored,
        average_stands_still,
        other_first_weights,
        other_labels,
        other_normalisation,
        checkpoint_without_optimizer,
        optimizer_lost_at_resume,
        resume_skips_a_batch,
        stop_seen_by_one_process,
        slow_link,
        slow_and_of_another_kind,
        last_process_has_a_bug,
        last_process_is_killed,
        last_process_hangs,
        fp16_scaler,
        evaluation_fails,
        gradient_breaks_at_update_30,
        last_process_raises_at_update_30,
        last_process_cannot_read_at_update_30,
        other_data,
        stuck_in_an_update,
        disk_full_at_metrics,
    )
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    for name, seconds in spec.get("timeouts", {}).items():
        setattr(wandb_run, name, seconds)
    verify.MOST = spec.get("updates", verify.MOST)
    update, seen = Training.update, []

    def watched(self, batch, **options):
        seen.append(batch.index.tolist())
        update(self, batch, **options)

    Training.update = watched

    def train_all() -> None:
        try:
            for run in spec["runs"]:
                with FAULTS[run["fault"]]() if run.get("fault") else nullcontext():
                    if "verify" in run:
                        answer = verify.answer(parse(verify.Config, run["flags"]))
                        if RANK == 0:
                            write_json(Path(run["verify"]), answer.as_json())
                    else:
                        sys.argv = ["train.py", *run["flags"]]
                        train.main()
        finally:
            if spec.get("record"):
                torch.save(seen, Path(spec["record"]) / f"batches-{RANK}.pt")

    leave = os._exit

    def recorded(status: int) -> None:
        left = {"process_group_destroyed": not dist.is_initialized(), "status": status}
        (Path(spec["record"]) / f"left-{RANK}.json").write_text(json.dumps(left))
        leave(status)

    # Pictures take six times as long as the small trainings here.
    undrawn = patch.multiple(plots, learning_curves=lambda *_: None, evaluation=lambda *_: None)
    with undrawn, patch.object(os, "_exit", recorded) if spec.get("record") else nullcontext():
        launch.run(train_all, "train.py")


if __name__ == "__main__":
    main()
