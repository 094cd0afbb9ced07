"""Rows as a loader collates them, and the same structure with none."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from .errors import SingleProcessError


def identity(rows: Any) -> Any:
    """An identity `collate_fn`, for a `DataLoader` without a batch size."""
    return rows


def without_rows(rows: Any) -> Any:
    """The same structure with no rows: tensors (0, ...) and empty lists; scalars, strings and None stay as they are.

    Raises:
        SingleProcessError: it holds an object whose rows are not known.
    """
    if isinstance(rows, Tensor | np.ndarray):
        return rows[:0] if rows.ndim else rows
    if isinstance(rows, Mapping):
        cut = {name: without_rows(value) for name, value in rows.items()}
        return type(rows)(cut) if type(rows) is not dict else cut  # type: ignore[call-arg]
    if isinstance(rows, tuple) and hasattr(rows, "_fields"):
        return type(rows)(*map(without_rows, rows))
    if isinstance(rows, list | tuple):
        if rows and all(isinstance(value, Tensor | Mapping | list | tuple) for value in rows):
            return type(rows)(map(without_rows, rows))
        return type(rows)()
    if is_dataclass(rows) and not isinstance(rows, type):
        cut = {each.name: without_rows(getattr(rows, each.name)) for each in fields(rows)}
        return replace(rows, **cut)
    if rows is None or isinstance(rows, str | bytes | int | float):
        return rows
    raise SingleProcessError(
        f"this process has no rows of a global batch, and the collate_fn gives a {type(rows).__name__}, which cannot "
        "be emptied: let it give tensors, lists, dictionaries or a dataclass of these, or choose a batch size with "
        "which every process has rows"
    )
