"""A classifier's predictions for every sample, and the metrics derived from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator, ExactDataLoader, MicroBatch, UserError, as_stored
from mnist_dist.task.data import Split

BATCH = 1000  # samples in a global batch of an evaluation
SURE = 0.9  # the probability below which an answer is called in doubt

# Transforms images, given their micro-batch, for test-time augmentation.
View = Callable[[Tensor, MicroBatch], Tensor]


@dataclass(frozen=True)
class Bin:
    """Samples of like confidence: how many, their mean confidence, and the share of them classified correctly."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model says about every sample of a data set.

    Attributes:
        logits: (N, classes), float64, on the CPU, in the order of the data set.
        labels: (N,), int64, on the CPU.
    """

    logits: Tensor
    labels: Tensor

    @cached_property
    def predictions(self) -> Tensor:
        """(N,) int64, the most probable class."""
        return self.logits.argmax(dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, classes), rows summing to 1."""
        return self.logits.softmax(dim=1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the samples, in nats."""
        return F.cross_entropy(self.logits, self.labels).item()

    @property
    def correct(self) -> int:
        """Number of samples classified correctly."""
        return int((self.predictions == self.labels).sum())

    @property
    def total(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly, in [0, 1]."""
        return self.correct / self.total

    @property
    def confusion(self) -> Tensor:
        """(classes, classes) int64: samples of the row's class that were taken for the column's."""
        classes = self.logits.shape[1]
        return torch.bincount(self.labels * classes + self.predictions, minlength=classes**2).view(
            classes, classes
        )

    @property
    def class_accuracy(self) -> list[float | None]:
        """For each class the share of its samples classified correctly; None if it has no samples."""
        confusion = self.confusion
        return [
            int(confusion[label, label]) / count if (count := int(confusion[label].sum())) else None
            for label in range(len(confusion))
        ]

    def reliability(self, bins: int = 15) -> list[Bin]:
        """Samples sorted into equally wide intervals of confidence, the probability of the predicted class."""
        confidence, predictions = self.probabilities.max(dim=1)
        right = (predictions == self.labels).double()
        place = (confidence * bins).ceil().long().clamp(1, bins) - 1
        found = []
        for number in range(bins):
            inside = place == number
            if count := int(inside.sum()):
                found.append(
                    Bin(count, float(confidence[inside].mean()), float(right[inside].mean()))
                )
        return found

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the mean gap of confidence and accuracy, in [0, 1]."""
        return (
            sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in self.reliability())
            / self.total
        )

    def mistakes(self) -> Tensor:
        """(m,) int64, the indices of the misclassified samples, the most confident mistake first."""
        wrong = torch.nonzero(self.predictions != self.labels).flatten()
        confidence = self.probabilities[wrong].max(dim=1).values
        return wrong[confidence.argsort(descending=True, stable=True)]

    def metrics(self, split: str) -> dict[str, float]:
        """Loss, accuracy, correct and total under their names in the files, such as `test_accuracy`.

        Raises:
            UserError: the loss is infinite or not a number.
        """
        loss = self.loss
        if not math.isfinite(loss):
            raise UserError(
                f"the loss on the {split} samples is {loss}: train it with a lower --lr or a --clip-norm"
            )
        return {
            f"{split}_loss": loss,
            f"{split}_accuracy": self.accuracy,
            f"{split}_correct": self.correct,
            f"{split}_total": self.total,
        }


def ensemble(results: Sequence[Evaluation]) -> Evaluation:
    """Combine evaluations of the same samples (an ensemble) by averaging their probabilities."""
    if len(results) == 1:
        return results[0]
    probabilities = torch.stack([result.probabilities for result in results]).mean(dim=0)
    return Evaluation(
        probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log(), results[0].labels
    )


def evaluation_loader(split: Split, batch_size: int = BATCH) -> DataLoader:
    """A loader of images, labels and the samples' indices, in the order of the data set, to be prepared."""
    indices = torch.arange(len(split), device=split.labels.device)
    return DataLoader(TensorDataset(split.images, split.labels, indices), batch_size=batch_size)


def classify(
    accelerator: ExactAccelerator,
    network: nn.Module,
    loader: ExactDataLoader,
    view: View | None = None,
) -> Evaluation:
    """Classify every sample of a split once, each process its rows, and gather the logits on all processes.

    Args:
        accelerator: the processes.
        network: bare, which is evaluated in the precision of its weights.
        loader: a prepared `evaluation_loader`.
        view: how the images are transformed; None leaves them as they are.
    """
    loader.set_epoch(0)  # a view draws the same every time
    gathered = []
    with as_stored(network):
        for images, labels, indices in loader:
            seen = view(images, accelerator.micro_batch) if view else images
            gathered.append(accelerator.gather_for_metrics((network(seen), labels, indices)))
    return evaluation_of(gathered, samples=len(loader.dataset))


def evaluation_of(gathered: Sequence[tuple[Tensor, Tensor, Tensor]], samples: int) -> Evaluation:
    """What a model says about every sample, from what was gathered batch by batch.

    Args:
        gathered: for each batch logits (n, classes), labels (n,) and the samples' indices (n,).
        samples: how many there are.

    Raises:
        RuntimeError: some sample was not counted exactly once.
    """
    logits, labels, indices = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
    counts = torch.bincount(indices, minlength=samples)
    wrong = int((counts != 1).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {samples} samples were not counted exactly once")
    order = indices.argsort()
    return Evaluation(logits[order].double(), labels[order])
