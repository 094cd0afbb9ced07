"""A larger network, with virtual processes and without."""

import statistics

from common import median_ratio
from resnet import SETTINGS, measure_here

from gpu_parts.asking import Asked, Result

ROUNDS = 3
UPDATES = 20
ALL_UPDATES = len(SETTINGS) * (1 + ROUNDS * UPDATES)


def resnet18(asked: Asked) -> Result:
    """Samples/s of torchvision's ResNet-18 on 3x32x32 pictures, 64 an update."""
    rounds = 1 if asked.cpu else ROUNDS
    updates = 1 if asked.cpu else UPDATES
    speeds = measure_here(rounds, updates, cpu=asked.cpu)
    found: Result = {}
    for setting in SETTINGS:
        own = speeds[setting.name]
        found[setting.name] = {
            "samples/s": statistics.median(own),
            "ratio to stock": median_ratio(own, speeds["stock"]),
        }
    return found
