"""What `tune` searches: the settings by name, and the values that each may have."""

from collections.abc import Mapping
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mnist_dist.task.settings import Settings
from mnist_dist.usage import require

Knob = Literal[
    "lr",
    "hidden",
    "batch-size",
    "epochs",
    "schedule",
    "weight-decay",
    "label-smoothing",
    "affine",
    "elastic",
]
BATCH_SIZES = IntDistribution(16, 1024, log=True)
HIDDEN = ["128", "256", "512", "1024", "128 64", "256 128", "512 256", "1024 512"]
SPACE: dict[str, BaseDistribution] = {  # every value as its flag takes it
    "lr": FloatDistribution(1e-4, 3e-2, log=True),
    "hidden": CategoricalDistribution(HIDDEN),
    "batch-size": BATCH_SIZES,
    "epochs": IntDistribution(1, 20),
    "schedule": CategoricalDistribution(["constant", "cosine", "one-cycle"]),
    "weight-decay": FloatDistribution(0, 0.3),
    "label-smoothing": FloatDistribution(0, 0.2),
    "affine": FloatDistribution(0, 1.5),
    "elastic": FloatDistribution(0, 1.5),
}


def parameters_of(settings: Settings, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the settings that are searched by the names and in the form that Optuna knows.

    It is the inverse of `fields_of`.

    Args:
        settings: all settings.
        space: what is searched.

    Returns:
        Values by name, each as its flag takes it.

    Raises:
        UsageError: one of them is not among the values that are searched.
    """
    parameters = {}
    for name, distribution in space.items():
        value: Any = getattr(settings, name.replace("-", "_"))
        if name == "hidden":
            value = " ".join(map(str, value))
        advice = f"{expected(distribution)}, which are searched, or leave {name} out of --search"
        require(is_in(value, distribution), f"--{name}", value, advice)
        parameters[name] = value
    return parameters


def is_in(value: Any, distribution: BaseDistribution) -> bool:
    """Return whether a value is among those that are searched."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low <= value <= distribution.high


def expected(distribution: BaseDistribution) -> str:
    """Return the values that are searched, in words."""
    if isinstance(distribution, CategoricalDistribution):
        choices = map(str, distribution.choices)
        return f"one of {', '.join(choices)}"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return f"a number from {distribution.low:g} to {distribution.high:g}"


def fields_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the settings that a trial's parameters stand for."""
    values = {}
    for name, value in parameters.items():
        if name == "hidden":
            value = tuple(map(int, value.split()))
        values[name.replace("-", "_")] = value
    return values
