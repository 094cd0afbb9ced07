"""Lines of `verify` about updates and evaluations: train.py on all processes, and the reference."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from mnist_dist.task import networks
from mnist_dist.task.evaluation import BATCH, classify, evaluation_loader
from mnist_dist.tools.verify.advice import advice_on
from mnist_dist.tools.verify.answer import Check
from mnist_dist.tools.verify.faults import COMPARED, Fault, faults_of
from mnist_dist.tools.verify.session import FIRST_LINE, Session, Trial

LINES = (
    "initial weights",
    "samples",
    "gradient",
    "update",
    "schedule",
    "moving average",
    "evaluation",
    "results",
    "checkpoint",
)
RIGHT = {
    "samples": "each is used once per epoch, in the same batches as on one process",
    "evaluation": "losses and counts of every epoch match those of one process",
    "results": "loss curve, summary and trained weights match those of one process",
}
COUNT_ALL = "count each sample once, without padding: do not prepare the test loader with Accelerate's own class either"


def are_updates_right(session: Session, trials: Mapping[str, Trial]) -> bool:
    """Watch small trainings, and check whether each of their updates is that of one process."""
    answer = session.answer
    watch_all(session, trials)
    faults = faults_of(session, trials)
    cause = ""
    if faults:
        first, *_ = faults
        first = replace(first, text=with_the_end(session, first))
        faults[0] = replace(first, advice=first.advice or advice_on(session, trials, first))
        cause = first.line
    for line in LINES:
        of_line = [fault for fault in faults if fault.line == line]
        if of_line:
            answer.add(Check(line, False, of_line[0].text, of_line[0].advice), cause=cause)
        elif is_seen(session, line):
            answer.add(Check(line, True, what_is_right(session, line), ""))
    if not has_ended(session):
        answer.add(check_test_count(session), cause=cause)
    return not answer.failed


def watch_all(session: Session, trials: Mapping[str, Trial]) -> None:
    """Watch trainings, up to the first with which something is wrong."""
    for title, trial in trials.items():
        session.watch(FIRST_LINE, title, trial)
        if faults_of(session, trials):
            return


def has_ended(session: Session) -> bool:
    """Return whether a training has ended by an error."""
    return any(first.error for first, *_ in session.observations.values())


def with_the_end(session: Session, fault: Fault) -> str:
    """Return what is wrong, and how the training ended if that was by an error later on."""
    first, *_ = session.observations[fault.title]
    if not first.error or first.error in fault.text:
        return fault.text
    return f"{fault.text}; after update {first.updates} train.py ended by {first.error}"


def is_seen(session: Session, line: str) -> bool:
    """Return whether something about a line was compared, and nothing is wrong with it."""
    if line in COMPARED:
        everywhere = session.observations.values()
        return any(line in each.differences for each, *_ in everywhere)
    return line in RIGHT and not has_ended(session)


def what_is_right(session: Session, line: str) -> str:
    """Return how near the trainings were to the reference, in words."""
    if line in RIGHT:
        return RIGHT[line]
    largest = 0.0
    updates = 0
    for observations in session.observations.values():
        updates += observations[0].updates
        for observation in observations:
            size, _ = observation.difference_of(line)
            largest = max(largest, size)
    much = f"differs from that of one process by at most {largest:.0e} of its size"
    return f"{much}, in {updates} updates (float64)"


def check_test_count(session: Session) -> Check:
    """Check whether the evaluation counts each test sample once, and as one process does."""
    name = "test count"
    session.supervisor.begin(name)
    accelerator = session.accelerator
    test = session.samples.test
    torch.manual_seed(0)
    model = networks.build("mlp").double().to(accelerator.device)
    # A last batch of one sample.
    loader = accelerator.prepare(evaluation_loader(test, batch_size=BATCH - 1))
    try:
        result = classify(accelerator, model, loader)
    except RuntimeError as error:
        session.supervisor.gather(0, error=str(error))
        return Check(name, False, str(error), COUNT_ALL)
    with torch.no_grad():
        predictions = model(test.images).argmax(dim=1)
    alone = int((predictions == test.labels).sum())
    found = session.supervisor.gather([result.correct, result.total, alone])
    right = [alone, len(test), alone]
    detail = f"{result.correct} of {result.total} right, {alone} of {len(test)} alone"
    return Check(name, all(counts == right for counts in found), detail, COUNT_ALL)
