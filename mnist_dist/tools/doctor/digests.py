"""Short digests of tensors, data sets and random states, to compare them between processes."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

ROWS = 1000  # of a data set, which are looked at
DEPTH = 3  # data sets within data sets, which are looked into
PROJECTIONS = 32
COLUMNS = 4093  # a prime, so that no layer's width divides it


def own_part(tensor: Tensor) -> Tensor:
    """Return what of a tensor this process holds, which is a part if it is sharded."""
    return getattr(tensor, "_local_tensor", tensor)


def digest(tensors: Iterable[Tensor]) -> int:
    """Return a digest of the bytes of some tensors."""
    found = 1
    for tensor in tensors:
        on_the_cpu = tensor.detach().cpu().contiguous()
        values = on_the_cpu.flatten().view(torch.uint8).numpy()
        found = zlib.crc32(values.data, found)
    return found


def digest_of_numbers(numbers: Iterable[int]) -> int:
    """Return a digest of whole numbers in their order; 0 stands for none."""
    values = np.fromiter(numbers, dtype=np.int64)
    return zlib.crc32(values.tobytes(), 1) if len(values) else 0


def digest_of_data(dataset: Any, depth: int = DEPTH) -> int:
    """Return a digest of what a data set holds, without asking it for a sample.

    A data set may draw random numbers or open files when it is asked. So only tensors, arrays and
    lists among its attributes are looked at.

    Args:
        dataset: the data set.
        depth: how far to look into data sets that it holds.

    Returns:
        0 if nothing of that kind is there.
    """
    found = digest_of_rows(dataset)
    attributes = getattr(dataset, "__dict__", {})
    for name, value in sorted(attributes.items()):
        if isinstance(value, Dataset) and depth:
            part = digest_of_data(value, depth - 1)
        else:
            part = digest_of_rows(value)
        if part:
            found = zlib.crc32(f"{name} {part}".encode(), found)
    return found


def digest_of_rows(value: Any) -> int:
    """Return a digest of some rows of a tensor, an array or a list; 0 for anything else."""
    if isinstance(value, Tensor) and value.ndim:
        step = max(1, len(value) // ROWS)
        return digest([value[::step]])
    if isinstance(value, np.ndarray) and value.ndim and value.dtype != object:
        step = max(1, len(value) // ROWS)
        return zlib.crc32(np.ascontiguousarray(value[::step]).tobytes(), 1)
    if isinstance(value, list | tuple) and value:
        step = max(1, len(value) // ROWS)
        parts = [plain(item) for item in value[::step]]
        return zlib.crc32(repr(parts).encode(), 1) if any(parts) else 0
    return 0


def digests_of_rows(batch: Any) -> list[int]:
    """Return a digest of each row of a batch.

    Args:
        batch: tensors, in any structure. Those as long as the first one have a part of each row.
    """
    tensors = [tensor.detach().cpu() for tensor in tensors_in(batch) if tensor.ndim]
    if not tensors:
        return []
    count = len(tensors[0])
    parts = [tensor for tensor in tensors if len(tensor) == count]
    return [digest([part[row] for part in parts]) for row in range(count)]


def plain_attributes(something: Any) -> dict[str, bool | int | float | str]:
    """Return the attributes of an object that are numbers or words, such as its epoch."""
    attributes = getattr(something, "__dict__", {})
    kinds = (bool, int, float, str)
    return {name: value for name, value in attributes.items() if isinstance(value, kinds)}


def plain(item: Any) -> Any:
    """Return what of an item of a list can be compared between processes; nothing if none can."""
    if isinstance(item, str | os.PathLike):
        return os.path.basename(item)  # noqa: PTH119 (folders may differ between nodes)
    if isinstance(item, bool | int | float):
        return str(item)
    if isinstance(item, Tensor | np.ndarray):
        return digest_of_rows(item)
    if isinstance(item, list | tuple):
        return [plain(each) for each in item[:4]]
    return ""


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a structure of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        found = [tensors_in(each) for each in value]
        return [tensor for tensors in found for tensor in tensors]
    return []


def sketch(gradients: list[Tensor]) -> list[float]:
    """Return a few random projections of some gradients, the same ones in every process.

    Args:
        gradients: all of them, in order.
    """
    flat = torch.cat([gradient.detach().flatten().cpu().double() for gradient in gradients])
    missing = -len(flat) % COLUMNS
    padded = torch.nn.functional.pad(flat, (0, missing))
    table = padded.view(-1, COLUMNS)
    source = torch.Generator().manual_seed(0)
    by_row = torch.randn(len(table), dtype=torch.float64, generator=source)
    by_column = torch.randn(PROJECTIONS, COLUMNS, dtype=torch.float64, generator=source)
    return (by_column @ (by_row @ table)).tolist()
