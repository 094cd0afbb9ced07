"""Where the time of an update goes, on one process: each part of train.py's loop, and the rest.

    python benchmarks/step_profile.py
    python benchmarks/step_profile.py --cpu --rounds 1 --updates 20   (smallest)

The loop is made twice in turn: with a clock between its parts, and without. A part's time is the
lowest of the rounds' medians over updates, for what other programs on the machine add is never
negative. The rest is what an update takes in the loop without clocks beyond the sum of the parts.
On a GPU the device is waited for after every part, so that the parts add up to more than the whole.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import (
    RESULTS,
    Training,
    origin_of_result,
    print_table,
    random_digits,
    say_origin,
    wait_for,
    write_result,
)

from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch

PARTS = (
    "loader",
    "forward and loss",
    "mean loss",
    "backward",
    "clip",
    "optimizer",
    "scheduler",
    "zero_grad",
)
SAMPLES = 60_000


class Clock:
    """Notes how long each part of an update takes.

    Args:
        device: what is waited for before the time is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.of_update: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begin the next part now."""
        wait_for(self.device)
        self.begin = time.perf_counter()

    def note(self, part: str) -> None:
        """Note the end of a part, at which the next begins."""
        wait_for(self.device)
        now = time.perf_counter()
        before = self.of_update.get(part, 0.0)
        self.of_update[part] = before + now - self.begin
        self.begin = now

    def end_update(self) -> None:
        """Note the parts of an update, with virtual processes the sums over its shares."""
        for part, seconds in self.of_update.items():
            self.seconds[part].append(seconds)
        self.of_update = {}

    def medians(self) -> dict[str, float]:
        """The median of each part that took place, in microseconds."""
        found = {}
        for part, seconds in self.seconds.items():
            if seconds:
                found[part] = 1e6 * statistics.median(seconds)
        return found


def take_apart(training: Training, updates: int) -> dict[str, float]:
    """Make so many updates with a clock between their parts, and return its medians."""
    accelerator = training.accelerator
    config = training.config
    clock = Clock(accelerator.device)
    made = 0
    while made < updates:
        clock.restart()
        for images, labels in training.loader:
            clock.note("loader")
            rand = accelerator.micro_batch.rand
            loss = training.loss_function(training.model, images, labels, rand)
            clock.note("forward and loss")
            training.train_loss.update(loss)
            clock.note("mean loss")
            accelerator.backward(loss)
            clock.note("backward")
            if config.clip_norm:
                accelerator.clip_grad_norm_(training.model.parameters(), config.clip_norm)
                clock.note("clip")
            training.optimizer.step()
            clock.note("optimizer")
            training.scheduler.step()
            clock.note("scheduler")
            training.optimizer.zero_grad()
            clock.note("zero_grad")
            if accelerator.sync_gradients:
                clock.end_update()
                made += 1
            if made == updates:
                break
        training.train_loss.reset()
    return clock.medians()


def profile(training: Training, rounds: int, updates: int) -> dict[str, float]:
    """The microseconds of each part of an update, of the rest, and of the whole."""
    training.make_updates(10)  # to be warm
    parts = []
    wholes = []
    for _ in range(rounds):
        parts.append(take_apart(training, updates))
        wholes.append(1e6 * training.seconds_of(updates) / updates)
    found = {}
    for part in parts[0]:
        found[part] = min(one[part] for one in parts)
    whole = min(wholes)
    rest = whole - sum(found.values())
    return found | {"the rest": rest, "an update": whole}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--virtual-processes", type=int, default=0)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="0: no clipping")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=500, help="in each round")
    parser.add_argument("--output", type=Path, default=RESULTS / "step-parts.json")
    args = parser.parse_args()
    result = origin_of_result()
    result["unit"] = "microseconds, by batch size"
    columns = {}
    for size in args.batch_sizes:
        accelerator = launch.start(args.cpu, virtual_processes=args.virtual_processes)
        config = TrainConfig(
            model=args.model,
            batch_size=size,
            clip_norm=args.clip_norm,
            virtual_processes=args.virtual_processes,
        )
        samples = random_digits(SAMPLES, accelerator.device)
        training = Training(accelerator, config, samples)
        columns[size] = profile(training, args.rounds, args.updates)
    result["set-up"] = f"{args.model}, {launch.describe(accelerator)}"
    result["settings"] = {
        "clip_norm": args.clip_norm,
        "virtual_processes": args.virtual_processes,
        "rounds": args.rounds,
        "updates": args.updates,
        "threads": torch.get_num_threads(),
    }
    result["parts"] = columns
    say_origin(result)
    print(result["set-up"])
    header = ["part"]
    for size in columns:
        header += [f"batch {size}, us", "share"]
    rows = []
    for part in columns[args.batch_sizes[0]]:
        row = [part]
        for column in columns.values():
            row.append(f"{column[part]:,.1f}")
            row.append(f"{column[part] / column['an update']:.0%}")
        rows.append(row)
    print_table(header, rows)
    write_result(args.output, result)


if __name__ == "__main__":
    main()
