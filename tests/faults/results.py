"""Faults in what a training says of itself, and in the weights that it leaves."""

from unittest.mock import patch

import torch.nn.functional as F

from faults.registry import fault, world
from mnist_dist.core import MeanLoss
from mnist_dist.scripts import load_script
from mnist_dist.task import networks
from mnist_dist.task.evaluation import Evaluation


@fault
def accuracy_of_one_process():
    """That of the rows of the first process, beside counts of all."""
    metrics = Evaluation.metrics

    def of_some(self, split):
        right = (self.predictions == self.labels)[:: world() + 1].double()
        return metrics(self, split) | {f"{split}_accuracy": float(right.mean())}

    return patch.object(Evaluation, "metrics", of_some)


@fault
def evaluation_with_smoothing():
    """The loss on the test samples is that of the training."""

    def smoothed(self):
        return F.cross_entropy(self.logits, self.labels, label_smoothing=0.1).item()

    return patch.object(Evaluation, "loss", property(smoothed))


@fault
def summary_of_another_model():
    """The test loss in summary.json is off in its eighth digit."""
    train = load_script("train")
    write = train.write_json

    def changed(path, value):
        write(path, value | {"test_loss": value["test_loss"] * (1 + 1e-8)})

    return patch.object(train, "write_json", changed)


@fault
def curve_of_other_losses():
    """The points of the loss curve are off in their eighth digit."""
    recent = MeanLoss.compute_recent
    return patch.object(MeanLoss, "compute_recent", lambda self: recent(self) * (1 + 1e-8))


@fault
def last_weights_saved():
    """And not their moving average."""
    train = load_script("train")
    build, save, built = networks.build, train.save_weights, []

    def noting(*arguments):
        built.append(build(*arguments))
        return built[-1]

    return patch.multiple(
        train,
        save_weights=lambda path, _: save(path, built[-1]),
        networks=type("Networks", (), {**vars(networks), "build": staticmethod(noting)}),
    )
