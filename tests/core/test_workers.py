"""How workers of a loader are started."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_data import BATCH, SAMPLES, Rows, accelerator, numbers
from torch.utils.data import DataLoader, IterableDataset

from mnist_dist.core import workers


class Numbers(IterableDataset):
    """A stream."""

    def __iter__(self) -> Any:
        return iter(torch.arange(SAMPLES))


@pytest.mark.parametrize("dataset", [Rows(numbers(SAMPLES, 6)), Numbers()], ids=["map", "stream"])
@pytest.mark.parametrize(
    ("several", "may_hang", "number", "pauses"),
    [(True, True, 1, 2), (True, True, 0, 0), (True, False, 1, 0), (False, True, 1, 0)],
)
def test_gloo_s_threads_come_to_rest_before_workers_are_forked(
    several, may_hang, number, pauses, dataset, monkeypatch
):
    """In every epoch. Without the pause a worker hangs about once in a thousand epochs."""
    paused: list[float] = []
    loader = accelerator().prepare(DataLoader(dataset, BATCH, num_workers=number))
    monkeypatch.setattr(workers, "FORK_MAY_HANG", may_hang)
    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=paused.append))
    monkeypatch.setattr(workers, "dist", SimpleNamespace(is_initialized=lambda: several))
    for _ in range(2):
        before_workers = len(paused)
        for _ in loader:
            assert len(paused) == before_workers + bool(pauses)
    assert paused == pauses * [workers.PAUSE]
