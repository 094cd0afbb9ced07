"""What a loader consists of: its data set, which may be a part of another one, and its samplers."""

from typing import Any

from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from mnist_dist.tools.doctor.digests import digest_of_numbers, plain_attributes

PARTS = 4  # data sets, each a part of the next


def whole_of(dataset: Any) -> tuple[Any, int]:
    """Return the data set of which this one is a part, and a digest of the part, 0 if it is all."""
    part = 0
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        numbers = [int(number) for number in dataset.indices]
        part = digest_of_numbers(numbers) ^ part
        dataset = dataset.dataset
    return dataset, part


def attributes_of(dataset: Any) -> dict[str, bool | int | float | str]:
    """Return the numbers and words that a data set holds, and the one that it is a part of."""
    found: dict[str, bool | int | float | str] = {}
    for _ in range(PARTS):
        kind = type(dataset).__name__
        values = plain_attributes(dataset).items()
        found |= {f"{kind}.{name}": value for name, value in values}
        dataset = getattr(dataset, "dataset", None)
    return found


def change_since(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words what persistent workers, which have a copy, do not know; empty if nothing."""
    for name, value in now.items():
        if before.get(name, value) != value:
            return f"{name} is {value} here and {before[name]}"
    return ""


def as_numbers(numbers: Any, dataset: Any) -> list[int]:
    """Return the numbers of samples in the whole data set; none if there are no numbers.

    Args:
        numbers: what the sampler gave.
        dataset: the loader's, which may be a part of another one.
    """
    one_by_one = numbers if isinstance(numbers, list | tuple) else [numbers]
    if not all(hasattr(number, "__index__") for number in one_by_one):
        return []
    found = [int(number) for number in one_by_one]
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        found = [int(dataset.indices[number]) for number in found]
        dataset = dataset.dataset
    return found


def length_of(something: Any) -> int:
    """Return the length of a data set or loader, -1 if it has none."""
    try:
        return len(something)
    # Some classes have a `__len__` that only says that a subclass should have one.
    except (TypeError, NotImplementedError):
        return -1


def samplers_of(loader: DataLoader) -> list[Any]:
    """Return what cuts batches, and below it what gives the samples' numbers, which is last."""
    # Compared with None, because a stream's batch sampler has no length to be tested by.
    cuts_batches = loader.batch_sampler is not None
    chain: list[Any] = [loader.batch_sampler if cuts_batches else loader.sampler]
    for _ in range(4):
        above = chain[-1]
        below = getattr(above, "batch_sampler", None)
        if below is None:
            below = getattr(above, "sampler", None)
        if below is None:
            break
        chain.append(below)
    return chain


def shuffles(sampler: Any) -> bool:
    """Return whether a sampler is to give another order in each epoch."""
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    return isinstance(sampler, RandomSampler | SubsetRandomSampler)


def repeats(sampler: Any) -> bool:
    """Return whether a sampler, by intent, does not give each sample once."""
    if isinstance(sampler, WeightedRandomSampler):
        return True
    if not isinstance(sampler, RandomSampler):
        return False
    return sampler.replacement or sampler.num_samples != len(sampler.data_source)


def is_own(sampler: Any) -> bool:
    """Return whether a sampler is of the user's own making."""
    library, _, _ = type(sampler).__module__.partition(".")
    return library not in ("torch", "accelerate", "builtins")
