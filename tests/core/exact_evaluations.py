"""Evaluations: outputs of any dtype and trailing shape, structures and objects."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from exact_cases import tokens
from exact_data import (
    BATCH,
    SAMPLES,
    SEED,
    VOCABULARY,
    Rows,
    accelerator,
    numbers,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Answer(NamedTuple):
    """What a network says of some rows."""

    scores: Tensor
    best: Tensor


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda scores: scores,
    "float32": lambda scores: scores.float(),
    "bfloat16": lambda scores: scores.bfloat16(),
    "bool": lambda scores: scores[:, 0] > scores[:, 1],
    "int64": lambda scores: scores.argmax(dim=1),
    "uint8": lambda scores: (scores > 0).to(torch.uint8),
    "deep": lambda scores: torch.stack([scores, -scores], dim=1)[:, None],
    "not contiguous": lambda scores: scores.t().contiguous().t(),
    "dict": lambda scores: {"scores": scores, "best": {"class": scores.argmax(dim=1)}},
    "tuple": lambda scores: (scores, scores.argmax(dim=1)),
    "named tuple": lambda scores: Answer(scores, scores.argmax(dim=1)),
    "objects": lambda scores: [f"class {best}" for best in scores.argmax(dim=1).tolist()],
    "objects that hold tensors": lambda scores: [{"best": best} for best in scores.argmax(dim=1)],
}


def joined(parts: list[Any]) -> Any:
    """The rows of several batches, in the structure of each, but plain."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return [joined(list(those)) for those in zip(*parts, strict=True)]
    return [row for part in parts for row in part]


def evaluations() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """The answers of a network in all these forms, with the network and its inputs.

    The last batch has one row, so that all processes but one have none.
    """
    torch.manual_seed(SEED)
    model = tokens().network()
    inputs = numbers(SAMPLES, 4, below=VOCABULARY)
    exact = accelerator()
    prepared, loader = exact.prepare(model, DataLoader(Rows(inputs), BATCH))
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        parts = []
        with torch.no_grad():
            for rows in loader:
                rows_of_all = exact.gather_for_metrics(
                    form(prepared(rows)), use_gather_object="hold" in name
                )
                parts.append(rows_of_all)
        found[name] = joined(parts)
    return model, inputs, found
