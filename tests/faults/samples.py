"""Faults in who sees which sample when, and in the data themselves."""

import dataclasses
from unittest.mock import patch

import torch

from faults.registry import all_of, fault, is_last, rank, world
from mnist_dist.core import ExactAccelerator, MicroBatch, generator_for
from mnist_dist.core.microbatches import MicroBatchSampler
from mnist_dist.core.sampler import ExactSampler
from mnist_dist.core.sharing import positions_of_share
from mnist_dist.task import data, datasets


@fault
def loader_sharded_twice():
    """Field note 1: Accelerate deals out again what the DistributedSampler has dealt out."""
    count = MicroBatchSampler.__len__
    deal = MicroBatchSampler.epoch

    def shuffles(batches):
        return batches.orders.sampler.shuffle

    def fewer(self):
        return count(self) // world() if shuffles(self) else count(self)

    def every_wth(self, *arguments, **options):
        if not shuffles(self):
            yield from deal(self, *arguments, **options)
            return
        found = list(deal(self, *arguments, **options))[rank() :: world()][: len(self)]
        for number, micro_batches in enumerate(found):
            for micro_batch in micro_batches:
                micro_batch.batch = number
        found[-1][-1].ends_epoch = True
        yield from found

    return all_of(
        patch.object(MicroBatchSampler, "__len__", fewer),
        patch.object(MicroBatchSampler, "epoch", every_wth),
    )


@fault
def order_depends_on_processes():
    """Field note 3: each process cuts batches from a stretch of its own: others meet in a batch."""
    order = ExactSampler.order

    def own_stretches(self, epoch):
        whole = order(self, epoch)
        if not self.shuffle:
            return whole
        # Put so that dealing position by position gives process r the r-th stretch.
        places = torch.cat([torch.arange(len(whole))[rank :: world()] for rank in range(world())])
        dealt = torch.empty_like(whole)
        dealt[places] = whole
        return dealt

    return patch.object(ExactSampler, "order", own_stretches)


def orders_of(epoch_of):
    """The order of an epoch is that of another one, by a function of the right one."""
    order = ExactSampler.order
    return patch.object(ExactSampler, "order", lambda self, epoch: order(self, epoch_of(epoch)))


@fault
def order_of_the_next_epoch():
    """As if `set_epoch` were called once too often."""
    return orders_of(lambda epoch: epoch + 1)


@fault
def order_repeats_after_two_epochs():
    """The third epoch has the order of the first."""
    return orders_of(lambda epoch: epoch % 2)


@fault
def processes_with_different_seeds():
    """Each process shuffles with a seed of its own."""
    order = ExactSampler.order

    def seeded_by_rank(self, epoch):
        if not self.shuffle:
            return order(self, epoch)
        return torch.randperm(
            self.samples, generator=generator_for("order", self.seed + rank(), epoch)
        )

    return patch.object(ExactSampler, "order", seeded_by_rank)


@fault
def padding_counted():
    """Field note 6: shares padded with repeated samples to equal length, all of them counted."""
    cut = MicroBatchSampler.micro_batches

    def padded(self, order, *more):
        micro_batches = cut(self, order, *more)
        if self.orders.sampler.shuffle:
            return micro_batches
        for micro_batch in micro_batches:
            shares = range(micro_batch.shares)
            place = micro_batch.start, micro_batch.size, micro_batch.shares
            longest = max(len(positions_of_share(share, *place)) for share in shares)
            missing = longest - len(micro_batch.index)
            micro_batch.index = torch.cat([micro_batch.index, order.numbers[rank() :][:missing]])
            micro_batch.rows = len(micro_batch.index)
        return micro_batches

    def of_all_rows(self, rows):
        return self.gather(rows)

    return all_of(
        patch.object(MicroBatchSampler, "micro_batches", padded),
        patch.object(ExactAccelerator, "gather_for_metrics", of_all_rows),
    )


@fault
def dropout_drawn_by_every_process():
    """As `torch.nn.Dropout`: each process draws for its own samples, from the same seed."""

    def own(self, purpose, *shape, normal=False):
        draw = torch.randn if normal else torch.rand
        generator = generator_for(purpose, self.seed, self.epoch, self.batch)
        return draw(len(self.index), *shape, generator=generator)

    return patch.object(MicroBatch, "rand", own)


@fault
def shares_put_together():
    """A process works through all its shares at once: shapes depend on how many processes."""
    cut = MicroBatchSampler.micro_batches

    def together(self, *arguments):
        micro_batches = cut(self, *arguments)
        if self.orders.sampler.shuffle:
            first, *others = micro_batches
            first.index = torch.cat([micro_batch.index for micro_batch in micro_batches])
            for other in others:
                other.index = other.index[:0]
            for micro_batch in micro_batches:
                micro_batch.rows = len(micro_batch.index)
        return micro_batches

    return patch.object(MicroBatchSampler, "micro_batches", together)


@fault
def other_labels():
    """On the last process, of the same files."""
    load = data.load

    def shifted(*words, **options):
        samples = load(*words, **options)
        labels = (samples.train.labels + 1) % 10 if is_last() else samples.train.labels
        return dataclasses.replace(samples, train=data.Split(samples.train.images, labels))

    return patch.object(data, "load", shifted)


@fault
def other_normalisation():
    """On the last process."""
    normalized = data.normalized

    def moved(images, labels, mean, std, dtype):
        return normalized(images, labels, mean, std + (0.01 if is_last() else 0.0), dtype)

    return patch.object(data, "normalized", moved)


@fault
def other_data():
    """Not what the data files held before."""
    read = datasets.read_mnist_5k
    return patch.object(datasets, "read_mnist_5k", lambda: (*read()[:2], "other"))
