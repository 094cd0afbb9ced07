"""Rules on random numbers that are the same on all processes, for other rows."""

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding

ADVICE = (
    "after the model is built: torch.manual_seed(seed + rank), or set_seed(0, device_specific=True)"
)
FEWEST = 2  # updates, so that it is no coincidence


def same_masks(case: Case) -> Finding | None:
    """Random states that are equal on all processes, for other rows."""
    if case.world == 1:
        return None
    drawn = [group for group in case.examined if all(update.random_state for update in group)]
    for group in drawn:
        states = {update.random_state for update in group}
        inputs = {update.inputs for update in group}
        if len(states) > 1 or len(inputs) == 1:
            return None
    if not drawn:
        return None
    return Finding(
        "WARN",
        "dropout",
        f"in each of the {len(drawn)} updates that were examined all processes draw from the same "
        "random state: the same masks for different rows",
        ADVICE,
        drawn[0][0].forward_place,
    )


def same_draws(case: Case) -> Finding | None:
    """Noise, or other random numbers, that are the same on all processes.

    Samples that have no number may have been drawn by them, and an order of the user's own, too:
    these are to be the same everywhere.
    """
    trainings = [epoch for epochs in case.trainings for epoch in epochs]
    has_order = all(epoch.numbers and not epoch.is_own for epoch in trainings)
    if case.world == 1 or case.first.exact or not trainings or not has_order:
        return None
    drawn = [group for group in case.examined if all(update.drawn for update in group)]
    if len(drawn) < FEWEST or any(len({each.drawn for each in group}) > 1 for group in drawn):
        return None
    return Finding(
        "WARN",
        "random numbers",
        f"in each of {len(drawn)} updates that were examined all processes draw the same random "
        "numbers: the same noise or augmentation for different rows",
        ADVICE,
        drawn[0][0].forward_place or drawn[0][0].place,
    )
