"""Where the time of an update goes: each part of the real step by itself, and what the whole loop adds.

    python benchmarks/step_profile.py --data-dir data

The lowest of ten rounds of 200 (the whole: of an epoch) on one process: what other programs on the machine add is never
negative. The parts are run apart, so caches are a little kinder to them than the loop.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist import data, distributed, models
from mnist_dist.checkpoint import TrainState
from mnist_dist.config import TrainConfig
from mnist_dist.training import adam, train_epoch


def microseconds(part: Callable[[], object], repeats: int = 200) -> float:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        for _ in range(repeats):
            part()
        times.append(1e6 * (time.perf_counter() - begin) / repeats)
    return min(times)


def profile(samples: data.Images, config: TrainConfig) -> dict[str, float]:
    """Microseconds of an update by part; the last is the whole."""
    accelerator = distributed.start(cpu=True)
    bare = models.build(config.model, config.hidden, config.channels)
    model, optimizer = distributed.prepare(accelerator, bare, adam(bare, config))
    loader = data.Loader(samples, config.batch_size, shuffle=True)
    share = next(iter(loader.sampler))
    batch = samples[share]

    def forward() -> torch.Tensor:
        return F.cross_entropy(model(batch.images), batch.labels, reduction="sum")

    def backward() -> None:
        optimizer.zero_grad()
        forward().backward()

    def epoch() -> None:
        train_epoch(accelerator, model, optimizer, loader, TrainState(), config)

    forward().backward()
    found = {
        "the batch": microseconds(lambda: samples[share]),
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
    args = parser.parse_args()
    train = data.load("mnist", args.data_dir).train
    columns = {f"batch {size}": profile(train, TrainConfig(batch_size=size)) for size in (64, 512)}
    print(f"| part | {' | '.join(f'{name}, µs | share' for name in columns)} |\n|---|{'---:|---:|' * len(columns)}")
    for part in columns["batch 64"]:
        cells = [f"{column[part]:,.0f} | {column[part] / column['an update']:.0%}" for column in columns.values()]
        print(f"| {part} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
