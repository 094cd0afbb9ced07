"""The networks: `MNISTNet`, the multilayer perceptron, and `ConvNet`."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.errors import UserError

IMAGE = (1, 28, 28)
CLASSES = 10


class Classifier(nn.Module):
    """What every network here can do besides giving logits."""

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 10), rows summing to 1, of normalised images (N, 1, 28, 28)."""
        return F.softmax(self(images), dim=1)


class MNISTNet(Classifier):
    """The multilayer perceptron: flatten, then fully connected layers fc1, fc2, ... with ReLU between them.

    With the default hidden sizes: fc1 784-128, fc2 128-64, fc3 64-10, which are 109,386 parameters.

    Args:
        hidden: sizes of the hidden layers, each at least 1; empty for a linear classifier.
    """

    def __init__(self, hidden: Sequence[int] = (128, 64)) -> None:
        super().__init__()
        self.layers = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise([math.prod(IMAGE), *hidden, CLASSES]), 1):
            self.layers.append(f"fc{number}")
            setattr(self, f"fc{number}", nn.Linear(inputs, outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28) or (N, 784), normalised, in the dtype of the weights."""
        x = images.flatten(1)
        *hidden, last = self.layers
        for name in hidden:
            x = F.relu(getattr(self, name)(x))
        return getattr(self, last)(x)


class ConvNet(Classifier):
    """The two convolutions of the classic PyTorch MNIST example: 32 and 64 maps of 3x3, pooling, 128 units.

    Without that example's dropout, whose masks would depend on how many processes share a batch.
    1,199,882 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.fc2 = nn.Linear(128, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalised, in the dtype of the weights."""
        x = F.relu(self.conv1(images))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def build(name: str, hidden: Sequence[int] = (128, 64)) -> Classifier:
    """The network of that name, "mlp" or "cnn", with fresh weights from torch's global generator."""
    return MNISTNet(hidden) if name == "mlp" else ConvNet()


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def from_state_dict(weights: Mapping[str, Tensor]) -> Classifier:
    """The network that these weights belong to, told by their names and shapes alone, loaded and in eval mode.

    Raises:
        UserError: the weights are not those of a network of this module.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    layers = [re.fullmatch(r"fc(\d+)\.weight", key) for key in shapes]
    numbers = sorted(int(layer[1]) for layer in layers if layer)  # files may keep names in another order
    hidden = [shapes[f"fc{number}.weight"][0] for number in numbers if shapes[f"fc{number}.weight"]][:-1]
    with torch.device("meta"):  # shapes without memory: they may be absurd
        model = build("cnn" if "conv1.weight" in shapes else "mlp", hidden)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if shapes != expected:
        unlike = sorted(key for key in shapes.keys() | expected.keys() if shapes.get(key) != expected.get(key))
        found = ", ".join(f"{key} {shapes.get(key, 'missing')}" for key in unlike[:3])
        raise UserError(
            f"the weights are not those of a digit classifier from {math.prod(IMAGE)} pixels to {CLASSES} classes: "
            f"{found}"
        )
    model.load_state_dict(weights, assign=True)
    return model.eval()
