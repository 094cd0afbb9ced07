"""Named settings with their measured results. Explicit flags win over them."""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # The original single-file script, by name: these are the defaults, spelled out so that they stay what they are.
    "original": {
        "model": "mlp",
        "hidden": (128, 64),
        "epochs": 5,
        "batch_size": 64,
        "lr": 0.001,
        "schedule": "constant",
    },
}
