"""The pieces of Python in README and docs do what they say, and what they name is there."""

import re
import signal
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, checkpoint_of

from mnist_dist.core.stopping import SIGNALS
from mnist_dist.run.weights import load_weights
from mnist_dist.task.data import load
from mnist_dist.task.networks import MNISTNet, from_state_dict


def python_in(page: str) -> str:
    """The one piece of Python on a page."""
    (piece,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    return piece


def test_the_model_needs_nothing_of_this_project(trained, monkeypatch):
    data = load("mnist-5k", Path())
    monkeypatch.chdir(trained)
    names = {"torch": torch, "digit": data.pixels(data.test.images[3])}
    exec(python_in("docs/flags.md"), names)
    expected = from_state_dict(load_weights(trained / "mnist_model.pth"))(data.test.images[3:4])[0]
    torch.testing.assert_close(names["logits"], expected, atol=1e-4, rtol=1e-4)


def test_the_core_trains_other_data_and_other_models(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    data = load("mnist-5k", Path())
    network = MNISTNet((32,))
    names = {"images": data.train.images, "labels": data.train.labels, "Network": lambda: network}
    exec(python_in("README.md"), names)
    assert (network(data.test.images).argmax(1) == data.test.labels).float().mean() > 0.85
    state = checkpoint_of(tmp_path / "runs/mine")["state"]
    assert state["updates"] == 5 * -(-len(data.train) // 256) and state["loaders"] == [
        {"epoch": 5, "batch": 0}
    ]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "page",
    ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))],
)
def test_what_a_page_links_to_is_there(page):
    folder = (REPOSITORY / page).parent
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", (REPOSITORY / page).read_text())
    missing = [link for link in links if not (folder / link).exists()]
    assert not missing and (links or page != "README.md")
