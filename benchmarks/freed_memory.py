"""What it costs a ResNet-18 on CPUs that glibc returns freed memory to the system, and maps it again.

    python benchmarks/freed_memory.py [--rounds 5]

`ExactAccelerator` tells glibc to keep freed memory (mnist_dist/core/memory.py), but not where the user has
set one of glibc's variables. So each measurement is made twice in turn, in processes of its own: as it
comes, and with GLIBC_TUNABLES set to a value that changes nothing.

addition: milliseconds to add two sets of gradients, 45 MB each, on one thread.
training: samples/s of benchmarks/resnet.py on two processes with V = 2.

Printed are medians over the rounds, and of the ratios within a round.
"""

import argparse
import os
import statistics
import subprocess
import sys
from unittest.mock import patch

import resnet
from common import median_ratio, one_thread, origin_of_result, print_table, say_origin

UNTOUCHED = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}  # which is the default
ADDITION = """
import time
import torch
from torchvision.models import resnet18
from mnist_dist.core import ExactAccelerator

ExactAccelerator(cpu=True)
torch.set_num_threads(1)
one = [torch.randn_like(parameter) for parameter in resnet18(num_classes=10).parameters()]
other = [tensor.clone() for tensor in one]
seconds = []
for _ in range(10):
    begin = time.perf_counter()
    torch._foreach_add(one, other)
    seconds.append(time.perf_counter() - begin)
print(1000 * sorted(seconds)[5])
"""


def addition() -> float:
    """The milliseconds of an addition, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ADDITION],
        env=one_thread(),
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def training(updates: int) -> float:
    """The samples/s of a ResNet-18 on two processes with two virtual ones."""
    (setting,) = (number for number, each in enumerate(resnet.SETTINGS) if each.virtual == 2)
    return resnet.measure(2, setting, argparse.Namespace(updates=updates, cpu=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=8, help="of a training")
    args = parser.parse_args()
    say_origin(origin_of_result("torchvision"))
    kept: dict[str, list[float]] = {"addition, ms": [], "training, samples/s": []}
    returned: dict[str, list[float]] = {name: [] for name in kept}
    for _ in range(args.rounds):
        for found, variables in ((kept, {}), (returned, UNTOUCHED)):
            with patch.dict(os.environ, variables):
                found["addition, ms"].append(addition())
                found["training, samples/s"].append(training(args.updates))
    rows = []
    for name, values in kept.items():
        middle = [f"{statistics.median(each):,.1f}" for each in (values, returned[name])]
        rows.append([name, *middle, f"{median_ratio(values, returned[name]):.2f}"])
    print_table(["what", "freed memory is kept", "returned", "ratio"], rows)


if __name__ == "__main__":
    main()
