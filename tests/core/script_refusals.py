"""Scripts that cannot be the same training on any number of processes with some options, and are refused there."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.local_sgd import LocalSGD
from small_training import Script, classifier, loader, make, prepare, step


def batches_before_backward(options: dict[str, Any], _: Path) -> None:
    """All batches of an update are fetched before the first one is used."""
    accelerator = make(options, gradient_accumulation_steps=2)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    iterator = iter(train)
    for batch in [next(iterator), next(iterator)]:
        step(accelerator, model, optimizer, batch)


def accumulation_by_counting(options: dict[str, Any], _: Path) -> None:
    """Steps are made where a number of batches has been counted."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for number, (inputs, labels, _numbers) in enumerate(train):
        accelerator.backward(F.cross_entropy(model(inputs), labels) / 3)
        if number % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()


def micro_batches_skipped(options: dict[str, Any], folder: Path) -> None:
    """What was counted in the loop is skipped behind `load_state`."""
    shutil.rmtree(folder / "counted", ignore_errors=True)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for number, batch in enumerate(train):
        step(accelerator, model, optimizer, batch)
        if number == 2:
            accelerator.save_state(folder / "counted")
            break
    accelerator.load_state(folder / "counted")
    accelerator.skip_first_batches(train, 3)


def update_declared_complete(options: dict[str, Any], _: Path) -> None:
    """The loop says when gradients are complete, as transformers' Trainer does."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for batch in train:
        accelerator.gradient_state._set_sync_gradients(True)
        step(accelerator, model, optimizer, batch)


def local_sgd(options: dict[str, Any], _: Path) -> None:
    """Processes that train by themselves for some steps."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=2) as averaging:
        for batch in train:
            step(accelerator, model, optimizer, batch)
            averaging.step()


def shapes_that_differ(options: dict[str, Any], _: Path) -> None:
    """Each process gathers tensors of a width of its own."""
    accelerator = make(options)
    for _batch in accelerator.prepare(loader()):
        accelerator.gather(torch.zeros(2, 1 + accelerator.process_index))


QUESTIONABLE: dict[str, Script] = {
    "batches before backward": batches_before_backward,
    "accumulation by counting": accumulation_by_counting,
    "micro-batches skipped": micro_batches_skipped,
    "update declared complete": update_declared_complete,
    "local SGD": local_sgd,
    "shapes that differ": shapes_that_differ,
}
