"""--compile: the same training, the same bits after a stop, a plain file, and one sentence where it cannot be."""

import shutil
from typing import Any

import pytest
from conftest import PYTHON, call, forked, rewind, train_py, weight_difference, weights_of

from mnist_dist.task.networks import from_state_dict

pytestmark = pytest.mark.slow  # compiling takes 10 to 40 seconds
COMMON = "--dataset mnist-5k --cpu --wandb disabled".split()


@pytest.mark.parametrize(
    ("network", "several"),
    # With batches of one size, and of two.
    [("mlp --val-size 160", (1, 2)), ("cnn --channels 2 3 --hidden 5 --batch-size 512", (2,))],
)
def test_the_training_is_that_of_the_network_as_it_is_on_one_process_and_on_two(
    network, several, tmp_path
):
    flags = [*COMMON, "--model", *network.split()]
    flags += "--dtype float64 --epochs 1 --gradient-accumulation-steps 2 --dropout 0.1 --output-dir".split()
    plain = forked(1, [([*flags, tmp_path / "plain"], None)])
    assert plain.returncode == 0, plain.stderr
    for processes in several:
        done = forked(processes, [(["--compile", *flags, tmp_path / str(processes)], None)])
        assert done.returncode == 0, done.stderr
        assert weight_difference(tmp_path / "plain", tmp_path / str(processes)) <= 1e-9
    loaded = from_state_dict(weights_of(tmp_path / "2"))  # refuses names with wrappers' prefixes
    assert loaded.state_dict().keys() == weights_of(tmp_path / "2").keys()


def test_resumed_it_ends_with_the_bits_of_the_run_that_was_never_stopped(tmp_path):
    flags = [
        *COMMON,
        *"--compile --val-size 160 --epochs 2 --checkpoint-every 50 --resume --output-dir".split(),
    ]
    done = train_py(*flags, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    rewind(tmp_path / "run")
    done = train_py(*flags, tmp_path / "run")
    assert done.returncode == 0 and "resuming from update 100 (epoch 2)" in done.stdout, (
        done.stdout + done.stderr
    )
    assert weight_difference(tmp_path / "whole", tmp_path / "run") == 0


def test_a_launcher_that_would_compile_does_not_where_it_was_not_asked_for():
    code = (
        "from mnist_dist.run import launch\n"
        "from mnist_dist.task import networks\n"
        "accelerator, model = launch.start(cpu=True), networks.build('mlp')\n"
        "print(accelerator.prepare(model) is model)"
    )
    assert call(PYTHON, "-c", code, ACCELERATE_DYNAMO_BACKEND="EAGER").stdout == "True\n"


@pytest.mark.parametrize("compiler", ["missing", "broken"])
def test_without_a_compiler_that_works_it_says_so_in_one_sentence(compiler, tmp_path):
    if compiler == "broken":
        (tmp_path / "broken").write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo g++ 13 || exit 1\n'
        )
        (tmp_path / "broken").chmod(0o755)
    flags = ["--compile", *COMMON, "--epochs", "1", "--output-dir", tmp_path / "run"]
    # Otherwise what was compiled before would be taken.
    cache: dict[str, Any] = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = call(PYTHON, "train.py", *flags, CXX=str(tmp_path / compiler), **cache)
    assert done.returncode == 1
    assert (
        "train.py: error: torch.compile failed (" in done.stderr
        and "leave --compile out" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
