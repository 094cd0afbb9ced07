"""Gathers the rows of a global batch from all processes, in order and each exactly once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather, gather_object, recursively_apply
from torch import Tensor

from .agreement import all_or_none
from .errors import UserError
from .randomness import seed_of
from .sharing import MicroBatch, Sharing, cut_in_pieces, positions_of_share


def positions_of_processes(micro_batch: MicroBatch, sharing: Sharing) -> list[range]:
    """For each process, the positions in the global batch of the rows that it works on now."""
    found = []
    for rank in range(sharing.world):
        share = sharing.share_in_round(rank, micro_batch.round)
        whole = positions_of_share(share, micro_batch.start, micro_batch.size, sharing.shares)
        pieces = cut_in_pieces(whole, micro_batch.pieces)
        found.append(pieces[micro_batch.piece])
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
        UserError: on every process, if the data of any process do not match its rows, or the rows
            of two processes differ in shape.
    """
    tensors: list[Tensor] = []
    recursively_apply(tensors.append, data)
    as_objects = as_objects or not tensors
    problem = wrong_rows(data, tensors, len(micro_batch.positions), as_objects)
    others = [] if as_objects else others_than_tensors(data)
    if others and not problem:
        problem = (
            f"gather_for_metrics was given tensors together with {others[0]}, which it would not gather: gather what "
            "is not a tensor by a call of its own, with use_gather_object=True"
        )
    if sharing.world == 1:
        if problem:
            raise UserError(problem)
        return data
    forms = []
    if not as_objects:
        forms = [(tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in tensors]
    agree(problem, forms, device, sharing.world)
    positions = positions_of_processes(micro_batch, sharing)
    if as_objects:
        return in_order(gather_object([list(data)]), positions)
    return recursively_apply(lambda tensor: gather_tensor(tensor, positions, device), data)


def others_than_tensors(data: Any) -> list[str]:
    """The kinds of what a structure holds besides tensors, lists, tuples, mappings and None."""
    if data is None or isinstance(data, Tensor):
        return []
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, list | tuple):
        return [kind for each in data for kind in others_than_tensors(each)]
    return [type(data).__name__]


def wrong_rows(data: Any, tensors: list[Tensor], rows: int, as_objects: bool) -> str:
    """An error message if data do not have one row per sample of a micro-batch; empty if they do."""
    counts: set[str] = set()
    for each in [data] if as_objects else tensors:
        has_rows = each.ndim > 0 if isinstance(each, Tensor) else hasattr(each, "__len__")
        counts.add(str(len(each)) if has_rows else "no")
    if counts <= {str(rows)}:
        return ""
    found = " and ".join(sorted(counts))
    return (
        f"gather_for_metrics was given {found} rows, but this process has {rows} rows of this "
        "batch: pass one row for each sample that the loader has just yielded (of a mean, loss.repeat(number of "
        "samples)), or use accelerator.gather or reduce"
    )


def agree(
    problem: str, forms: list[tuple[tuple[int, ...], str]], device: torch.device, world: int
) -> None:
    """Check that rows have the same shapes and dtypes on all processes, by one hash each if all is well.

    Raises:
        UserError: on every process, if one has a problem, or two have rows of different forms.
    """
    mine = 0 if problem else 1 + seed_of(repr(forms)) // 4
    of_all = numbers_of_processes(mine, device, world)
    if not problem and all(number == mine for number in of_all):
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


def numbers_of_processes(mine: int, device: torch.device, world: int) -> list[int]:
    """All-gather one integer from each process."""
    number = torch.full((1,), mine, device=device)
    numbers = [torch.zeros_like(number) for _ in range(world)]
    dist.all_gather(numbers, number)
    return torch.cat(numbers).cpu().tolist()


def gather_by_rank(data: Any, device: torch.device) -> Any:
    """Concatenate the tensors of all processes in rank order, like Accelerate's `gather`.

    Accelerate's own version requires equal lengths, and hangs or mixes up rows without them.

    Args:
        data: a tensor or a nested structure of tensors; only their lengths may differ.
        device: where tensors are sent from.

    Raises:
        UserError: on every process, if they differ in more than their lengths.
    """
    data = recursively_apply(at_least_one_dimension, data)
    tensors: list[Tensor] = []
    recursively_apply(tensors.append, data)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    mine = seed_of(repr(shapes)) // 4
    world = dist.get_world_size()
    numbers = numbers_of_processes(mine, device, world)
    if all(number == mine for number in numbers):
        return gather(data)
    of_all = gather_object([shapes])
    forms_of_first = [shape[1:] for shape in of_all[0]]
    for rank, others in enumerate(of_all):
        forms = [shape[1:] for shape in others]
        if forms != forms_of_first:
            raise UserError(
                f"gather was given tensors of shapes {of_all[0]} on process 0 and {others} on "
                f"process {rank}: make all dimensions but the first equal, for example with "
                "accelerator.pad_across_processes"
            )
    lengths = [[shape[0] for shape in its_shapes] for its_shapes in of_all]
    each = iter(zip(*lengths, strict=True))
    return recursively_apply(lambda tensor: cat_of_processes(tensor, next(each), device), data)


def at_least_one_dimension(tensor: Tensor) -> Tensor:
    """A tensor, or a scalar as a tensor of shape (1,)."""
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def cat_of_processes(tensor: Tensor, lengths: Sequence[int], device: torch.device) -> Tensor:
    """The rows of all processes, concatenated in rank order; `lengths` gives the number on each."""
    return torch.cat(rows_of_processes(tensor, lengths, device)).to(tensor.device)


def gather_tensor(tensor: Tensor, positions: list[range], device: torch.device) -> Tensor:
    """The rows of all processes in the order of their positions."""
    lengths = [len(its_positions) for its_positions in positions]
    rows = torch.cat(rows_of_processes(tensor, lengths, device))
    in_rank_order = [position for its_positions in positions for position in its_positions]
    order = torch.tensor(in_rank_order, dtype=torch.long).argsort()
    ordered = rows.index_select(0, order.to(device))
    return ordered.to(tensor.device)


def rows_of_processes(tensor: Tensor, lengths: Sequence[int], device: torch.device) -> list[Tensor]:
    """The rows of each process, `lengths` of them; sent as bytes, which every backend supports."""
    shape = max(lengths), *tensor.shape[1:]
    padded = torch.zeros(shape, dtype=tensor.dtype, device=device)
    padded[: len(tensor)] = tensor.detach()
    mine = padded.flatten().view(torch.uint8)
    received = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(received, mine)
    rows = []
    for its_bytes, length in zip(received, lengths, strict=True):
        its_rows = its_bytes.view(tensor.dtype).view_as(padded)
        rows.append(its_rows[:length])
    return rows


def in_order(rows: list[list[Any]], positions: list[range]) -> list[Any]:
    """The objects of all processes in the order of their positions."""
    row_at: dict[int, Any] = {}
    for its_rows, its_positions in zip(rows, positions, strict=True):
        row_at.update(zip(its_positions, its_rows, strict=True))
    return [row_at[position] for position in sorted(row_at)]
