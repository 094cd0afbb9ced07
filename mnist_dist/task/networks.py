"""The networks: `MNISTNet`, the multilayer perceptron, and `ConvNet`, which puts convolutions before it."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.core.errors import UserError

Name = Literal["mlp", "cnn"]
IMAGE = (1, 28, 28)
CLASSES = 10


class MNISTNet(nn.Module):
    """The multilayer perceptron: flatten, then fully connected layers fc1, fc2, ... with ReLU between them.

    With the default hidden sizes: fc1 784-128, fc2 128-64, fc3 64-10, which are 109,386 parameters.

    Args:
        hidden: sizes of the hidden layers, each at least 1; empty for a linear classifier.
        inputs: number of input features.

    Attributes:
        outputs: the shape of what each layer but the last gives for a sample.
    """

    def __init__(self, hidden: Sequence[int] = (128, 64), inputs: int = math.prod(IMAGE)) -> None:
        super().__init__()
        self.outputs: list[tuple[int, ...]] = [(units,) for units in hidden]
        self.layers = []
        for number, (before, after) in enumerate(itertools.pairwise([inputs, *hidden, CLASSES]), 1):
            self.layers.append(f"fc{number}")
            setattr(self, f"fc{number}", nn.Linear(before, after))

    def forward(self, images: Tensor, *masks: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28) or (N, 784), normalised, in the dtype of the weights.

        Args:
            masks: for each of `outputs` a tensor (N, *shape) that it is multiplied by, as
                `distortions.dropout` draws them; or none at all.
        """
        x = images.flatten(1)
        *hidden, last = self.layers
        for name, factor in zip(hidden, masks or [None] * len(hidden), strict=True):
            x = F.relu(getattr(self, name)(x))
            x = x if factor is None else x * factor
        return getattr(self, last)(x)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 10), rows summing to 1, of normalised images (N, 1, 28, 28)."""
        return F.softmax(self(images), dim=1)


def side_after(convolutions: int) -> int:
    """The side length, in pixels, of `ConvNet`'s feature maps after this many convolutions."""
    return (13, 5, 3)[min(convolutions, 3) - 1]


class ConvNet(MNISTNet):
    """A small convolutional network: `MNISTNet` over features instead of pixels.

    Each stage is a 3x3 convolution (conv1, conv2, ...), layer normalisation over the channels at
    each pixel (norm1, norm2, ...; Ba et al. 2016, as in ConvNeXt), which unlike batch normalisation
    does not depend on the other samples in a batch, and ReLU. The first three convolutions have no
    padding, because digits leave a margin, and 2x2 max pooling follows the first two: side lengths
    go from 28 to 13, 5 and 3 pixels. Further convolutions are padded and stay at 3. With the
    default sizes there are 116,330 parameters.

    Args:
        channels: maps that each convolution makes, 1 to 8 of them.
        hidden: sizes of the fully connected layers after them.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 32), hidden: Sequence[int] = (128, 64)
    ) -> None:
        super().__init__(hidden, inputs=channels[-1] * side_after(len(channels)) ** 2)
        self.convolutions = len(channels)
        maps = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise([IMAGE[0], *channels]), 1):
            setattr(
                self,
                f"conv{number}",
                nn.Conv2d(inputs, outputs, 3, padding=0 if number <= 3 else 1),
            )
            setattr(self, f"norm{number}", nn.LayerNorm(outputs))
            maps.append((side_after(number), side_after(number), outputs))
        self.outputs = maps + self.outputs
        # 1.6 times as fast on CPUs, and what tensor cores want.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, *masks: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), normalised, in the dtype of the weights."""
        x = images.to(memory_format=torch.channels_last)
        for number in range(1, self.convolutions + 1):
            x = getattr(self, f"conv{number}")(x)
            x = F.max_pool2d(x, 2) if number <= 2 else x
            x = F.relu(getattr(self, f"norm{number}")(x.permute(0, 2, 3, 1)))
            x = x * masks[number - 1] if masks else x
            x = x.permute(0, 3, 1, 2)
        return super().forward(x, *masks[self.convolutions :])


def build(
    name: str, hidden: Sequence[int] = (128, 64), channels: Sequence[int] = (16, 32)
) -> MNISTNet:
    """The network of that name, "mlp" or "cnn", with fresh weights from torch's global generator."""
    return MNISTNet(hidden) if name == "mlp" else ConvNet(channels, hidden)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def from_state_dict(weights: Mapping[str, Tensor]) -> MNISTNet:
    """The network that these weights belong to, told by their names and shapes alone, loaded and in eval mode.

    Raises:
        UserError: the weights are not those of a network of this module.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}

    def outputs(kind: str) -> list[int]:
        layers = [re.fullmatch(rf"{kind}(\d+)\.weight", key) for key in shapes]
        # Files may keep names in another order.
        numbers = sorted(int(layer[1]) for layer in layers if layer)
        return [
            shapes[f"{kind}{number}.weight"][0]
            for number in numbers
            if shapes[f"{kind}{number}.weight"]
        ]

    channels, hidden = outputs("conv"), outputs("fc")[:-1]
    with torch.device("meta"):  # shapes without memory: they may be absurd
        model = ConvNet(channels[:8], hidden) if channels else MNISTNet(hidden)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if shapes != expected:
        unlike = sorted(
            key for key in shapes.keys() | expected.keys() if shapes.get(key) != expected.get(key)
        )
        found = ", ".join(f"{key} {shapes.get(key, 'missing')}" for key in unlike[:3])
        raise UserError(
            f"the weights are not those of a digit classifier from {math.prod(IMAGE)} pixels to {CLASSES} classes: "
            f"{found}"
        )
    model.load_state_dict(weights, assign=True)
    return model.eval()
