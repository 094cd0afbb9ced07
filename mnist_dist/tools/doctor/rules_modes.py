"""Rules on how gradients come about: the model's mode, clipping, and whose parameters they are."""

import math

from mnist_dist.tools.doctor.case import Case, by_process
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.updates import Update

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
    """Gradients that are clipped too early: before they are exchanged, or with the loss's scale."""
    return clipping_of_scaled(case) or clipping_of_own(case)


def clipping_of_own(case: Case) -> Finding | None:
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


def clipping_of_scaled(case: Case) -> Finding | None:
    """Gradients that are clipped while they still have the scale of the loss."""
    for group in case.examined:
        update = group[0]
        if update.clip_norm is not None and update.clip_scale > 1:
            return Finding(
                "FAIL",
                "clipping",
                f"in update {update.number} the gradient is clipped while it is still multiplied by "
                f"the loss scale, {update.clip_scale:g}: what is left of it is much too small",
                "call scaler.unscale_(optimizer) before clip_grad_norm_",
                update.clip_place,
            )
    return None


def cleared(case: Case) -> Finding | None:
    """Gradients that are to be accumulated, and are cleared before each pass."""
    by_optimizer: dict[int, list[Update]] = {}
    for group in case.updates:
        by_optimizer.setdefault(group[0].optimizer, []).append(group[0])
    for updates in by_optimizer.values():
        found = [update for update in updates if update.cleared]
        # A scaler leaves out a step now and then, and the next update has one pass more.
        is_usual = len(found) > 1 and len(found) > len(updates) / 2
        if not is_usual or case.first.exact:
            continue
        update = found[0]
        return Finding(
            "FAIL",
            "accumulation",
            f"in update {update.number} the gradients of {update.cleared} of {update.backward} "
            "backward passes are cleared before the step",
            "call zero_grad after the step, not after or before each pass",
            update.cleared_place,
        )
    return None


def class_weights(case: Case) -> Finding | None:
    """A loss whose weights of classes depend on the process."""
    for group in case.examined:
        if len({update.class_weights for update in group}) > 1:
            return Finding(
                "WARN",
                "loss",
                f"in update {group[0].number} the loss weights classes differently on each process",
                "compute the weights from the samples of all processes (all_reduce the counts)",
                group[0].class_weights_place,
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
