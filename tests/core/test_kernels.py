"""Other kernels give other bits: with virtual processes they are noticed before they train."""

import random

import numpy as np
import pytest
import torch
from conftest import PYTHON, torchrun, train_py, without
from torch import nn

from mnist_dist.core.kernels import kernel_digest, layers_of

CPU = torch.device("cpu")
FLAGS = (
    "--dataset mnist-5k --val-size 3264 --batch-size 61 --virtual-processes 8 --checkpoint-every 5 --cpu "
    "--wandb disabled"
).split()
CNN = "--model cnn --channels 4 8".split()


def some_layers() -> nn.ModuleList:
    """Layers of all the kinds that kernels are looked at for, and some of other kinds."""
    return nn.ModuleList(
        [
            nn.Linear(300, 20),
            nn.Conv1d(4, 6, 3, padding="same", dilation=2),
            nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2),
            nn.Conv3d(2, 3, 5, padding="valid"),
            nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
            nn.BatchNorm2d(5),
            nn.GroupNorm(2, 6),
            nn.LayerNorm(9),
            nn.LSTM(7, 8),
            nn.MultiheadAttention(8, 2),
            nn.Embedding(11, 4),
        ]
    )


def generator_states() -> list:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_digest_is_always_the_same_and_touches_nothing(precision):
    model = some_layers()
    before = generator_states(), {name: each.clone() for name, each in model.state_dict().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as virtual processes do
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = {kernel_digest([model], 7, CPU, precision) for _ in range(3)}
    found |= {kernel_digest([model], 7, CPU, precision) for _ in range(20)}
    torch.set_num_threads(threads)
    assert len(found) == 1
    assert generator_states() == before[0]
    assert all(torch.equal(each, before[1][name]) for name, each in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    other = {
        kernel_digest([model], 8, CPU, precision),
        kernel_digest([model[:2]], 7, CPU, precision),
    }
    assert len(other) == 2 and not other & found


def test_every_kind_of_layer_is_looked_at():
    kinds = [layer[0] for layer in layers_of(some_layers())]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "linear": 1 + 2 + 2 + 1,  # of an LSTM and of attention both matrices
        "convolution": 4,
        "batch_norm": 1,
        "group_norm": 1,
    }


@pytest.mark.slow
def test_a_resume_with_kernels_that_give_other_bits_is_refused(tmp_path):
    run = tmp_path / "run"
    begun = train_py(*FLAGS, *CNN, "--epochs", "1", "--output-dir", run)
    assert begun.returncode == 0, begun.stderr
    goes_on = [*FLAGS, *CNN, "--epochs", "2", "--output-dir", run, "--resume"]
    other = train_py(*goes_on, ONEDNN_MAX_CPU_ISA="SSE41")
    assert other.returncode == 1 and other.stderr.count("\n") == 1, other.stderr
    assert "the kernels of this machine are not bit-identical to" in other.stderr
    assert "set here: ONEDNN_MAX_CPU_ISA=SSE41)" in other.stderr
    same = train_py(*goes_on, OMP_NUM_THREADS="2")
    assert same.returncode == 0, same.stderr


@pytest.mark.slow
def test_one_process_with_other_kernels_is_refused(tmp_path):
    if not torch.backends.mkl.is_available():
        without("torch is built without MKL here")
    command = " ".join([PYTHON, "train.py", *FLAGS, "--output-dir", str(tmp_path / "run")])
    other_on_rank_1 = f'[ "$RANK" = 1 ] && export MKL_CBWR=COMPATIBLE; exec {command}'
    done = torchrun(2, "--no-python", "bash", "-c", other_on_rank_1)
    assert done.returncode == 1
    assert "the kernels of process 1 are not bit-identical to" in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
