"""Lines of `verify` about updates and evaluations: train.py on all processes, and the reference."""

import math
from collections.abc import Mapping

import torch

from mnist_dist.task import networks
from mnist_dist.task.evaluation import BATCH, classify, evaluation_loader
from mnist_dist.tools.answer import Check
from mnist_dist.tools.verify_gradient import why_gradient
from mnist_dist.tools.verify_session import (
    FIRST_LINE,
    TOLERANCE,
    Session,
    Trial,
)
from mnist_dist.tools.watched_results import wrong_figures, wrong_samples

ADVICE = {  # by the line that fails
    "initial weights": "the same --seed must give all processes the same first weights",
    "samples": "do not pass the loader to accelerator.prepare, "
    "and give all processes the same --seed and --batch-size",
    "update": "the optimizer is to make one step of AdamW an update, and nothing besides",
    "schedule": "the rate must move once an update, not once a process: do not prepare it",
    "moving average": "every process must move its average after every update",
    "evaluation": "count by sample, without padding, and divide sums by counts: "
    "evaluate, and the figures of train.py",
    "test count": "count by sample, without padding: "
    "the loader of the test set is not to be prepared either",
}


def are_updates_right(session: Session, trials: Mapping[str, Trial]) -> bool:
    """Watch small trainings, and check whether each of their updates is that of one process."""
    answer = session.answer
    figures = watch_all(session, trials)
    answer.add(compared(session, "initial weights"))
    answer.add(check_samples(session, trials))
    advice = ""
    if not answer.failed and not compared(session, "gradient").passed:
        advice = why_gradient(session, trials)
    answer.add(compared(session, "gradient", advice))
    answer.add(compared(session, "update"))
    answer.add(compared(session, "schedule"))
    if any(trial.settings.ema for trial in trials.values()):
        answer.add(compared(session, "moving average"))
    ended = trouble(session, "evaluation")
    right = "losses and counts of every epoch are those of one process"
    detail = ended or "; ".join(figures) or right
    answer.add(Check("evaluation", detail == right, detail, ADVICE["evaluation"]))
    answer.add(check_test_count(session))
    return not answer.failed


def watch_all(session: Session, trials: Mapping[str, Trial]) -> list[str]:
    """Watch trainings, up to the first that fails.

    Returns:
        What is wrong with the figures that they wrote, in words.
    """
    faults = []
    for title, trial in trials.items():
        watch = session.watch(FIRST_LINE, title, trial)
        if session.observations[title][0].error:
            break
        wrong = wrong_figures(watch.figures, watch.folder, TOLERANCE)
        of_first_process, *_ = session.supervisor.gather(wrong)
        faults += [f"{title}: {fault}" for fault in of_first_process]
    return faults


def compared(session: Session, kind: str, advice: str = "") -> Check:
    """Make a line: what processes saw of a kind differs from the reference by rounding alone.

    Args:
        session: with what they saw.
        kind: of what.
        advice: what to do if it does not; empty for the usual one.
    """
    largest = 0.0
    faults = []
    for title, observations in session.observations.items():
        for rank, observation in enumerate(observations):
            size, update = observation.difference_of(kind)
            largest = max(largest, size)
            if size <= TOLERANCE:
                continue
            much = "and is no finite number"
            if math.isfinite(size):
                much = f"by {size:.1e}"
            text = (
                f"{title}: {session.on(rank)} differs from one process's "
                f"{much}, first at update {update}"
            )
            faults.append((update, text))
    failing = ""
    if faults:
        _, failing = min(faults, key=lambda fault: fault[0])
    updates = 0
    for first, *_ in session.observations.values():
        updates += first.updates
    right = f"differs from one process's by {largest:.0e} at most, {updates} updates (float64)"
    ended = trouble(session, kind)
    is_right = not failing and not ended
    return Check(
        kind,
        is_right,
        failing or ended or right,
        advice or ADVICE.get(kind, ""),
    )


def trouble(session: Session, line: str) -> str:
    """Return how a training ended that came to grief at what a line is about, in words."""
    for title, observations in session.observations.items():
        first = observations[0]
        if first.error and first.line == line:
            return f"{title}, after update {first.updates}: {first.error}"
    return ""


def check_samples(session: Session, trials: Mapping[str, Trial]) -> Check:
    """Check whether every sample came once an epoch, in the global batches of one process."""
    faults = []
    for title, observations in session.observations.items():
        trial = trials[title]
        wrong = wrong_samples(observations, trial.settings, len(trial.samples.train))
        faults += [f"{title}: {fault}" for fault in wrong]
    right = "each once an epoch, in the batches of one process"
    return Check("samples", not faults, "; ".join(faults[:2]) or right, ADVICE["samples"])


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
        return Check(name, False, str(error), ADVICE[name])
    with torch.no_grad():
        predictions = model(test.images).argmax(dim=1)
    alone = int((predictions == test.labels).sum())
    found = session.supervisor.gather([result.correct, result.total, alone])
    right = [alone, len(test), alone]
    detail = f"{result.correct} of {result.total} right, {alone} of {len(test)} alone"
    return Check(name, all(counts == right for counts in found), detail, ADVICE[name])
