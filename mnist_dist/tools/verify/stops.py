"""Lines of `verify` about checkpoints: a training that is killed, and one that is asked to stop."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mnist_dist.tools.verify.answer import Check
from mnist_dist.tools.verify.reference import Reference
from mnist_dist.tools.verify.session import Session, Trial
from mnist_dist.tools.verify.watched.alone import go_on_alone
from mnist_dist.tools.verify.watched.differences import TOLERANCE, in_words
from mnist_dist.tools.verify.watched.files import KEEP, wrong_checkpoint
from mnist_dist.tools.verify.watched.results import STOPPED, Observation, wrong_samples
from mnist_dist.tools.verify.watched.training import Watch

ASKED = 3  # the update, from 0, before which a process is asked to stop
AGREE = (
    "all must learn of a request after the same update, and then save: "
    "core/stopping.py, Checkpoints.after_update"
)
GIVE_BACK = (
    "every part of the state must be saved and given back to every process: "
    "Checkpoints and its parts"
)
DIFFERS = {  # how what follows a checkpoint may differ
    "resumed weights": "the weights are not those that were saved",
    "gradient": "the gradient is different",
    "update": "the update is different, so the optimizer's state is not what was saved",
    "schedule": "the learning rate is different",
    "moving average": "the moving average is not what was saved",
}


def check_stops(session: Session, trial: Trial) -> None:
    """Kill and resume a training, twice, and ask one to stop.

    It is killed within an epoch, and when the next one begins.
    """
    every = trial.settings.checkpoint_every
    per_epoch = trial.updates_per_epoch
    folder = session.folder / "killed"
    killed = session.watch(
        "checkpoint",
        "killed",
        in_folder(trial, folder),
        enough=every + min(2, every - 1),  # before the next one is due
        keep=(every,),
    )
    saved = killed.kept.get(every)
    session.answer.add(check_checkpoint(session, saved, folder, every, per_epoch))
    copied = copy_run(session, folder)
    again = session.watch(
        "resume",
        "resumed",
        in_folder(trial, copied, resume=True),
        reference=saved,
        enough=per_epoch,
        keep=(per_epoch,),
    )
    faults = wrong_after(session, "resumed", trial, every)
    if not faults:
        at_end = again.kept.get(per_epoch)
        copied = copy_run(session, copied)
        session.watch(
            "resume",
            "resumed again",
            in_folder(trial, copied, resume=True),
            reference=at_end,
        )
        faults = wrong_after(session, "resumed again", trial, per_epoch)
    right = f"after updates {every} and {per_epoch}, the end of an epoch, "
    right += "all processes continued as if nothing had happened"
    session.answer.add(Check("resume", not faults, "; ".join(faults[:2]) or right, GIVE_BACK))
    session.answer.add(check_stop(session, trial))


def in_folder(trial: Trial, folder: Path, resume: bool = False) -> Trial:
    """Return a training in a folder of its own."""
    return Trial(replace(trial.settings, output_dir=folder, resume=resume), trial.samples)


def copy_run(session: Session, folder: Path) -> Path:
    """Copy a run's folder, on the first process: that of a process that lives is locked.

    Returns:
        The copy.
    """
    copied = folder.with_name(f"{folder.name}-resumed")
    if session.accelerator.is_main_process:
        shutil.copytree(folder, copied)
    session.supervisor.gather(0)  # it is there
    return copied


# ----------------------------------------------------------------------------------- a checkpoint


def check_checkpoint(
    session: Session,
    saved: Reference | None,
    folder: Path,
    update: int,
    per_epoch: int,
) -> Check:
    """Check whether the newest checkpoint of a run is what all processes had.

    Args:
        session: the processes.
        saved: the training when it was taken.
        folder: the run's.
        update: after which it was due.
        per_epoch: updates in an epoch.
    """
    faults = read_back(session, saved, folder, per_epoch)
    right = f"that of update {update}, written by one process, is what all of them held"
    return Check("checkpoint", not faults, "; ".join(faults) or right, KEEP)


def read_back(
    session: Session,
    saved: Reference | None,
    folder: Path,
    per_epoch: int,
) -> list[str]:
    """Return what the newest checkpoint does not hold, in words; as for `check_checkpoint`."""
    if saved is None:
        faults = ["none was due"]
    else:
        faults = wrong_checkpoint(saved, folder, per_epoch)
    everywhere = session.supervisor.gather(faults)
    said = [
        f"{session.on(rank)}: {'; '.join(each)}" for rank, each in enumerate(everywhere) if each
    ]
    return said[:2]


# --------------------------------------------------------------------------------------- resuming


def wrong_after(session: Session, title: str, trial: Trial, update: int) -> list[str]:
    """Find how what follows a checkpoint is not what would have been, in words.

    Args:
        session: the processes.
        title: of the training that went on.
        trial: the training.
        update: after which the checkpoint was taken.
    """
    observations = session.observations[title]
    faults = first_difference(session, observations)
    for rank, observation in enumerate(observations):
        if observation.error:
            faults.append(f"{session.on(rank)}: {observation.error}")
    samples = wrong_samples(observations, trial.settings, len(trial.samples.train), update)
    if samples:
        faults.append(samples[1])
    for observation in observations:
        faults += [text for _, _, text, _ in observation.faults]
    return faults


def first_difference(session: Session, observations: Sequence[Observation]) -> list[str]:
    """Return the first difference that all processes together saw, in words.

    What comes after it may follow from it, an end before its time, too.
    """
    found = []
    for rank, observation in enumerate(observations):
        for kind, what in DIFFERS.items():
            size, update = observation.difference_of(kind)
            if not size <= TOLERANCE:
                text = f"{session.on(rank)}: {what}, {in_words(size)}, at update {update}"
                found.append((update, text))
    if not found:
        return []
    _, text = min(found, key=lambda fault: fault[0])
    return [text]


# --------------------------------------------------------------------------------------- stopping


def check_stop(session: Session, trial: Trial) -> Check:
    """Check whether a request to one process lets all leave alike, with a checkpoint."""
    supervisor = session.supervisor
    last = supervisor.world - 1
    folder = session.folder / "stopped"
    settings = replace(trial.settings, output_dir=folder, checkpoint_every=0)
    asked = ASKED if supervisor.rank == last else None
    to_stop = Trial(settings, trial.samples)
    watch = session.watch("stop", "stopped", to_stop, AGREE, ask=asked)
    observations = session.observations["stopped"]
    left = observations[0].updates
    if any((each.end, each.updates) != (STOPPED, left) for each in observations):
        found = [
            f"{session.on(rank)} {each.end} after update {each.updates}"
            for rank, each in enumerate(observations)
        ]
        detail = f"asked before update {ASKED + 1} of process {last}: {'; '.join(found)}"
        return Check("stop", False, detail, AGREE)
    faults = read_back(session, watch.reference, folder, trial.updates_per_epoch)
    right = f"asked on process {last}, all left after update {left}"
    if supervisor.world > 1:
        right += ", and 1 process resumed from there as all of them would have"
        faults = faults or check_one_going_on(session, trial, watch, folder)
    return Check("stop", not faults, "; ".join(faults) or right, AGREE)


def check_one_going_on(session: Session, trial: Trial, watch: Watch, folder: Path) -> list[str]:
    """Let one process resume from a checkpoint of several; the others wait.

    Args:
        session: the processes.
        trial: the training.
        watch: how it was watched until it stopped.
        folder: of the run that stopped.

    Returns:
        What it makes of it otherwise than all would have, in words.
    """
    session.answer.say("....  resuming from there: train.py on 1 process")
    copied = copy_run(session, folder)
    session.supervisor.begin("stop", "resuming from there on 1 process")
    found: list[str] = []
    if session.accelerator.is_main_process:
        settings = in_folder(trial, copied, resume=True).settings
        seen = go_on_alone(settings, trial.samples, watch.reference)
        found = what_was_seen(seen)
    of_first_process, *_ = session.supervisor.gather(found)
    return of_first_process


def what_was_seen(seen: Observation) -> list[str]:
    """Return what was wrong when one process went on, in words."""
    who = "1 process that resumes from there"
    if seen.error:
        return [f"{who}: {seen.error}"]
    for kind, what in DIFFERS.items():
        size, update = seen.difference_of(kind)
        if not size <= TOLERANCE:
            return [f"{who}: {what}, {in_words(size)}, at update {update}"]
    return [f"{who}: {text}" for _, _, text, _ in seen.faults]
