"""Promise 1, strongest: with virtual processes weights and figures have the same bits on any number of real ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import (
    checkpoint_of,
    forked,
    read_lines,
    rewind,
    torchrun,
    train_py,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st

from mnist_dist.core.sharing import Sharing
from mnist_dist.core.tree import ShareRange, complete_subtrees, tree_sum

ALL = (
    "--gradient-accumulation-steps 2 --schedule one-cycle --clip-norm 1 --weight-decay 0.01 --ema 0.9 --affine 0.5 "
    "--elastic 0.5 --dropout 0.1 --label-smoothing 0.1"
).split()
CNN = "--model cnn --channels 4 8".split()
VARIANTS = {
    "plain": [],
    "mlp": ALL,
    "cnn": [*CNN, *ALL],
}
FAULTS = {
    "summed_as_they_arrive": "plain",
    "shares_put_together": "plain",
    "share_dropped": "plain",
    "threads_of_the_machine": "cnn",
}
# 736 training samples: 13 updates, the last one of 4 samples, so that half of the shares are empty.
COMMON = (
    "--dataset mnist-5k --val-size 3264 --batch-size 61 --epochs 1 --virtual-processes 8 --checkpoint-every 5 --cpu "
    "--wandb disabled --output-dir"
).split()


def train_all(folder: Path, processes: int, names=VARIANTS, faults=(), resume=None) -> None:
    """The variants, those with a fault planted, and a run to go on with, on so many real processes."""
    runs = [([*VARIANTS[name], *COMMON, folder / name], None) for name in names]
    runs += [([*VARIANTS[FAULTS[fault]], *COMMON, folder / fault], fault) for fault in faults]
    runs += [([*VARIANTS[resume.name], *COMMON, resume, "--resume"], None)] if resume else []
    done = forked(processes, runs)
    assert done.returncode == 0, done.stderr


def lines_of(run: Path) -> list[dict]:
    """Those of metrics.jsonl without times."""
    return [
        {name: value for name, value in line.items() if name != "samples_per_second"}
        for line in read_lines(run / "metrics.jsonl")
    ]


def assert_same_bits(run: Path, other: Path) -> None:
    """Weights, every figure but times, and what the newest checkpoint holds of the training."""
    one, two = weights_of(run), weights_of(other)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert lines_of(run) == lines_of(other)
    states = [checkpoint_of(each)["state"] for each in (run, other)]
    for state in states:
        _tracker, loss, _stopwatch, *average = state["custom"]
        state["custom"] = [loss, *average]
    # All digits of all numbers that decide how the training goes on.
    assert repr(states[0]) == repr(states[1])
    moments = [state["optimizers"][0]["state"] for state in states]
    for number, of_parameter in moments[0].items():
        assert all(
            torch.equal(of_parameter[name], moments[1][number][name]) for name in of_parameter
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train_all(folder, 1)
    return folder


@pytest.mark.parametrize(
    ("processes", "names", "faults"),
    [
        (3, ["mlp"], ()),
        pytest.param(3, ["mlp", "cnn"], FAULTS, marks=pytest.mark.slow),
        pytest.param(2, VARIANTS, FAULTS, marks=pytest.mark.slow),
        pytest.param(5, VARIANTS, FAULTS, marks=pytest.mark.slow),
        pytest.param(8, VARIANTS, (), marks=pytest.mark.slow),
    ],
)
def test_bits_are_those_of_one_process_unless_a_fault_is_planted(
    processes, names, faults, alone, tmp_path
):
    """Of runs never stopped, begun alone and gone on with by several in mid-epoch, and the reverse."""
    handed_on = tmp_path / "from one" / "mlp"
    shutil.copytree(alone / "mlp", handed_on)
    rewind(handed_on)
    train_all(tmp_path, processes, names, faults, handed_on)
    for name in names:
        assert_same_bits(tmp_path / name, alone / name)
    for fault in faults:
        with pytest.raises(AssertionError):
            assert_same_bits(tmp_path / fault, alone / FAULTS[fault])
    assert_same_bits(handed_on, alone / "mlp")
    rewind(tmp_path / "mlp")
    done = train_py(*VARIANTS["mlp"], *COMMON, tmp_path / "mlp", "--resume", OMP_NUM_THREADS="2")
    assert done.returncode == 0 and "resuming from update 10" in done.stdout, done.stderr
    assert_same_bits(tmp_path / "mlp", alone / "mlp")


@pytest.mark.slow
def test_bf16_has_the_same_bits_on_1_and_3_processes(tmp_path):
    for processes in (1, 3):
        flags = [*VARIANTS["cnn"], *COMMON, tmp_path / str(processes), "--mixed-precision", "bf16"]
        done = forked(processes, [(flags, None)])
        assert done.returncode == 0, done.stderr
    assert_same_bits(tmp_path / "3", tmp_path / "1")


@pytest.mark.slow
def test_an_epoch_of_mnist_has_the_same_bits_on_1_2_and_3_processes(mnist, tmp_path):
    flags = [
        "--data-dir",
        str(mnist),
        "--epochs",
        "1",
        "--virtual-processes",
        "4",
        "--cpu",
        "--wandb",
        "disabled",
    ]
    for processes in (1, 2, 3):
        done = forked(processes, [([*flags, "--output-dir", tmp_path / str(processes)], None)])
        assert done.returncode == 0, done.stderr
        assert_same_bits(tmp_path / str(processes), tmp_path / "1")


@pytest.mark.slow
def test_more_processes_than_virtual_ones_and_other_bits_on_a_resume_are_refused(alone, tmp_path):
    run = tmp_path / "plain"
    shutil.copytree(alone / "plain", run)
    more = torchrun(2, "train.py", *COMMON, tmp_path / "run", "--virtual-processes", "1")
    assert more.returncode and "2 processes cannot share 1 virtual processes" in more.stderr
    other = train_py(*COMMON, run, "--resume", "--virtual-processes", "4")
    assert other.returncode == 1 and "--virtual-processes is 4, but the run" in other.stderr
    config = json.loads((run / "config.json").read_text())
    assert config["threads"] == 1 and config["versions"]["torch"] in torch.__version__


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_who_has_which_share_changes_no_bit_of_the_sum(shares, world, random):
    world = min(world, shares)
    gradients = [
        torch.tensor([random.uniform(-1, 1) * 10 ** random.randint(-6, 6)]) for _ in range(shares)
    ]

    def summed(world: int) -> torch.Tensor:
        sums: dict[ShareRange, list[torch.Tensor]] = {}
        for rank in range(world):
            held = Sharing(shares, world, rank).own_shares
            own = {}
            for share in held:  # added up as they come
                own[share, share + 1] = [gradients[share].clone()]
                complete = complete_subtrees(range(held.start, share + 1), 0, shares)
                own = {part: tree_sum(own, *part) for part in complete}
            assert list(own) == complete_subtrees(held, 0, shares)
            sums |= own
        return tree_sum(sums, 0, shares)[0]

    assert torch.equal(summed(world), summed(1))
    # One process has nothing left to add.
    assert len(complete_subtrees(range(shares), 0, shares)) == 1
