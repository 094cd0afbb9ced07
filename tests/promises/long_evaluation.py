"""Does as train.py, but each batch of an evaluation takes long: `long_evaluation.py SECONDS FLAGS...`."""

import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from mnist_dist.core import ExactAccelerator
from mnist_dist.run import launch


def main() -> None:
    seconds = float(sys.argv.pop(1))
    gather = ExactAccelerator.gather_for_metrics

    def slow_gather(*arguments):
        time.sleep(seconds)
        return gather(*arguments)

    small_batches = partial(train.evaluation_loader, batch_size=50)
    with (
        patch.object(ExactAccelerator, "gather_for_metrics", slow_gather),
        patch.object(train, "evaluation_loader", small_batches),
    ):
        launch.run(train.main, "train.py")


if __name__ == "__main__":
    main()
