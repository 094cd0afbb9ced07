"""The training itself, against loops written by hand in plain PyTorch."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import PYTHON, REPOSITORY, call, read_lines, torchrun, weights_of

from mnist_dist import training
from mnist_dist.checkpoint import TrainState
from mnist_dist.config import TrainConfig
from mnist_dist.data import Images, Loader, load
from mnist_dist.models import MNISTNet
from mnist_dist.schedules import learning_rate
from mnist_dist.training import adam

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


@pytest.mark.parametrize("options", [DEFAULTS, OPTIONS])
def test_an_epoch_is_that_of_a_hand_written_loop(options, tmp_path):
    common = "--dataset mnist-5k --epochs 1 --seed 3 --dtype float64 --cpu --wandb disabled --output-dir".split()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = call(PYTHON, "train.py", *common, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr

    config = TrainConfig(seed=3, epochs=1, **options)
    train = load("mnist-5k", None, dtype=torch.float64).train
    torch.manual_seed(3)
    model = MNISTNet().double()
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    average: dict = {}
    batches, loss_sum, rate = list(Loader(train, config.batch_size, shuffle=True, seed=3)), 0.0, 0.0
    for number, batch in enumerate(batches):
        rate = learning_rate(number, len(batches), peak=config.lr, schedule=config.schedule, warmup=config.warmup)
        optimizer.param_groups[0]["lr"] = rate
        loss = F.cross_entropy(model(batch.images), batch.labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        loss_sum += loss.item() * batch.size
        now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        average = now if number == 0 else {k: config.ema * average[k] + (1 - config.ema) * now[k] for k in now}

    for name, tensor in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(tensor, average[name], atol=1e-9, rtol=0)
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert line["train_loss"] == pytest.approx(loss_sum / 4000, abs=1e-9)  # a true mean over samples
    assert line["learning_rate"] == pytest.approx(rate, rel=1e-12)


def test_every_update_distorts_and_drops_anew(monkeypatch):
    config, state, seen = TrainConfig(batch_size=10, dropout=0.5, affine=1), TrainState(), []
    model, train_step = MNISTNet((50,)), training.train_step
    same = Images(torch.rand(1, 1, 28, 28).repeat(20, 1, 1, 1), torch.zeros(20, dtype=torch.int64))
    batches, optimizer = Loader(same, 10, shuffle=True), adam(model, config)

    def watched(accelerator, model, optimizer, batch, config):
        seen.append((batch.images, *batch.keep))
        return train_step(accelerator, model, optimizer, batch, config)

    monkeypatch.setattr(training, "train_step", watched)
    for _ in range(2):
        training.train_epoch(Accelerator(cpu=True), model, optimizer, batches, state, config)
    images, keep = zip(*seen, strict=True)
    for updates in (images, keep):
        assert len(updates) == 4
        assert not any(torch.equal(one, other) for one, other in itertools.combinations(updates, 2))


def test_an_update_that_fp16_skips_does_not_move_the_average():
    model = MNISTNet((3,))
    optimizer = adam(model, TrainConfig())
    averaged, scaler = training.average(model, optimizer, 0.5), torch.amp.GradScaler("cpu")
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
    optimizers = adam(ours, TrainConfig()), torch.optim.Adam(theirs.parameters(), lr=0.001, fused=True)
    for _ in range(10):
        images, labels = torch.randn(32, 1, 28, 28), torch.randint(10, (32,))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_what_a_run_does_not_use_is_not_imported_to_start_it():
    done = call(PYTHON, "-c", "import sys, train; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    heavy = {"torchvision", "matplotlib", "wandb", "optuna", "torch._dynamo", "mlxtend", "onnx"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    ("processes", "few"),
    [(2, True), pytest.param(4, True, marks=pytest.mark.slow), pytest.param(5, False, marks=pytest.mark.slow)],
)
def test_few_processes_send_small_buckets_of_gradients_to_each_other_and_get_the_same_bits(processes, few):
    done = torchrun(processes, REPOSITORY / "tests" / "exchange.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_bits"] and found["right"]
    if few:
        assert found["calls"]["mean_over_few"] and found["calls"]["allreduce_hook"]
    else:
        assert found["calls"] == {}
