"""Rules on how gradients come about: the model's mode, clipping, and whose parameters they are."""

import math

from mnist_dist.tools.doctor.case import Case, by_process
from mnist_dist.tools.doctor.findings import Finding

EQUAL = 1e-3  # of a norm, but for rounding


def mode(case: Case) -> Finding | None:
    """A model that is left in evaluation mode, on some processes or after an evaluation."""
    advice = "call model.train() at the beginning of each epoch, on all processes"
    for group in case.updates:
        modes = [bool(update.in_eval) for update in group]
        number = group[0].number
        place = group[modes.index(True)].backward_place if any(modes) else ""
        if any(modes) and not all(modes):
            ranks = ", ".join(str(rank) for rank, is_eval in enumerate(modes) if is_eval)
            words = f"in update {number} the model is in evaluation mode on process {ranks} only"
            return Finding("FAIL", "mode", f"{words}: no dropout there", advice, place)
        if any(modes) and number > 1 and not case.updates[0][0].in_eval:
            words = (
                f"from update {number} on the model is in evaluation mode, and before it was not"
            )
            return Finding("WARN", "mode", words, advice, place)
        if all(modes):
            return None
    return None


def clipping(case: Case) -> Finding | None:
    """Gradients that each process clips by itself, before they are exchanged."""
    if case.world == 1 or case.first.is_sharded:
        return None
    for group in case.examined:
        norms = [update.clip_norm for update in group if update.clip_norm is not None]
        if len(norms) < case.world or not all(map(math.isfinite, norms)):
            continue
        if max(norms) - min(norms) > EQUAL * max(norms):
            figures = by_process([f"{norm:.3g}" for norm in norms])
            return Finding(
                "FAIL",
                "clipping",
                f"in update {group[0].number} each process clips its own gradient ({figures}), "
                "and only then they are exchanged",
                "exchange the gradients first, then clip the result",
                group[0].clip_place,
            )
    return None


def without_gradients(case: Case) -> Finding | None:
    """An optimizer whose parameters never have a gradient."""
    by_optimizer: dict[int, list[bool]] = {}
    for group in case.examined:
        is_found = any(any(update.gradients) for update in group)
        by_optimizer.setdefault(group[0].optimizer, []).append(is_found)
    for optimizer, found in by_optimizer.items():
        if any(found):
            continue
        update = next(group[0] for group in case.examined if group[0].optimizer == optimizer)
        return Finding(
            "FAIL",
            "optimizer",
            f"none of its {len(update.gradients)} parameters has a gradient in any of the "
            f"{len(found)} updates that were examined: its steps change nothing",
            "give it the parameters of the model that is trained, not of a copy",
            update.place,
        )
    return None
