"""Lines of `verify` about checkpoints: a training that is killed, and one that is asked to stop."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mnist_dist.digits import weights
from mnist_dist.run.command_line import as_flags
from mnist_dist.tools import reference
from mnist_dist.tools.answer import Check
from mnist_dist.tools.program_start import unlaunched
from mnist_dist.tools.reference import Reference
from mnist_dist.tools.verify_session import TOLERANCE, Session, Trial
from mnist_dist.tools.watched import Watch
from mnist_dist.tools.watched_results import (
    DONE,
    STOPPED,
    Observation,
    difference,
    wrong_checkpoint,
    wrong_figures,
    wrong_samples,
)

ASKED = 3  # the update, from 0, before which a process is asked to stop
AGREE = (
    "all must learn of a request after the same update, and then save: "
    "core/stopping.py, Checkpoints.after_update"
)
KEEP = (
    "weights, optimizer and moving average of all processes must be in it, "
    "and the file system keep it"
)
GIVE_BACK = (
    "every part of the state must be saved and given back to every process: "
    "Checkpoints and its parts"
)
DIFFERS = {  # how what follows a checkpoint may differ
    "resumed weights": "the weights are not those that were saved",
    "gradient": "the gradient is another",
    "update": "the update is another, so the optimizer's state is not what was saved",
    "schedule": "the learning rate is another",
    "moving average": "the moving average is not what was saved",
}


def check_stops(session: Session, trial: Trial) -> None:
    """Kill a training and go on with it, and ask one to stop."""
    every = trial.settings.checkpoint_every
    folder = session.folder / "killed"
    killed = session.watch(
        "checkpoint",
        "killed",
        in_folder(trial, folder),
        enough=every + min(2, every - 1),  # before the next one is due
        keep=(every,),
    )
    saved = killed.kept.get(every)
    session.answer.add(check_checkpoint(session, saved, folder, every))
    copied = copy_run(session, folder)
    session.supervisor.gather(0)  # the copy is there
    resumed = session.watch(
        "resume", "resumed", in_folder(trial, copied, resume=True), reference=saved
    )
    session.answer.add(check_resumed(session, trial, resumed, every))
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
    return copied


# ----------------------------------------------------------------------------------- a checkpoint


def check_checkpoint(
    session: Session,
    saved: Reference | None,
    folder: Path,
    update: int,
) -> Check:
    """Check whether the newest checkpoint of a run is what all processes had.

    Args:
        session: the processes.
        saved: the training when it was taken.
        folder: the run's.
        update: after which it was due.
    """
    faults = read_back(session, saved, folder, update)
    right = f"that of update {update}, written by one process, is what all of them held"
    return Check("checkpoint", not faults, "; ".join(faults) or right, KEEP)


def read_back(
    session: Session,
    saved: Reference | None,
    folder: Path,
    update: int,
) -> list[str]:
    """Return what the newest checkpoint does not hold, in words; as for `check_checkpoint`."""
    if saved is None:
        faults = ["none was due"]
    else:
        faults, found = wrong_checkpoint(saved, folder, TOLERANCE)
        if found != update and not faults:
            faults.append(f"the newest is of update {found}, not of {update}")
    everywhere = session.supervisor.gather(faults)
    said = [
        f"{session.on(rank)}: {'; '.join(each)}" for rank, each in enumerate(everywhere) if each
    ]
    return said[:2]


# --------------------------------------------------------------------------------------- resuming


def check_resumed(session: Session, trial: Trial, watch: Watch, update: int) -> Check:
    """Check whether what follows a checkpoint is what would have been.

    Args:
        session: the processes.
        trial: the training.
        watch: how it was watched when it went on.
        update: after which the checkpoint was taken.
    """
    observations = session.observations["resumed"]
    faults = first_difference(session, observations)
    for rank, observation in enumerate(observations):
        if observation.end != DONE:
            faults.append(f"{session.on(rank)}: {observation.end}")
    faults += wrong_samples(observations, trial.settings, len(trial.samples.train), update)
    wrong = wrong_figures(watch.figures, watch.folder, TOLERANCE)
    of_first_process, *_ = session.supervisor.gather(wrong)
    faults = faults or of_first_process
    right = f"after update {update} all processes went on as if nothing had been"
    return Check("resume", not faults, "; ".join(faults[:2]) or right, GIVE_BACK)


def first_difference(session: Session, observations: Sequence[Observation]) -> list[str]:
    """Return the first difference that all processes together saw, in words.

    What comes after it may follow from it, an end before its time, too.
    """
    found = []
    for rank, observation in enumerate(observations):
        for kind, what in DIFFERS.items():
            size, update = observation.difference_of(kind)
            if not size <= TOLERANCE:
                text = f"{session.on(rank)}: {what}, by {size:.1e} at update {update}"
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
    faults = read_back(session, watch.reference, folder, left)
    right = f"asked on process {last}, all left after update {left}"
    if supervisor.world > 1:
        right += ", and 1 process went on from there as all would have"
        faults = faults or check_one_going_on(session, trial, watch, folder)
    return Check("stop", not faults, "; ".join(faults) or right, AGREE)


def check_one_going_on(session: Session, trial: Trial, watch: Watch, folder: Path) -> list[str]:
    """Let one process go on from a checkpoint of several; the others wait.

    Args:
        session: the processes.
        trial: the training.
        watch: how it was watched until it stopped.
        folder: of the run that stopped.

    Returns:
        What it makes of it otherwise than all would have, in words.
    """
    session.answer.say("....  going on from there: train.py on 1 process")
    session.supervisor.begin("stop", "going on from there on 1 process")
    faults = []
    if session.accelerator.is_main_process:
        going = in_folder(trial, copy_run(session, folder), resume=True)
        faults = go_on_alone(going, watch.reference)
    of_first_process, *_ = session.supervisor.gather(faults)
    return of_first_process


def go_on_alone(trial: Trial, one: Reference) -> list[str]:
    """Go on with a training in a process of its own.

    Args:
        trial: the training, with the folder of a run that was stopped.
        one: the reference as far as the run is, which goes on, too.

    Returns:
        What is wrong, in words.
    """
    settings = trial.settings
    asked = {
        "flags": as_flags(settings),
        "samples": len(trial.samples.train),
        "others": len(trial.samples.test),
    }
    code = "from mnist_dist.tools.watched import alone; alone()"
    package = os.fspath(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        env=unlaunched() | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"status {done.returncode}"
        return [f"1 process could not go on from there: {reason}"]
    for update in range(one.updates, trial.updates):
        epoch, batch = divmod(update, trial.updates_per_epoch)
        rate = reference.rate(settings, update, trial.updates)
        one.update(one.gradient(epoch, batch), rate)
        one.follow()
    trained = weights.load_weights((settings.output_dir or Path()) / weights.WEIGHTS)
    size = difference(one.averaged or one.weights, trained)
    if size <= TOLERANCE:
        return []
    return [f"1 process that goes on from there differs by {size:.1e} in the end"]
