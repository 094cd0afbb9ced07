"""What the core must accept, although it resembles what it refuses."""

import torch
import torch.nn.functional as F
from exact_asking import Ask, Counts, Recurrent, data, encoder, first_update, network
from exact_data import (
    BATCH,
    SAMPLES,
    Rows,
    accelerator,
    mlp,
    numbers,
)
from exact_refused_uses import CLASS_WEIGHTS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def precise_targets() -> None:
    """A loss in float64 of a network in float32."""
    exact = accelerator()
    model = mlp(6, 512, 1).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = TensorDataset(
        numbers(SAMPLES, 6).float(), torch.zeros(SAMPLES, 1, dtype=torch.float64)
    )
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(dataset, 14))
    for inputs, targets in loader:
        exact.backward((model(inputs) - targets).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def evaluation_that_draws() -> None:
    """Random numbers outside of what is trained, in the midst of an epoch: nothing depends on them."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train, test = DataLoader(data(), BATCH), DataLoader(data(), BATCH)
    model, optimizer, train, test = exact.prepare(model, optimizer, train, test)
    for inputs, labels in train:
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()
        for inputs_of_test, _ in test:
            with torch.no_grad():
                model(inputs_of_test + torch.rand(1))


def one_batch_of_another_loader() -> None:
    """A loop over a loader that is left after its first batch, in the midst of that over another."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train, test = DataLoader(data(), BATCH), DataLoader(data(), 4)
    model, optimizer, train, test = exact.prepare(model, optimizer, train, test)
    for inputs, labels in train:
        for inputs_of_test, _ in test:
            model(inputs_of_test)
            break
        first_of_test, _ = next(iter(test))
        model(first_of_test)
        exact.backward(F.cross_entropy(model(inputs), labels))
        optimizer.step()
        optimizer.zero_grad()


def slopes() -> None:
    """A loss that asks for gradients, such as of a physical equation that its inputs are to obey."""
    exact = accelerator()
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(Rows(numbers(SAMPLES, 6)), 7)
    )
    for rows in loader:
        inputs = rows.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        exact.backward(slope.square().sum(dim=1).mean())
        optimizer.step()
        optimizer.zero_grad()


def sum_over_rows() -> None:
    """A sum, and a term that has nothing to do with rows."""
    exact = accelerator()
    model = mlp(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(data(), BATCH))
    for inputs, labels in loader:
        rows = max(len(inputs), 1)
        loss = F.cross_entropy(model(inputs), labels, reduction="sum") / rows
        decay = torch.cat([each.flatten() for each in model.parameters()]).square().mean()
        exact.backward(loss + 0.01 * decay)
        optimizer.step()
        optimizer.zero_grad()


ACCEPTED: dict[str, Ask] = {
    "dropout 0": lambda: first_update(network(nn.Dropout(0.0))),
    "a GRU without dropout": lambda: first_update(Recurrent(0.0)),
    "an encoder without dropout": lambda: first_update(
        network(nn.Unflatten(1, (1, 6)), encoder(), nn.Flatten())
    ),
    "an embedding": lambda: first_update(Counts()),
    "batch norm": lambda: first_update(network(nn.BatchNorm1d(6))),
    "batch norm without averages": lambda: first_update(
        network(nn.BatchNorm1d(6, track_running_stats=False))
    ),
    "group norm": lambda: first_update(network(nn.GroupNorm(2, 6))),
    "layer norm": lambda: first_update(network(nn.LayerNorm(6))),
    "dropout with virtual processes": lambda: first_update(
        network(nn.Dropout(0.5)), accelerator(virtual_processes=7)
    ),
    "noise with virtual processes": lambda: first_update(
        network(nn.RReLU()), accelerator(virtual_processes=7)
    ),
    "label smoothing": lambda: first_update(network(), label_smoothing=0.1),
    "weights of classes with virtual processes": lambda: first_update(
        network(), accelerator(virtual_processes=7), weight=CLASS_WEIGHTS
    ),
    "ignored targets with virtual processes": lambda: first_update(
        network(), accelerator(virtual_processes=7), ignore_index=0
    ),
    "a sum that is divided by its rows": sum_over_rows,
    "float64 targets": precise_targets,
    "an evaluation that draws": evaluation_that_draws,
    "one batch of another loader": one_batch_of_another_loader,
    "gradients in the loss": slopes,
}
