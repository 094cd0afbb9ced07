"""What can be seen of a data set without reading a sample, to compare it between processes."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .digests import digest

SAMPLES = 1000  # about so many entries of an attribute are looked at
DEPTH = 5  # data sets within each other, and collections within an entry


def visible_content(dataset: Any) -> dict[str, str]:
    """Digest the attributes that have an entry for each sample, such as file names, labels and the indices of a subset.

    Of a data set that wraps others, as `Subset` and `ConcatDataset` do, those of the others count,
    too. Of texts only what follows the last slash counts, because nodes may keep the same files in
    different folders.

    Returns:
        Digests by the attributes' names. Attributes of other kinds of entries are left out.
    """
    found = {}
    attributes = list(per_sample_attributes(dataset, "", DEPTH))
    if isinstance(dataset, list | tuple):
        attributes.append(("samples", dataset))
    for name, values in attributes:
        seen = digest_of_entries(values)
        if seen:
            found[name] = seen[:12]
    return found


def per_sample_attributes(dataset: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Each attribute, of a data set and those within it, that is as long as its data set."""
    if depth == 0:
        return
    for name, value in sorted(getattr(dataset, "__dict__", {}).items()):
        if name == "_indices" and hasattr(value, "column"):
            # A data set of Hugging Face keeps them in a table, after a split or shuffle.
            value = np.asarray(value.column(0))
        if isinstance(value, Dataset):
            yield from per_sample_attributes(value, f"{prefix}{name}.", depth - 1)
        elif holds_data_sets(value):
            for number, inner in enumerate(value):
                yield from per_sample_attributes(inner, f"{prefix}{name}[{number}].", depth - 1)
        elif has_an_entry_for_each_sample(value, dataset):
            yield f"{prefix}{name}", value


def holds_data_sets(value: Any) -> bool:
    """Whether a value is a list of data sets, as in `ConcatDataset`."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Dataset)


def has_an_entry_for_each_sample(value: Any, dataset: Any) -> bool:
    """Whether a value is a collection in memory that is as long as a data set."""
    is_in_memory = isinstance(value, list | tuple | Tensor | np.ndarray)
    if not is_in_memory or isinstance(value, np.memmap):
        return False
    try:
        return len(value) == len(dataset)
    except TypeError:  # without a length: a scalar, or a stream
        return False


def digest_of_entries(values: Any) -> str:
    """Digest about a thousand of some entries; empty if there is one that is not plain."""
    step = max(1, len(values) // SAMPLES)
    chosen = values[::step]
    if isinstance(chosen, np.ndarray) and chosen.dtype.kind in "biufc":
        chosen = torch.from_numpy(np.ascontiguousarray(chosen))
    if isinstance(chosen, Tensor):
        return digest([chosen])
    digest_so_far = hashlib.sha256()
    for entry in chosen:
        text = plain_text(entry, DEPTH)
        if text is None:
            return ""
        digest_so_far.update(text.encode("utf-8", "surrogatepass"))
    return digest_so_far.hexdigest()


def plain_text(entry: Any, depth: int) -> str | None:
    """A text for a plain entry, the same on every process; None for any other."""
    if isinstance(entry, str | PurePath):
        return repr(PurePath(entry).name)
    if isinstance(entry, bool | int | float | np.number | np.bool_):
        return repr(entry)
    if isinstance(entry, dict):
        entry = list(entry.items())
    if not isinstance(entry, list | tuple) or depth == 0:
        return None
    return plain_text_of_all(entry, depth - 1)


def plain_text_of_all(entries: Sequence[Any], depth: int) -> str | None:
    """A text for several plain entries; None if one of them is not plain."""
    texts = []
    for entry in entries:
        text = plain_text(entry, depth)
        if text is None:
            return None
        texts.append(text)
    return f"({', '.join(texts)})"
