"""Where the time of an update goes: each part of the real step by itself, and what the whole loop adds.

    python benchmarks/step_profile.py --data-dir data [--cpu]

The lowest of ten rounds of 200 (the whole: of an epoch) on one process: what other programs on the machine add is never
negative. The parts are run apart, so caches are a little kinder to them than the loop. On a GPU, which each round waits
for at its end, they are the larger of what the host needs to ask for them and what the GPU needs to do them.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist.core import Batch, GlobalBatches, Progress, Training
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.task import data, networks
from mnist_dist.task.objective import adam, loss_of, schedule


def microseconds(part: Callable[[], object], repeats: int = 200) -> float:
    times = []
    for _ in range(10):
        finished()
        begin = time.perf_counter()
        for _ in range(repeats):
            part()
        finished()
        times.append(1e6 * (time.perf_counter() - begin) / repeats)
    return min(times)


def finished() -> None:
    """Wait for the device, if it is no CPU."""
    if PartialState().device.type != "cpu":
        torch.accelerator.synchronize()


def endless(batches: GlobalBatches) -> Iterator[Batch]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from batches.epoch(epoch)


def profile(accelerator: Accelerator, samples: data.Split, config: TrainConfig) -> dict[str, float]:
    """Microseconds of an update by part; the last is the whole."""
    network = networks.build(config.model, config.hidden, config.channels).to(accelerator.device)
    loss, optimizer = loss_of(network, config), adam(network, config)
    training = Training(accelerator, network, optimizer, loss)
    batches = GlobalBatches(samples.tensors, config.batch_size, seed=0)
    rate, dealt = schedule(config, len(batches)), endless(batches)
    batch = next(dealt)

    def forward() -> torch.Tensor:
        return loss(training.model, batch)

    def backward() -> None:
        optimizer.zero_grad()
        forward().backward()

    def epoch() -> None:
        training.progress = Progress()
        for batch in training.epoch(batches):
            training.set_rate(rate(training.progress.global_step))
            training.update(batch)
            if training.progress.step % config.log_every == 0:
                training.recent_loss()

    forward().backward()
    found = {
        "the batch": microseconds(lambda: next(dealt)),
        "forward and loss": microseconds(forward),
        "backward": microseconds(backward),
        "optimizer": microseconds(optimizer.step),
    }
    found["backward"] -= found["forward and loss"]
    whole = microseconds(epoch, repeats=1) / math.ceil(len(samples) / config.batch_size)
    return found | {
        "order, rate, loss curve, progress, and colder caches than the parts alone have": whole - sum(found.values()),
        "an update": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args = parser.parse_args()
    accelerator = launch.start(args.cpu)
    train = data.load("mnist", args.data_dir).train.to(accelerator.device)
    columns = {f"batch {size}": profile(accelerator, train, TrainConfig(batch_size=size)) for size in (64, 512)}
    print(launch.describe(accelerator))
    print(f"| part | {' | '.join(f'{name}, µs | share' for name in columns)} |\n|---|{'---:|---:|' * len(columns)}")
    for part in columns["batch 64"]:
        cells = [f"{column[part]:,.0f} | {column[part] / column['an update']:.0%}" for column in columns.values()]
        print(f"| {part} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
