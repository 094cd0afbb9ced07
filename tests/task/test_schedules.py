"""The schedules against PyTorch's own."""

import pytest
import torch

from mnist_dist.task.schedules import learning_rate


def torchs(scheduler_of, steps: int, peak: float) -> list[float]:
    """The rate that a torch scheduler sets for each of so many updates."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler, rates = scheduler_of(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(steps: int, **settings) -> list[float]:
    return [learning_rate(step, steps, **settings) for step in range(steps)]


@pytest.mark.parametrize("warmup", [None, 0.1, 0.5])
def test_one_cycle_is_torchs(warmup):
    expected = torchs(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            0.01,
            total_steps=101,
            pct_start=0.3 if warmup is None else warmup,
            cycle_momentum=False,
        ),
        100,
        0.01,
    )
    rates = [
        learning_rate(step, 101, peak=0.01, schedule="one-cycle", warmup=warmup)
        for step in range(100)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_cosine_is_torchs():
    expected = torchs(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80), 80, 0.01
    )
    assert ours(80, peak=0.01, schedule="cosine") == pytest.approx(expected, rel=1e-9)


def test_warm_up_rises_in_equal_steps_and_then_the_schedule_starts():
    assert ours(10, peak=1.0, schedule="constant", warmup=0.4) == pytest.approx(
        [0.25, 0.5, 0.75] + 7 * [1.0]
    )
    assert ours(10, peak=1.0, schedule="cosine", warmup=0.2)[:3] == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("warmup", [None, 0.0, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_rates_of_the_shortest_runs_are_in_range(schedule, warmup, total):
    assert all(0 <= rate <= 1 for rate in ours(total, peak=1.0, schedule=schedule, warmup=warmup))
