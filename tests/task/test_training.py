"""The training itself, against loops written by hand in plain PyTorch."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import PYTHON, call, read_lines, train_py, weights_of
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator
from mnist_dist.digits.config import TrainConfig
from mnist_dist.task import objective
from mnist_dist.task.data import load
from mnist_dist.task.networks import MNISTNet
from mnist_dist.task.objective import make_loss, make_optimizer
from mnist_dist.task.schedules import learning_rate
from mnist_dist.tools.verify import reference

DEFAULTS: dict = {}
OPTIONS = {
    "batch_size": 100,
    "lr": 0.003,
    "schedule": "cosine",
    "warmup": 0.2,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "clip_norm": 0.5,
    "ema": 0.9,
}


@pytest.mark.parametrize("options", [pytest.param(DEFAULTS, marks=pytest.mark.slow), OPTIONS])
def test_an_epoch_is_that_of_a_hand_written_loop(options, tmp_path):
    common = "--dataset mnist-5k --epochs 1 --seed 3 --dtype float64 --cpu --wandb disabled --output-dir".split()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = train_py(*common, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr

    config = TrainConfig(seed=3, epochs=1, **options)
    train = load("mnist-5k", Path(), dtype=torch.float64).train
    torch.manual_seed(3)
    model = MNISTNet().double()
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    average: dict = {}
    batches = reference.order(len(train), seed=3, epoch=0).split(config.batch_size)
    loss_sum, rate = 0.0, 0.0
    for number, index in enumerate(batches):
        rate = learning_rate(
            number, len(batches), peak=config.lr, schedule=config.schedule, warmup=config.warmup
        )
        optimizer.param_groups[0]["lr"] = rate
        images, labels = train.images[index], train.labels[index]
        loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        loss_sum += loss.item() * len(index)
        now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        average = (
            now
            if number == 0
            else {k: config.ema * average[k] + (1 - config.ema) * now[k] for k in now}
        )

    for name, tensor in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(tensor, average[name], atol=1e-9, rtol=0)
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    # A true mean over samples.
    assert line["train_loss"] == pytest.approx(loss_sum / 4000, abs=1e-9)
    assert line["learning_rate"] == pytest.approx(rate, rel=1e-12)


def test_every_update_distorts_and_drops_anew(monkeypatch):
    config, seen, network = TrainConfig(batch_size=10, dropout=0.5, affine=1), [], MNISTNet((50,))
    same = torch.rand(1, 1, 28, 28).repeat(20, 1, 1, 1), torch.zeros(20, dtype=torch.int64)
    accelerator = ExactAccelerator(cpu=True)
    loader = DataLoader(TensorDataset(*same), batch_size=10, shuffle=True)
    model, optimizer, loader = accelerator.prepare(network, make_optimizer(network, config), loader)
    loss_function = make_loss(network, config)
    forward = MNISTNet.forward

    def watched(self, *inputs):
        seen.append(inputs)
        return forward(self, *inputs)

    monkeypatch.setattr(MNISTNet, "forward", watched)
    for _ in range(2):
        for inputs, labels in loader:
            accelerator.backward(loss_function(model, inputs, labels, accelerator.micro_batch.rand))
            optimizer.step()
            optimizer.zero_grad()
    images, masks = zip(*seen, strict=True)
    for updates in (images, masks):
        assert len(updates) == 4
        assert not any(torch.equal(one, other) for one, other in itertools.combinations(updates, 2))


def test_an_update_that_fp16_skips_does_not_move_the_average():
    model = MNISTNet((3,))
    optimizer = make_optimizer(model, TrainConfig())
    averaged, scaler = objective.make_average(model, optimizer, 0.5), torch.amp.GradScaler("cpu")
    expected: dict = {}
    for number in range(4):
        loss = F.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.arange(8))
        scaler.scale(loss * (torch.inf if number in (0, 2) else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if number in (1, 3):
            now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            expected = {name: (expected.get(name, now[name]) + now[name]) / 2 for name in now}
    for name, tensor in averaged.get_submodule("module").state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_without_decay_the_optimizer_is_adam_bit_for_bit():
    torch.manual_seed(0)
    ours, theirs = MNISTNet(), MNISTNet()
    theirs.load_state_dict(ours.state_dict())
    optimizers = (
        make_optimizer(ours, TrainConfig()),
        torch.optim.Adam(theirs.parameters(), lr=0.001, fused=True),
    )
    for _ in range(10):
        images, labels = torch.randn(32, 1, 28, 28), torch.randint(10, (32,))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    assert all(
        torch.equal(one, two)
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_what_a_run_does_not_use_is_not_imported_to_start_it():
    done = call(PYTHON, "-c", "import sys, train; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    heavy = {"torchvision", "matplotlib", "wandb", "optuna", "torch._dynamo", "mlxtend", "onnx"}
    assert not heavy & set(done.stdout.split())
