"""The rows that all processes have of a global batch, each exactly once and in order, with no guess about padding."""

from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object, recursively_apply
from torch import Tensor

from .agreement import all_or_none
from .errors import UserError
from .randomness import seed_of
from .sharing import MicroBatch, Sharing, cut_in_pieces, positions_of_share


def positions_of_processes(micro_batch: MicroBatch, sharing: Sharing) -> list[range]:
    """For each process the places in the global batch of the rows that it works on now."""
    found = []
    for rank in range(sharing.world):
        share = sharing.share_in_round(rank, micro_batch.round)
        whole = positions_of_share(share, micro_batch.start, micro_batch.size, sharing.shares)
        found.append(cut_in_pieces(whole, micro_batch.pieces)[micro_batch.piece])
    return found


def gather_rows(
    data: Any,
    micro_batch: MicroBatch,
    sharing: Sharing,
    device: torch.device,
    *,
    as_objects: bool = False,
) -> Any:
    """The rows of all processes, in the order of the global batch.

    Args:
        data: a tensor, a structure of tensors, or a list of objects, with a row for every sample of
            the micro-batch.
        micro_batch: what this process works on.
        sharing: who has which share.
        device: where tensors are sent from.
        as_objects: take `data` as a list of objects, whatever it holds.

    Raises:
        UserError: on every process, if data of one do not have its rows, or rows of two have
            different shapes.
    """
    tensors: list[Tensor] = []
    recursively_apply(tensors.append, data)
    as_objects = as_objects or not tensors
    problem = wrong_rows(data, tensors, len(micro_batch.positions), as_objects)
    if sharing.world == 1:
        if problem:
            raise UserError(problem)
        return data
    forms = (
        [] if as_objects else [(tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in tensors]
    )
    agree(problem, forms, device, sharing.world)
    positions = positions_of_processes(micro_batch, sharing)
    if as_objects:
        return in_order(gather_object([list(data)]), positions)
    return recursively_apply(lambda tensor: gather_tensor(tensor, positions, device), data)


def wrong_rows(data: Any, tensors: list[Tensor], rows: int, as_objects: bool) -> str:
    """What is wrong with data that are to have a row for every sample of a micro-batch; empty if nothing is."""
    if as_objects:
        counts: set[int | str] = {len(data) if hasattr(data, "__len__") else "no"}
    else:
        counts = {len(tensor) if tensor.ndim else "no" for tensor in tensors}
    if counts <= {rows}:
        return ""
    found = " and ".join(str(count) for count in sorted(counts, key=str))
    return (
        f"gather_for_metrics was given {found} rows, and this process has {rows} of this batch: give one row for each "
        "sample that the loader has just given, or use accelerator.gather or reduce"
    )


def agree(
    problem: str, forms: list[tuple[tuple[int, ...], str]], device: torch.device, world: int
) -> None:
    """See that all processes have rows of the same form, for which one number each is enough if all is well.

    Raises:
        UserError: on every process, if one has a problem, or two have rows of different forms.
    """
    mine = 0 if problem else 1 + seed_of(repr(forms)) // 4
    number = torch.full((1,), mine, device=device)
    numbers = [torch.zeros_like(number) for _ in range(world)]
    dist.all_gather(numbers, number)
    if int(torch.cat(numbers).min()) == int(torch.cat(numbers).max()) != 0:
        return
    with all_or_none():
        if problem:
            raise UserError(problem)
    first, *others = gather_object([forms])
    other = next(other for other in others if other != first)
    raise UserError(
        f"gather_for_metrics was given rows of {first} on process 0 and of {other} on another: pad them to one shape, "
        "for instance by accelerator.pad_across_processes, before you gather them"
    )


def gather_tensor(tensor: Tensor, positions: list[range], device: torch.device) -> Tensor:
    """The rows of all processes in the order of their positions; as bytes, which every backend sends as they are."""
    most = max(map(len, positions))
    padded = torch.zeros(most, *tensor.shape[1:], dtype=tensor.dtype, device=device)
    padded[: len(tensor)] = tensor.detach()
    mine = padded.flatten().view(torch.uint8)
    received = [torch.empty_like(mine) for _ in positions]
    dist.all_gather(received, mine)
    rows = []
    for its_bytes, its_positions in zip(received, positions, strict=True):
        rows.append(its_bytes.view(tensor.dtype).view_as(padded)[: len(its_positions)])
    places = [place for its_positions in positions for place in its_positions]
    order = torch.tensor(places, dtype=torch.long).argsort().to(device)
    return torch.cat(rows).index_select(0, order).to(tensor.device)


def in_order(rows: list[list[Any]], positions: list[range]) -> list[Any]:
    """The objects of all processes in the order of their positions."""
    placed: list[tuple[int, Any]] = []
    for its_rows, its_positions in zip(rows, positions, strict=True):
        placed += zip(its_positions, its_rows, strict=True)
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]
