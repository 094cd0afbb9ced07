"""What a watched training holds: its weights, their moving average, and the figures it has noted."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mnist_dist.core import ExactAccelerator
from mnist_dist.run.weights import fingerprint


class FirstWeights:
    """The weights of a training before its first update, also if it does not come to that.

    Attributes:
        modules: those that have been made with parameters, in order.
    """

    def __init__(self) -> None:
        self.modules: dict[nn.Module, None] = {}

    def note(self, module: nn.Module, *_: object) -> None:
        """Remember a module that is being made, with a parameter."""
        self.modules[module] = None

    def describe(self) -> tuple[str, str]:
        """Return of which dtypes they are now, in words, and their digest."""
        weights = {}
        for number, module in enumerate(self.modules):
            for name, parameter in module.named_parameters(recurse=False):
                weights[f"{number}.{name}"] = parameter.detach()
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
        return " and ".join(sorted(dtypes)), fingerprint(weights)


def weights_of(accelerator: ExactAccelerator) -> dict[str, Tensor]:
    """Return the weights in training, by name."""
    network = accelerator.unwrapped_models[0]
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def averages_of(accelerator: ExactAccelerator) -> dict[str, Tensor]:
    """Return the moving average of the weights, by name; nothing if there is none."""
    found: dict[str, Tensor] = {}
    for part in accelerator._custom_objects:
        if isinstance(part, AveragedModel):
            found = dict(part.module.named_parameters())
    return found


def history_of(accelerator: ExactAccelerator) -> Sequence[Mapping[str, Any]]:
    """Return the figures that a training has noted; nothing if it notes none."""
    for part in accelerator._custom_objects:
        history = getattr(part, "history", None)
        if history is not None:
            return history
    return ()
