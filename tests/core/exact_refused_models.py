"""Models and losses that the core must refuse, by the words that its sentence has to hold."""

import torch
import torch.nn.functional as F
from exact_asking import Ask, Counts, Recurrent, encoder, first_update, network
from exact_data import (
    BATCH,
    accelerator,
    mlp,
    numbers,
)
from torch import Tensor, nn


class OwnBatchNorm(nn.BatchNorm1d):
    """Its forward pass is not torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).relu()


class Drops(nn.Module):
    """Draws random numbers in its forward, without a layer that could be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(6, 8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.dropout(self.layer(inputs), 0.5, self.training)


def parameters_of_the_loss() -> None:
    """A loss with parameters of its own, which the optimizer is given, too."""
    model = mlp(6, 5, 1)
    temperature = nn.Parameter(numbers(1))
    accelerator().prepare(model, torch.optim.SGD([*model.parameters(), temperature], lr=0.1))


REFUSED_MODELS: dict[str, tuple[Ask, str]] = {
    "a batch norm of the user's": (
        lambda: first_update(network(OwnBatchNorm(6))),
        "OwnBatchNorm 1 computes statistics over",
    ),
    "instance norm with averages": (
        lambda: first_update(
            network(
                nn.Unflatten(1, (3, 2)),
                nn.InstanceNorm1d(3, track_running_stats=True),
                nn.Flatten(),
            )
        ),
        "GroupNorm or LayerNorm, or set virtual_processes",
    ),
    "batch norm in pieces": (
        lambda: first_update(network(nn.BatchNorm1d(6)), accelerator(micro_batches=2)),
        "BatchNorm1d 1 needs all rows of a batch at once",
    ),
    "dropout": (
        lambda: first_update(network(nn.Dropout(0.1))),
        "Dropout 1 draws random numbers for",
    ),
    "dropout in an encoder": (
        lambda: first_update(network(nn.Unflatten(1, (1, 6)), encoder(0.1), nn.Flatten())),
        "MultiheadAttention 2.self_attn draws random numbers for",
    ),
    "dropout between GRUs": (
        lambda: first_update(Recurrent(0.1)),
        "GRU gru draws random numbers for",
    ),
    "dropout in the forward": (
        lambda: first_update(Drops()),
        "the model or loss draws random numbers (torch)",
    ),
    "noise in the forward": (
        lambda: first_update(network(nn.RReLU())),
        "draws random numbers (torch)",
    ),
    "a state in the forward": (
        lambda: first_update(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3).double())),
        "changes its buffer parametrizations.weight.0._",
    ),
    "a loss for each": (
        lambda: first_update(network(), reduction="none"),
        "give the mean over its rows, a scalar",
    ),
    "an embedding's frequencies": (
        lambda: first_update(Counts(scale_grad_by_freq=True)),
        "scale_grad_by_freq",
    ),
    "an embedding's norm": (lambda: first_update(Counts(max_norm=1.0)), "leave out max_norm"),
    "an embedding's norm with virtual processes": (
        lambda: first_update(Counts(max_norm=1.0), accelerator(virtual_processes=7)),
        "leave out max_norm",
    ),
    "batch normalisation over processes": (
        lambda: first_update(
            network(nn.SyncBatchNorm(6).double()), accelerator(virtual_processes=7)
        ),
        "use BatchNorm with virtual_processes",
    ),
    "batch norm of a share with one sample": (
        lambda: first_update(network(nn.BatchNorm1d(6)), accelerator(virtual_processes=BATCH)),
        "BatchNorm1d 1 got a share with a single value per channel",
    ),
    "parameters of the loss": (
        parameters_of_the_loss,
        "not the model's, so they would not be saved: make them part of the model",
    ),
}
