"""With an NVIDIA GPU (`pytest -m gpu`): what a GPU may not change. And benchmarks/gpu.py, rehearsed without one."""

import json
from importlib.metadata import version

import pytest
import torch
from conftest import PYTHON, call, weight_difference, without
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import generator_for
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.task import networks
from mnist_dist.task.objective import make_average, make_loss, make_optimizer

TRAINING = "train.py --dataset mnist-5k --wandb disabled --epochs 1 --batch-size 100".split()
OPTIONS = (
    "--model cnn --ema 0.9 --clip-norm 0.5 --gradient-accumulation-steps 2 --dropout 0.1".split()
)


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        without("a GPU is needed that PyTorch can use")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_float64_is_that_of_the_cpu(tmp_path):
    # Without dropout, whose random numbers are those of the kind of device.
    for place, flags in {"gpu": [], "cpu": ["--cpu"]}.items():
        done = call(
            PYTHON,
            *TRAINING,
            *OPTIONS[:-2],
            "--dtype",
            "float64",
            *flags,
            "--output-dir",
            tmp_path / place,
        )
        assert done.returncode == 0, done.stderr
    assert weight_difference(tmp_path / "gpu", tmp_path / "cpu") < 1e-9


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_with_virtual_processes_a_run_has_the_same_bits_again_and_after_a_stop(tmp_path):
    flags = [*TRAINING, *OPTIONS, "--affine", "0.5", "--elastic", "0.5", "--virtual-processes", "3"]
    for place, more in {
        "one": ["--epochs", "2"],
        "again": ["--epochs", "2"],
        "stopped": [],
    }.items():
        done = call(PYTHON, *flags, *more, "--output-dir", tmp_path / place)
        assert done.returncode == 0, done.stderr
    done = call(PYTHON, *flags, "--epochs", "2", "--resume", "--output-dir", tmp_path / "stopped")
    assert done.returncode == 0, done.stderr
    one, again, resumed = (
        (tmp_path / place / "mnist_model.pth").read_bytes() for place in ("one", "again", "stopped")
    )
    assert one == again == resumed


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_no_update_waits_for_the_gpu(model):
    config = TrainConfig(
        model=model, batch_size=100, ema=0.9, clip_norm=0.5, affine=0.5, elastic=0.5, dropout=0.1
    )
    accelerator = launch.start(micro_batches=2)
    network = networks.build(model).to(accelerator.device)
    optimizer = make_optimizer(network, config)
    make_average(network, optimizer, config.ema)
    images = torch.randn(1000, 1, 28, 28, generator=generator_for(1)).to(accelerator.device)
    labels = torch.arange(1000, device=accelerator.device) % 10
    loader = DataLoader(TensorDataset(images, labels), batch_size=100, shuffle=True)
    loss_function = make_loss(network, config)
    trained, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    try:
        for inputs, targets in loader:
            accelerator.backward(
                loss_function(trained, inputs, targets, accelerator.micro_batch.rand)
            )
            accelerator.clip_grad_norm_(trained.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            # The first update looks once for what depends on sharing.
            if accelerator.sync_gradients:
                # Behind which weights are compared.
                last = accelerator.gradient_state.end_of_dataloader
                torch.cuda.set_sync_debug_mode("default" if last else "error")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_without_a_gpu_the_program_for_one_says_so(tmp_path):
    done = call(PYTHON, "benchmarks/gpu.py", "--output", tmp_path / "gpu", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stderr.startswith(
        "gpu.py: error: there is no GPU that PyTorch can use"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_its_rehearsal_says_what_each_part_found_and_keeps_what_was_found_before(tmp_path):
    command = [PYTHON, "benchmarks/gpu.py", "--cpu", "--output", tmp_path / "gpu"]
    done = call(*command, "--minutes", "0.1", "--only", "verify", "options")
    assert done.returncode == 1, done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert (
        parts["verify"]["status"] == "was not done in 6 s"
        and parts["options"]["status"] == "no time was left"
    )

    quick = "machine waits shares pair".split()
    done = call(*command, "--only", *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not fit: nothing" in done.stdout
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["machine"]["found"]["torch"] == {"value": version("torch")}
    assert [name for name in quick if parts[name]["status"] != "done"] == ["waits"]
    assert parts["waits"]["status"] == "needs a GPU: CUDA alone tells where the host waits"
    assert all(
        difference < 1e-9
        for row in parts["shares"]["found"].values()
        for difference in row.values()
    )
    pair = parts["pair"]["found"]["pair"]
    assert pair["they sum"] and pair["the hook of DDP sums"]
    assert pair["seconds until the other ends"] < 60  # not 15 minutes
    tables = (tmp_path / "gpu.md").read_text()
    assert "A rehearsal on a CPU" in tables and all(
        f"## {name}\n" in tables for name in ("verify", *quick)
    )

    failed = call(*command, "--only", "machine", ACCELERATE_MIXED_PRECISION="fp8")
    again = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert failed.returncode == 1 and again.pop("machine")["status"].startswith("failed: ")
    assert again == {name: part for name, part in parts.items() if name != "machine"}
