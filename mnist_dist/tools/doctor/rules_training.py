"""Rules on what is trained: gradients, weights, rates, and layers that depend on the process."""

from mnist_dist.tools.doctor.case import Case, listed
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.updates import Update
from mnist_dist.tools.verify.supervisor import processes

BY_LOSS = "ReduceLROnPlateau"  # sets the rate by a figure that it is given


def not_finite(case: Case) -> Finding | None:
    """A loss that is not a number, on some processes or on all."""
    for group in case.updates:
        bad = [rank for rank, update in enumerate(group) if update.finite_loss is False]
        if not bad:
            continue
        update = group[bad[0]]
        where = "on all processes" if len(bad) == len(group) else f"on process {bad}"
        where = where.replace("[", "").replace("]", "")
        advice = "look at the rows and the rate of that update"
        if len(bad) < len(group):
            advice = f"look at the rows of that process; {spread(case)}"
        words = f"the loss of update {update.number} is not finite {where}"
        return Finding("FAIL", "not finite", words, advice, update.backward_place)
    return None


def spread(case: Case) -> str:
    """Return what becomes of a loss that is not a number on one process."""
    if case.first.wrapper:
        return "by the exchange of gradients all weights are lost"
    return "its weights are lost"


def not_exchanged(case: Case) -> Finding | None:
    """Gradients that differ between processes when the optimizer makes its step."""
    if case.world == 1 or case.first.is_sharded:
        return None
    for group in case.examined:
        differing = case.names_of_differing(group, "gradients")
        if differing:
            return why_not_exchanged(case, group[0], differing)
    return None


def why_not_exchanged(case: Case, update: Update, differing: list[str]) -> Finding:
    """Say why gradients were not exchanged.

    Args:
        case: all records.
        update: the first in which they differ, of the first process.
        differing: the names of the parameters whose gradients do.
    """
    total = len(update.gradients)
    words = f"in update {update.number} the gradients of {len(differing)} of {total} parameters"
    words += " differ between processes"
    place = update.forward_place or update.place
    optimizer = case.first.optimizer_of(update)
    outside = optimizer.outside
    some_agree = len(differing) < sum(digest != 0 for digest in update.gradients)
    has_reduced = any(name.startswith("all_reduce") for name in case.first.collectives)
    if update.wrapped and update.last_synced is False:
        cause = "the last pass before the step is under no_sync"
        advice = "no_sync is for all passes of an update but the last; LocalSGD of Accelerate means it so"
    elif update.bare and not update.wrapped:
        place = update.bare_place
        cause = "the model is called without its wrapper"
        advice = "call the wrapper itself, not model.module or the model that was wrapped"
    elif update.wrapped and set(differing) <= set(optimizer.frozen):
        place = optimizer.frozen_place
        cause = f"{listed(differing)}: frozen when the model was wrapped, and trained now"
        advice = "wrap the model again after unfreezing, or unfreeze before wrapping"
    elif some_agree and (update.wrapped or has_reduced):
        cause = f"{listed(differing)}: not among those that are exchanged"
        advice = "wrap one module that holds all parameters of the optimizer"
    elif outside and len(outside) == total and has_wrapped_others(case):
        place = optimizer.outside_place or update.place
        cause = f"{listed(outside)}: in no module that is wrapped"
        advice = "wrap the module that has them in DDP, too, or make it a part of the wrapped one"
    elif outside and update.wrapped:
        cause = f"{listed(outside)}: put into the model after it was wrapped"
        advice = "change the model first, then wrap it, then make the optimizer"
    elif not case.first.wrapper:
        cause = "the model is not wrapped"
        advice = "DistributedDataParallel(model), or what accelerator.prepare(model) returns"
    elif not update.wrapped:
        cause = "a model other than the wrapped one is trained"
        advice = "call what DistributedDataParallel, or accelerator.prepare, returned"
    elif update.bare:
        place = update.bare_place
        cause = f"in {update.bare} of {update.bare + update.wrapped} forward passes a model is "
        cause += "called without its wrapper"
        advice = "call the wrapper itself in every pass, not model.module"
    else:
        place = update.place
        cause = "they are changed on each process after the exchange"
        advice = "look at what changes gradients between backward and step"
    return Finding("FAIL", "gradients", f"{words}: {cause}", advice, place)


def has_wrapped_others(case: Case) -> bool:
    """Return whether some optimizer has the parameters of a model that is wrapped."""
    optimizers = case.first.optimizers
    is_wrapped = [len(each.outside) < len(each.names) for each in optimizers]
    return bool(case.first.wrapper) and any(is_wrapped)


def first_weights(case: Case) -> Finding | None:
    """Weights that differ between processes before the first update."""
    if case.world == 1 or case.first.is_sharded or not case.examined:
        return None
    group = case.examined[0]
    differing = case.names_of_differing(group, "weights")
    if group[0].number > 1 or not differing:
        return None
    return Finding(
        "FAIL",
        "first weights",
        f"before the first update {len(differing)} of {len(group[0].weights)} parameters differ "
        f"between processes ({listed(differing)})",
        "draw or load them before the model is wrapped, which broadcasts those of process 0",
        group[0].place,
    )


def unequal_rates(case: Case) -> Finding | None:
    """Learning rates that differ between processes."""
    for group in case.updates:
        rates = [update.rates for update in group]
        if any(each != rates[0] for each in rates):
            other = next(rank for rank, each in enumerate(rates) if each != rates[0])
            words = f"in update {group[0].number} the learning rate is {rates[0][0]:.6g} on "
            words += f"process 0 and {rates[other][0]:.6g} on process {other}"
            advice = (
                "the same rate on all: what sets it must not depend on the rank or its own loss"
            )
            place = group[0].place
            by_loss = [each for each in case.first.schedules if each.kind == BY_LOSS]
            if by_loss and group[0].number > 1:
                place = by_loss[0].place
                words += f": {BY_LOSS} is given a different figure on each process"
                advice = "give it the mean over all processes (all_reduce), and not a process's own"
            return Finding("FAIL", "rate", words, advice, place)
    return None


def unequal_state(case: Case) -> Finding | None:
    """Averages of an optimizer that differ between processes before its first step."""
    if case.world == 1 or case.first.is_sharded:
        return None
    for number, group in enumerate(
        zip(*(record.optimizers for record in case.ranks), strict=False)
    ):
        states = [optimizer.state for optimizer in group]
        if len(set(states)) == 1:
            continue
        without = [rank for rank, state in enumerate(states) if not state]
        words = "before its first step the optimizer's averages (momentum and the like) differ "
        words += "between processes"
        if without:
            words = "before its first step the optimizer has averages, but none on "
            words += processes(without)
        places = [optimizer.state_place for optimizer in group if optimizer.state_place]
        steps = [update.place for update in case.first.updates if update.optimizer == number]
        return Finding(
            "FAIL",
            "state",
            f"{words}: the weights diverge from there on",
            "load optimizer.state_dict() on all processes: a wrapper broadcasts weights, but not this state",
            [*places, *steps, ""][0],
        )
    return None


def parting_weights(case: Case) -> Finding | None:
    """Weights that part although gradients and rates are equal."""
    if case.world == 1 or case.first.is_sharded:
        return None
    equal = 0
    for group in case.examined:
        differing = case.names_of_differing(group, "weights")
        number = group[0].number
        if not differing:
            equal = number
            continue
        return Finding(
            "FAIL",
            "weights",
            f"equal before update {equal}, they differ before update {number} "
            f"({listed(differing)}), after equal gradients and rates",
            "something else changes them, or the optimizer's state, on some processes only",
            group[0].place,
        )
    return None


def parting_buffers(case: Case) -> Finding | None:
    """Buffers that part, but for those that a wrapper sends out before each pass."""
    if case.world == 1 or case.first.broadcasts_buffers or case.first.is_sharded:
        return None
    for group in case.examined:
        names = []
        for name, value in group[0].buffers.items():
            values = {update.buffers.get(name, value) for update in group}
            if len(values) > 1:
                names.append(name)
        if names:
            return Finding(
                "WARN",
                "buffers",
                f"after update {group[0].number} these differ between processes: {listed(names)}",
                "compute them from all processes' rows, or let DistributedDataParallel send them",
                group[0].forward_place,
            )
    return None


def batch_norm(case: Case) -> Finding | None:
    """Batch normalisation over the rows of each process by itself."""
    record = case.first
    if case.world == 1 or not record.batch_norm or record.exact:
        return None
    return Finding(
        "WARN",
        "layers",
        f"{record.batch_norm} normalises over each process's own rows, so the training depends "
        "on how many processes share a batch",
        "SyncBatchNorm.convert_sync_batchnorm(model) on GPUs, or GroupNorm",
        record.batch_norm_place,
    )


def needless_exchanges(case: Case) -> Finding | None:
    """Gradients that are exchanged after each pass, and not once an update."""
    if case.world == 1 or not case.updates:
        return None
    update = case.updates[min(1, len(case.updates) - 1)][0]
    passes = update.backward
    if passes < 2 or update.synced != passes or update.wrapped != passes:
        return None
    return Finding(
        "WARN",
        "cost",
        f"gradients are exchanged {passes} times an update, after each backward pass",
        "with model.no_sync() for all passes but the last (accelerator.accumulate does it)",
        update.backward_place,
    )
