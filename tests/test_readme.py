"""The README's pieces of Python do what it says."""

import re

import pytest
import torch
from conftest import REPOSITORY

from mnist_dist.run.weights import load_weights
from mnist_dist.task.data import load
from mnist_dist.task.networks import MNISTNet, from_state_dict

FIRST, SECOND = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def test_the_model_needs_nothing_of_this_project(trained, monkeypatch):
    data = load("mnist-5k", None)
    monkeypatch.chdir(trained)
    names = {"torch": torch, "digit": data.pixels(data.test.images[3])}
    exec(FIRST, names)
    expected = from_state_dict(load_weights(trained / "mnist_model.pth"))(data.test.images[3:4])[0]
    torch.testing.assert_close(names["logits"], expected, atol=1e-4, rtol=1e-4)


def test_the_parts_train_other_data_and_other_models(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = load("mnist-5k", None)
    torch.manual_seed(0)
    names = {"torch": torch, "images": data.train.images, "labels": data.train.labels, "model": MNISTNet((32,))}
    exec(SECOND, names)
    predictions = names["model"](data.test.images).argmax(1)
    assert (predictions == data.test.labels).float().mean() > 0.85


@pytest.mark.parametrize("path", ["LICENSE", "requirements.txt", "accelerate_config.yaml"])
def test_what_the_readme_names_is_there(path):
    assert (REPOSITORY / path).is_file()
