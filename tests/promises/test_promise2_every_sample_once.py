"""Promise 2: every sample exactly once, at any size, batch and number of processes."""

import json

import pytest
import torch
from conftest import forked, read_lines, torchrun
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mnist_dist.core.loader import TensorReader
from mnist_dist.core.microbatches import MicroBatchSampler
from mnist_dist.core.orders import EqualBatches
from mnist_dist.core.sampler import ExactSampler
from mnist_dist.core.sharing import Sharing


def numbered(size: int) -> list[torch.Tensor]:
    """Images that hold their own numbers, and labels that are them."""
    return [torch.arange(size, dtype=torch.float32).view(size, 1, 1, 1), torch.arange(size)]


def batches_of(
    size: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    *,
    seed: int = 0,
    shuffle: bool = True,
):
    """The samples of each batch that a process is given."""
    sharing = Sharing(shares=world, world=world, rank=rank)
    sampler = ExactSampler(range(size), sharing, shuffle=shuffle, seed=seed)
    return MicroBatchSampler(EqualBatches(sampler, batch_size), sharing, seed=seed)


@given(
    size=st.integers(1, 400),
    batch_size=st.integers(1, 450),
    processes=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_shares_make_up_the_batches_and_batches_the_epoch(
    size, batch_size, processes, seed, epoch, shuffle
):
    def epoch_of(world: int) -> list[list]:
        """The batches of each process."""
        dealt = []
        for rank in range(world):
            batches = batches_of(size, batch_size, rank, world, seed=seed, shuffle=shuffle)
            assert len(batches) == -(-size // batch_size)
            dealt.append(list(TensorReader(numbered(size), batches).epoch(epoch, 0, 1)))
            of_sampler = ExactSampler(range(size), batches.sharing, shuffle=shuffle, seed=seed)
            of_sampler.set_epoch(epoch)
            assert sum((batch.index.tolist() for batch, _ in dealt[-1]), []) == list(of_sampler)
            assert len(of_sampler) == sum(len(batch) for batch, _ in dealt[-1])
        return dealt

    assume(processes <= size)
    ((*alone,),) = epoch_of(1)
    order = torch.cat([batch.index for batch, _ in alone])
    assert sorted(order.tolist()) == list(range(size))  # each sample once
    assert shuffle or order.tolist() == list(range(size))

    position = 0
    for (whole, _), *shares in zip(alone, *epoch_of(processes), strict=True):
        lengths = [len(share) for share, _ in shares]
        assert max(lengths) - min(lengths) <= 1
        assert all(
            share.size == share.update_size == whole.size == sum(lengths) for share, _ in shares
        )
        # Every W-th position of the epoch belongs to one process.
        for rank, (share, rows) in enumerate(shares):
            first = (rank - position) % processes
            assert torch.equal(share.index, whole.index[first::processes])
            assert torch.equal(rows[1], share.index)
            assert torch.equal(rows[0].flatten().long(), share.index)
        position += whole.size


def test_real_processes_count_each_test_sample_once(trained, tmp_path):
    done = torchrun(3, "evaluate.py", trained, "--cpu", "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "evaluation.json").read_text())
    summary = json.loads((trained / "summary.json").read_text())
    assert result["num_processes"] == 3
    assert (result["total"], result["correct"]) == (1000, summary["test_correct"])
    assert sum(map(sum, result["confusion_matrix"])) == 1000


def test_real_processes_train_on_each_sample_once_in_the_order_of_one_process(tmp_path):
    flags = (
        "--dataset mnist-5k --epochs 2 --batch-size 50 --cpu --wandb disabled --output-dir".split()
    )
    done = forked(
        3,
        [([*flags, tmp_path / "run"], None), ([*flags, tmp_path / "padded"], "padding_counted")],
        record=str(tmp_path),
    )
    assert (tmp_path / "run" / "summary.json").exists(), done.stderr
    seen = [torch.load(tmp_path / f"batches-{rank}.pt", weights_only=True) for rank in range(3)]
    updates = [sorted(sum(shares, [])) for shares in zip(*seen, strict=True)][:160]
    alone = batches_of(4000, 50)
    for epoch, batches in enumerate((updates[:80], updates[80:])):
        assert sorted(sum(batches, [])) == list(range(4000))
        assert batches == [sorted(batch.index.tolist()) for (batch,) in alone.epoch(epoch)]
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [(line["epoch"], line["global_step"]) for line in lines] == [(1, 80), (2, 160)]

    # Field note 6, planted: an evaluation that counts a sample twice must not come to a result.
    assert done.returncode != 0
    assert "2 of 1000 samples were not counted exactly once" in done.stderr
    assert not (tmp_path / "padded" / "summary.json").exists()


@pytest.mark.slow
def test_total_is_10000_on_the_full_test_set(mnist, trained, tmp_path):
    data = ["--dataset", "mnist", "--data-dir", mnist]
    counts = set()
    for processes in (1, 2, 3, 7):
        out = tmp_path / str(processes)
        done = torchrun(processes, "evaluate.py", trained, *data, "--cpu", "--output-dir", out)
        assert done.returncode == 0, done.stderr
        result = json.loads((out / "evaluation.json").read_text())
        assert result["total"] == 10_000
        counts.add(result["correct"])
    assert len(counts) == 1
