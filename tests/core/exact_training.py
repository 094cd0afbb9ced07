"""Trains a case with the core, and in plain PyTorch in one process."""

from typing import Any

import torch
from exact_cases import Case
from exact_data import (
    BATCH,
    EPOCHS,
    SAMPLES,
    SEED,
    dataset_of,
    rows_of,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mnist_dist.core import ExactAccelerator, MeanLoss, generator_for


def order_of(case: Case, epoch: int) -> Tensor:
    """The numbers of all samples in the order of an epoch."""
    if not case.shuffled:
        return torch.arange(SAMPLES)
    return torch.randperm(SAMPLES, generator=generator_for("order", SEED, epoch))


def plain(case: Case) -> dict[str, Any]:
    """The case in one process and plain PyTorch: every update is one on the mean over all of its rows."""
    torch.manual_seed(SEED)
    model = case.network()
    optimizer = case.optimizer(model)
    scheduler = case.scheduler(optimizer) if case.scheduler else None
    losses: list[float] = []
    for epoch in range(EPOCHS):
        losses = []
        for number, index in enumerate(order_of(case, epoch).split(BATCH * case.accumulated)):

            def rand(
                purpose: str,
                *shape: int,
                normal: bool = False,
                words: Any = (epoch, number),
                size: int = len(index),
            ) -> Tensor:
                draw = torch.randn if normal else torch.rand
                return draw(size, *shape, generator=generator_for(purpose, SEED, *words))

            mean, terms = case.loss(model, rows_of(case.data, index), rand)
            count = len(index) if terms is None else int(terms)
            losses += count * [mean.item()]
            optimizer.zero_grad()
            mean.backward()
            if case.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
            optimizer.step()
            if scheduler:
                scheduler.step()
    return {
        "weights": model.state_dict(),
        "train_loss": sum(losses) / len(losses),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "outputs": case.output(model, case.data).detach(),
    }


def accelerator_for(case: Case, **options: Any) -> ExactAccelerator:
    """An accelerator that gives batches as the case asks for them."""
    return ExactAccelerator(
        cpu=True,
        seed=SEED,
        micro_batches=case.micro_batches,
        gradient_accumulation_steps=case.accumulated,
        **options,
    )


def train(case: Case, **options: Any) -> dict[str, Any]:
    """The case on all processes, in Accelerate's loop.

    Args:
        case: what to train.
        options: for `ExactAccelerator`.
    """
    accelerator = accelerator_for(case, **options)
    torch.manual_seed(SEED)
    model = case.network()
    optimizer = case.optimizer(model)
    scheduler = case.scheduler(optimizer) if case.scheduler else None
    dataset = dataset_of(case.data)
    train_loader = DataLoader(dataset, batch_size=BATCH, shuffle=case.shuffled)
    test_loader = DataLoader(dataset, batch_size=9)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, optimizer, train_loader, test_loader
    )
    if scheduler:
        scheduler = accelerator.prepare(scheduler)
    mean_loss = MeanLoss(accelerator)
    for _ in range(EPOCHS):
        mean_loss.reset()
        for rows in train_loader:
            with accelerator.accumulate(model):
                loss, terms = case.loss(model, rows, accelerator.micro_batch.rand)
                accelerator.backward(loss, terms=terms)
                mean_loss.update(loss, terms)
                if case.clip_norm:
                    accelerator.clip_grad_norm_(model.parameters(), case.clip_norm)
                optimizer.step()
                if scheduler:
                    scheduler.step()
                optimizer.zero_grad()
    outputs = []
    with torch.no_grad():
        for rows in test_loader:
            outputs.append(accelerator.gather_for_metrics(case.output(model, rows)))
    bare = accelerator.unwrap_model(model)
    return {
        "weights": {name: tensor.clone() for name, tensor in bare.state_dict().items()},
        "train_loss": mean_loss.compute(),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "outputs": torch.cat(outputs),
    }
