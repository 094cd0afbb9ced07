"""Scripts with something that is easily overlooked: a look at a batch, buffers that are replaced, and the like."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from small_training import (
    BATCH,
    SAMPLES,
    Script,
    Weights,
    classifier,
    data,
    loader,
    make,
    numbers,
    prepare,
    step,
    weights,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def gathered_at_the_end(options: dict[str, Any], _: Path) -> Weights:
    """What each process has found is gathered once, after the loop."""
    accelerator = make(options)
    model, _optimizer, test = prepare(accelerator, classifier(), DataLoader(data(), BATCH))
    scores = []
    which = []
    for inputs, _labels, its_numbers in test:
        scores.append(model(inputs).detach())
        which.append(its_numbers)
    found, numbers_found = accelerator.gather((torch.cat(scores), torch.cat(which)))
    assert sorted(numbers_found.tolist()) == list(range(SAMPLES))
    return {"scores": found[numbers_found.argsort()]}


def gathered_scalars(options: dict[str, Any], _: Path) -> Weights:
    """A scalar of each process, together with rows whose numbers differ."""
    accelerator = make(options)
    for inputs, _labels, _numbers in accelerator.prepare(DataLoader(data(), BATCH)):
        rows, sums = accelerator.gather((inputs, inputs.sum()))
        torch.testing.assert_close(rows.sum(), sums.sum())
    return {}


def a_look_at_a_batch(options: dict[str, Any], folder: Path) -> Weights:
    """The shape of the first batch is asked for, before the training and after it was resumed."""
    shutil.rmtree(folder / "looked", ignore_errors=True)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    assert next(iter(train))[0].shape[1] == 5
    epochs = range(train.next_epoch, 2)
    for _ in epochs:
        for batch in train:
            step(accelerator, model, optimizer, batch)
            if accelerator.sync_gradients and accelerator.updates == 2:
                accelerator.save_state(folder / "looked")
    assert len(epochs) == 2 and accelerator.updates == 2 * len(train)
    whole = weights(model)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    accelerator.load_state(folder / "looked")
    next(iter(train))
    for _ in range(train.next_epoch, 2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
    assert same(weights(model), whole)
    return whole


class Curriculum(Dataset):
    """Rows that are moved from epoch to epoch."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.moved_by = 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)
        self.moved_by = epoch

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return numbers(SAMPLES, 5)[number] + self.moved_by, number % 3


def data_that_know_the_epoch(options: dict[str, Any], _: Path) -> Weights:
    """Accelerate tells a data set the epoch."""
    accelerator = make(options)
    rows = Curriculum()
    train_loader = DataLoader(rows, BATCH, num_workers=1)
    model, optimizer, train = prepare(accelerator, classifier(), train_loader)
    for _epoch in range(2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
    assert rows.epochs == [0, 1]
    return weights(model)


class Tracked(nn.Module):
    """Keeps a moving average of its input in a buffer, which it replaces each time."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = classifier()
        self.register_buffer("average", torch.zeros(5, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs):
            self.average = 0.9 * self.average + 0.1 * inputs.detach().mean(dim=0)
        return self.layers(inputs - self.average)


def buffers_replaced(options: dict[str, Any], folder: Path) -> Weights:
    """Buffers are assigned anew in the forward pass, and saved in the midst of an update."""
    if "virtual_processes" not in options:
        return {}  # it is refused there
    shutil.rmtree(folder / "buffers", ignore_errors=True)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, Tracked(), loader())
    for _ in range(2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
            if accelerator.updates == 3 and not accelerator.sync_gradients:
                accelerator.save_state(folder / "buffers")
    whole = weights(model)
    assert whole["average"].abs().max() > 0.01
    if not (folder / "buffers").exists():
        return whole  # each process has one share
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, Tracked(), loader())
    accelerator.load_state(folder / "buffers")
    assert accelerator.updates == 3
    for _ in range(train.next_epoch, 2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
    assert same(weights(model), whole)
    return whole


@dataclass
class Bag:
    """A batch with an attribute for each of its parts."""

    inputs: Tensor
    labels: Tensor
    count: Tensor


def collate(samples: list[tuple[Tensor, Tensor, Tensor]]) -> Bag:
    """As a bag, with a scalar."""
    inputs, labels, _ = (torch.stack(part) for part in zip(*samples, strict=True))
    return Bag(inputs, labels, torch.tensor(len(samples)))


def batches_of_ones_own_class(options: dict[str, Any], _: Path) -> Weights:
    """A collate_fn makes a dataclass with a scalar; the last batch leaves some processes without rows."""
    accelerator = make(options)
    train_loader = DataLoader(data(SAMPLES - 4), BATCH, collate_fn=collate)
    model, optimizer, train = prepare(accelerator, classifier(), train_loader)
    for bag in train:
        assert len(bag.inputs) == len(accelerator.micro_batch)
        step(accelerator, model, optimizer, [bag.inputs, bag.labels])
    return weights(model)


def draws_between_epochs(options: dict[str, Any], folder: Path) -> Weights:
    """What is drawn before each epoch, by three generators, is drawn on after a resume."""
    shutil.rmtree(folder / "draws", ignore_errors=True)

    def train_from(first: int, accelerator: Any, model: Any, optimizer: Any, train: Any) -> Any:
        for epoch in range(first, 3):
            if epoch == 1 and first == 0:
                accelerator.save_state(folder / "draws")
            scale = random.random() + float(torch.rand(()))
            for inputs, labels, which in train:
                step(accelerator, model, optimizer, [inputs * scale, labels, which])
        return weights(model)

    random.seed(3)
    torch.manual_seed(4)
    accelerator = make(options)
    whole = train_from(0, accelerator, *prepare(accelerator, classifier(), loader()))
    random.seed(5)
    accelerator = make(options)
    prepared = prepare(accelerator, classifier(), loader())
    accelerator.load_state(folder / "draws")
    assert same(train_from(1, accelerator, *prepared), whole)
    return whole


def prepared_once_more(options: dict[str, Any], folder: Path) -> Weights:
    """All memory is freed, and a loader that was prepared before is prepared again."""
    shutil.rmtree(folder / "again", ignore_errors=True)
    accelerator = make(options)
    _model, _optimizer, train = prepare(accelerator, classifier(), loader())
    accelerator.free_memory()
    model, optimizer, train = prepare(accelerator, classifier(), train)
    for batch in train:
        step(accelerator, model, optimizer, batch)
    accelerator.save_state(folder / "again")
    train.load_state_dict({"epoch": 7, "batch": 0})
    accelerator.load_state(folder / "again")
    assert train.next_epoch == 1
    return weights(model)


def same(one: Weights, other: Weights) -> bool:
    """Whether two models have the same bits."""
    return all(torch.equal(one[name], other[name]) for name in other)


SURPRISES: dict[str, Script] = {
    "gathered at the end": gathered_at_the_end,
    "gathered scalars": gathered_scalars,
    "a look at a batch": a_look_at_a_batch,
    "data that know the epoch": data_that_know_the_epoch,
    "buffers replaced": buffers_replaced,
    "batches of one's own class": batches_of_ones_own_class,
    "draws between epochs": draws_between_epochs,
    "prepared once more": prepared_once_more,
}


# Refused, with some options.


def statistics_anew(options: dict[str, Any], _: Path) -> None:
    """The statistics of batch normalisation are computed anew, over a prepared loader."""
    accelerator = make(options)
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    model, _optimizer, train = prepare(accelerator, network, DataLoader(data(20), 20))
    torch.optim.swa_utils.update_bn((inputs for inputs, _, _ in train), model)


def a_head_in_training_mode(options: dict[str, Any], _: Path) -> None:
    """The model is in eval mode but for its last layers, one of which drops values out."""
    accelerator = make(options)
    network = nn.Sequential(classifier(), nn.Dropout(0.5))
    model, optimizer, train = prepare(accelerator, network, loader())
    model.eval()
    accelerator.unwrap_model(model)[1].train()
    for batch in train:
        step(accelerator, model, optimizer, batch)


def weights_of_classes_in_eval_mode(options: dict[str, Any], _: Path) -> None:
    """A whole model in eval mode is trained, by a loss that is not the mean over rows."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    model.eval()
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for inputs, labels, _numbers in train:
        accelerator.backward(F.cross_entropy(model(inputs), labels, weight=weight))
        optimizer.step()
        optimizer.zero_grad()


def names_beside_tensors(options: dict[str, Any], _: Path) -> None:
    """Names are gathered together with tensors."""
    accelerator = make(options)
    for _inputs, labels, which in accelerator.prepare(DataLoader(data(), BATCH)):
        names = [str(number) for number in which.tolist()]
        accelerator.gather_for_metrics((labels, names))


def ones_own_backward(options: dict[str, Any], _: Path) -> None:
    """The loss's own backward is called, not the accelerator's."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for inputs, labels, _numbers in train:
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def steps_within_the_backward_pass(options: dict[str, Any], _: Path) -> None:
    """Each parameter is moved as soon as its gradient is complete."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    first = next(accelerator.unwrap_model(model).parameters())
    first.register_post_accumulate_grad_hook(print)
    for batch in train:
        step(accelerator, model, optimizer, batch)


QUESTIONABLE_SURPRISES: dict[str, Script] = {
    "statistics anew": statistics_anew,
    "a head in training mode": a_head_in_training_mode,
    "weights of classes in eval mode": weights_of_classes_in_eval_mode,
    "names beside tensors": names_beside_tensors,
    "one's own backward": ones_own_backward,
    "steps within the backward pass": steps_within_the_backward_pass,
}
