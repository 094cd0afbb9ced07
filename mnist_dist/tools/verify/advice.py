"""What to do about the first thing that is wrong with a training: one question for each line."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from mnist_dist.tools.verify import reference
from mnist_dist.tools.verify.faults import ENDED, Fault
from mnist_dist.tools.verify.gradient import why_gradient
from mnist_dist.tools.verify.session import Session, Trial
from mnist_dist.tools.verify.watched.differences import TOLERANCE
from mnist_dist.tools.verify.watched.results import DONE, Observation, batch_of, samples_of

SAME = 1e-9  # the largest difference, as a share, of a rate that is another one
SAME_FIRST = "the same --seed must give all processes the same first weights"
ONE_STEP = "the optimizer is to make one step of AdamW an update, and nothing besides"
ONE_ORDER = "the order must depend on --seed and the epoch alone"
MOVE_AVERAGE = "every process must move its average after every update"


def advice_on(session: Session, trials: Mapping[str, Trial], fault: Fault) -> str:
    """Return what to do about the first fault that was found."""
    trial = trials[fault.title]
    questions: dict[str, Callable[[Session, Trial, Fault], str]] = {
        "initial weights": why_first_weights,
        "samples": why_samples,
        "gradient": why_gradient,
        "schedule": why_schedule,
        "update": why_update,
        "moving average": why_average,
    }
    advice = questions[fault.line](session, trial, fault)
    odd = odd_processes(session, fault)
    return f"on {odd} alone: {advice}" if odd else advice


def odd_processes(session: Session, fault: Fault) -> str:
    """Return the processes that saw a fault, in words; empty if all did."""
    observations = session.observations[fault.title]
    wrong = [rank for rank, each in enumerate(observations) if is_wrong_at(each, fault)]
    if len(wrong) == len(observations):
        return ""
    return ", ".join(session.on(rank) for rank in wrong)


def is_wrong_at(observation: Observation, fault: Fault) -> bool:
    """Return whether a process saw a fault, too."""
    size, update = observation.difference_of(fault.line)
    return update == fault.update and not size <= TOLERANCE


def why_first_weights(session: Session, trial: Trial, fault: Fault) -> str:
    """Ask of which dtype the first weights are, and whether they are the same everywhere."""
    observations = session.observations[fault.title]
    dtypes = [each.dtypes for each in observations]
    wanted = trial.settings.dtype
    odd = [rank for rank, dtype in enumerate(dtypes) if dtype not in ("", wanted)]
    if odd:
        where = ", ".join(f"{session.on(rank)} has {dtypes[rank]} weights" for rank in odd)
        return (
            f"{where}, not {wanted}: all processes must compute in the --dtype that was asked for"
        )
    size, _ = observations[fault.rank].difference_of("initial weights")
    if size == math.inf:
        return "they are NaN or infinite, or have different names or shapes: look at networks.build"
    if len({each.digest for each in observations}) > 1:
        return SAME_FIRST
    if fault.ends:
        return ENDED
    return f"{SAME_FIRST}, in the order in which the layers are created: look for random numbers that are drawn before"


def why_samples(session: Session, trial: Trial, fault: Fault) -> str:
    """Ask whether batches are another epoch's or another seed's, or some are missing."""
    observations = session.observations[fault.title]
    settings = trial.settings
    samples = len(trial.samples.train)
    made = min(len(each.batches) for each in observations)
    number = fault.update - 1
    if made < trial.updates and observations[0].end == DONE:
        return "updates are missing: do not pass the loader to accelerator.prepare twice"
    if number >= made:
        return "some processes have fewer batches than others: all must have the same number"
    epoch, batch = divmod(number, trial.updates_per_epoch)
    whole = batch_of(settings, samples, epoch, batch)
    together = samples_of(observations, number)
    for other in range(settings.epochs + 1):
        if other != epoch and together == batch_of(settings, samples, other, batch):
            return f"they are those of epoch {other + 1}: {ONE_ORDER}, a new one every epoch"
    for rank, observation in enumerate(observations):
        own = replace(settings, seed=settings.seed + rank)
        mine = set(observation.samples[number])
        if not mine <= set(whole) and mine <= set(batch_of(own, samples, epoch, batch)):
            where = session.on(rank)
            return f"{where} shuffles with the seed {own.seed}: give all processes the same --seed"
    if set(together) < set(whole):
        return "some are left out: every sample of a batch must be given to one process"
    return f"{ONE_ORDER}, and be dealt out to the processes batch by batch"


def why_schedule(session: Session, trial: Trial, fault: Fault) -> str:
    """Ask whether a rate is that of another update, or a multiple of the right one."""
    settings = trial.settings
    world = session.supervisor.world
    update = fault.update - 1
    used = session.observations[fault.title][fault.rank].rate

    def rate(number: int) -> float:
        """Return the right rate of an update, from 0."""
        return reference.rate(settings, max(0, min(number, trial.updates - 1)), trial.updates)

    if world > 1 and update > 0 and is_close(used, rate(update * world)):
        return (
            f"it advances {world} times per update: step it once per update, not once per process, "
            "and do not prepare it with Accelerate's own class"
        )
    if is_close(used, rate(update + 1)):
        return "it is that of the next update: step the scheduler after the optimizer"
    if update > 0 and is_close(used, rate(update - 1)):
        return "it is that of the update before: step the scheduler with every update"
    if odd_processes(session, fault):
        return "every process must step the same schedule, with the same settings"
    for factor, how in ((world, "multiplied"), (1 / world, "divided")):
        if world > 1 and is_close(used, factor * rate(update)):
            return (
                f"it is {how} by the number of processes, {world}: --lr is that of the global batch, "
                "on any number of processes"
            )
    if is_close(used, settings.lr):
        return "it is --lr itself: --schedule and --warmup are not applied (task/objective.py)"
    return "it must be that of the update's number (task/schedules.py)"


def is_close(one: float, other: float) -> bool:
    """Return whether two rates are the same but for rounding."""
    return math.isclose(one, other, rel_tol=SAME)


def why_update(session: Session, trial: Trial, fault: Fault) -> str:
    """Ask whether weights are numbers."""
    size, _ = session.observations[fault.title][fault.rank].difference_of("update")
    if size == math.inf:
        return f"the weights are NaN or infinite after it: {ONE_STEP}"
    decay = ", with its weight decay" if trial.settings.weight_decay else ""
    return f"{ONE_STEP}{decay}"


def why_average(session: Session, trial: Trial, fault: Fault) -> str:  # noqa: ARG001
    """Say what a moving average is."""
    return MOVE_AVERAGE
