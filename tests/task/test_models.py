"""The networks, and the networks that a file's names and shapes stand for."""

import pytest
import torch

from mnist_dist.core import UserError, generator_for
from mnist_dist.task.networks import ConvNet, MNISTNet, build, from_state_dict, parameter_count


def test_the_default_is_the_original_network():
    model = MNISTNet()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "fc1.weight": (128, 784),
        "fc1.bias": (128,),
        "fc2.weight": (64, 128),
        "fc2.bias": (64,),
        "fc3.weight": (10, 64),
        "fc3.bias": (10,),
    }
    assert parameter_count(model) == 109_386


@pytest.mark.parametrize("dropping", [False, True])
def test_logits_are_those_of_the_formula(dropping):
    model, images = MNISTNet().double(), torch.randn(5, 1, 28, 28, dtype=torch.float64)
    masks = (
        [torch.rand(5, *shape, dtype=torch.float64) for shape in model.outputs] if dropping else []
    )
    w = model.state_dict()
    x = images.reshape(5, 784)
    for number, layer in enumerate(("fc1", "fc2")):
        x = (x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).clamp(min=0)
        x = x * masks[number] if dropping else x
    torch.testing.assert_close(model(images, *masks), x @ w["fc3.weight"].T + w["fc3.bias"])


@pytest.mark.parametrize("channels", [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("dropping", [False, True])
def test_the_logits_of_the_convolutional_network_are_those_of_the_formula(channels, dropping):
    model, images = ConvNet(channels, (5,)).double(), torch.randn(4, 1, 28, 28, dtype=torch.float64)
    masks = (
        [torch.rand(4, *shape, dtype=torch.float64) for shape in model.outputs] if dropping else []
    )
    w = model.state_dict()
    x = images
    for layer in range(1, len(channels) + 1):
        x = torch.conv2d(
            x, w[f"conv{layer}.weight"], w[f"conv{layer}.bias"], padding=int(layer > 3)
        )
        if layer <= 2:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        x = (
            x * w[f"norm{layer}.weight"].view(-1, 1, 1) + w[f"norm{layer}.bias"].view(-1, 1, 1)
        ).clamp(min=0)
        x = x * masks[layer - 1].movedim(3, 1) if dropping else x
    x = (x.flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    x = x * masks[-1] if dropping else x
    torch.testing.assert_close(model(images, *masks), x @ w["fc2.weight"].T + w["fc2.bias"])


def test_the_default_convolutional_network_has_as_many_parameters_as_documented():
    assert parameter_count(ConvNet()) == 116_330


@pytest.mark.parametrize("model", [MNISTNet(), ConvNet()])
def test_probabilities_are_the_softmax_of_the_logits(model):
    images = torch.randn(3, 1, 28, 28)
    probabilities = model.probabilities(images)
    assert probabilities.shape == (3, 10)
    torch.testing.assert_close(probabilities, model(images).softmax(dim=1))
    # A process's share of a batch may be empty.
    assert model(torch.empty(0, 1, 28, 28)).shape == (
        0,
        10,
    )


@pytest.mark.parametrize(
    "model",
    [
        MNISTNet(()),
        MNISTNet(),
        MNISTNet((3, 4, 5, 6)),
        ConvNet(),
        ConvNet((3,), ()),
        ConvNet((2, 3, 4, 5), (6,)),
    ],
)
def test_weights_alone_tell_the_network(model):
    again = from_state_dict(model.state_dict())
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(again(images), model(images))
    assert not again.training


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"linear.weight": torch.zeros(10, 784)},
        MNISTNet().state_dict()
        | {"fc3.weight": torch.zeros(11, 64), "fc3.bias": torch.zeros(11)},  # other classes
        MNISTNet().state_dict() | {"fc1.weight": torch.zeros(128, 1024)},  # other images
        MNISTNet().state_dict() | {"fc4.weight": torch.zeros(10, 10)},
        {name: tensor for name, tensor in MNISTNet().state_dict().items() if name != "fc2.bias"},
        # With the prefix of a wrapper.
        {"module." + name: tensor for name, tensor in MNISTNet().state_dict().items()},
        {"fc1.weight": torch.tensor(1.0)},
        {"conv1.weight": torch.tensor(1.0)},
        {name: tensor for name, tensor in ConvNet().state_dict().items() if name != "conv2.bias"},
        {f"conv{number}.weight": torch.zeros(2, 2, 3, 3) for number in range(1, 9)},
    ],
)
def test_other_weights_are_refused(weights):
    with pytest.raises(
        UserError, match="not those of a digit classifier from 784 pixels to 10 classes"
    ):
        from_state_dict(weights)


def test_streams_of_random_numbers_differ_by_every_word():
    draws = {tuple(torch.randint(2**40, (3,), generator=generator_for(*words)).tolist()) for words in
             [(0, 1, 0), (0, 1, 1), (1, 1, 0), (0, 2), (1, 2), (2**63 - 1, 1, 0)]}  # fmt: skip
    assert len(draws) == 6


def test_the_order_of_the_names_in_a_file_does_not_matter():
    """safetensors sorts them: fc1, fc10, fc11, fc2."""
    deep = build("mlp", tuple(range(8, 18)))
    again = from_state_dict(dict(sorted(deep.state_dict().items())))
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(again(images), deep(images))
