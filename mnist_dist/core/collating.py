"""Rows as a loader collates them, and the same structure with none."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def identity(rows: Any) -> Any:
    """An identity `collate_fn`, for a `DataLoader` without a batch size."""
    return rows


def without_rows(rows: Any) -> Any:
    """The same structure with no rows: tensors (0, ...) and empty lists."""
    if isinstance(rows, Tensor):
        return rows[:0]
    if isinstance(rows, Mapping):
        cut = {name: without_rows(value) for name, value in rows.items()}
        return type(rows)(cut) if type(rows) is not dict else cut  # type: ignore[call-arg]
    if isinstance(rows, tuple) and hasattr(rows, "_fields"):
        return type(rows)(*map(without_rows, rows))
    if isinstance(rows, list | tuple):
        if rows and all(isinstance(value, Tensor | Mapping | list | tuple) for value in rows):
            return type(rows)(map(without_rows, rows))
        return type(rows)()
    return rows
