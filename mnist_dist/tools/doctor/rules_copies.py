"""The rule on models that are used without training: averages, teachers, the best checkpoint."""

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Epoch


def other_copy(case: Case) -> Finding | None:
    """A model that is used without training, whose weights are others on each process."""
    if case.world == 1 or case.first.is_sharded:
        return None
    evaluations = [record.evaluations() for record in case.ranks]
    by_all = list(zip(*evaluations, strict=False)) if len({*map(len, evaluations)}) == 1 else []
    for epochs in [*case.trainings, *by_all]:
        for line in epochs[0].used:
            digests = {epoch.used.get(line, epochs[0].used[line]) for epoch in epochs}
            if len(digests) > 1:
                return what_differs(case, epochs[0], line)
    return None


def what_differs(case: Case, epoch: Epoch, line: str) -> Finding:
    """Say what kind of model it is that has different weights on each process.

    Args:
        case: all records.
        epoch: the iteration of the first process in which it was seen.
        line: which calls the model.
    """
    if line in epoch.trained:
        words = (
            "the trained model has different weights on each process when it is called here, "
            "although they are equal in training"
        )
        advice = (
            "what is copied into it, such as an average or the best checkpoint, was updated or "
            "chosen on some processes only: do that alike on all, or broadcast it"
        )
        return Finding("FAIL", "copy", words, advice, line)
    words = (
        "the model that is called here without training has different weights on each process, "
        "although those of the trained model are equal"
    )
    seen = [each.used[line] for each in case.first.epochs if line in each.used]
    if len(set(seen)) > 1:
        advice = (
            "it changes, as an average does: create it after wrapping, which makes weights equal, "
            "and update it on all processes"
        )
    elif len(seen) > 1:
        advice = (
            "it never changes, as a teacher: build it from the same seed or file on all processes, "
            "or broadcast it"
        )
    else:
        advice = "create it after wrapping, or from the same seed or file, or broadcast it"
    return Finding("FAIL", "copy", words, advice, line)
