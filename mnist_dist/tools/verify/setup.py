"""The first lines of `verify`: what must be equal on all processes, and what must be distinct."""

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mnist_dist.core import UserError
from mnist_dist.core.errors import explain
from mnist_dist.run import launch
from mnist_dist.task import data
from mnist_dist.tools.verify.answer import Check, Process
from mnist_dist.tools.verify.preflight import (
    check_equal,
    check_processes,
    digests,
    faults_in_data,
    introduce,
    own_files,
)
from mnist_dist.tools.verify.session import Session

VISIBLE_WITHIN = 10.0  # seconds, for a file on all nodes: network file systems cache folders


def is_set_up(session: Session) -> bool:
    """Check programs, versions, data and folder of all processes, which must be distinct.

    Returns:
        Whether all is right, and `session` has data and folder.
    """
    answer = session.answer
    session.supervisor.begin("processes")
    facts = session.supervisor.gather(asdict(introduce(session.accelerator)))
    answer.processes = [Process(**each) for each in facts]
    described = launch.describe(session.accelerator)
    answer.add(check_processes(answer.processes, session.config.processes, described))
    answer.add(*check_equal(answer.processes))
    if answer.failed:
        return False
    answer.add(check_data(session))
    if answer.failed:
        return False
    answer.add(check_shared_folder(session))
    return not answer.failed


def most_common(values: Sequence[Any]) -> Any:
    """Return the value that most have."""
    ((value, _),) = Counter(values).most_common(1)
    return value


# ---------------------------------------------------------------------------------------- the data


def check_data(session: Session) -> Check:
    """Read the data as the training does, and check whether all processes hold the same."""
    session.supervisor.begin("data", "reading the data")
    problem = ""
    held: dict[str, str] = {}
    try:
        samples = read_data(session)
        held = digests(samples)
        problem = "; ".join(faults_in_data(samples))
    except (UserError, OSError) as error:
        problem = explain(error)
    problems = session.supervisor.gather(problem, error="" if held else problem)
    files = held.get("files", "")
    session.answer.processes = [replace(each, data=files) for each in session.answer.processes]
    if not held:
        found = who_has_other_files(session)
        return Check("data", False, f"refused, as train.py would: {found}", problem)
    session.samples = samples
    faults = [f"{session.on(rank)}: {text}" for rank, text in enumerate(problems) if text]
    faults += who_holds_others(session, held)
    right = (
        f"{samples.name}: {len(samples.train):,} to train, {len(samples.test):,} to test, "
        f"the same everywhere (digest {samples.digest[:12]})"
    )
    advice = "the files are the same, but what is read from them is not: "
    advice += "compare task/data.py and its libraries"
    return Check("data", not faults, "; ".join(faults) or right, advice)


def read_data(session: Session) -> data.DataSplits:
    """Read the data, in float64.

    Raises:
        UserError: they cannot be had, or differ between processes.
    """
    asked = session.config.asked()
    choice = session.choice
    return data.obtain(
        session.accelerator,
        choice.dataset,
        choice.data_dir,
        asked.val_size if asked else 0,
        asked.seed if asked else 0,
        torch.float64,
    )


def who_has_other_files(session: Session) -> str:
    """Return which processes have other files than most, or what the first one has, in words."""
    found = session.supervisor.gather(own_files(session.choice))
    common = most_common(found)
    others = [rank for rank, files in enumerate(found) if files != common]
    return "; ".join(f"{session.on(rank)} has {found[rank]}" for rank in others or [0])


def who_holds_others(session: Session, held: dict[str, str]) -> list[str]:
    """Find the processes whose tensors are not those of most, in words.

    Args:
        session: the processes.
        held: the digests of this process's tensors.
    """
    faults = []
    everywhere = session.supervisor.gather(held)
    for part in held:
        values = [each.get(part) for each in everywhere]
        common = most_common(values)
        others = [session.on(rank) for rank, value in enumerate(values) if value != common]
        if others:
            faults.append(f"{', '.join(others)}: other {part}")
    return faults


# -------------------------------------------------------------------------------------- the folder


def check_shared_folder(session: Session) -> Check:
    """Check whether all processes see what one writes, and make the folder for trials."""
    supervisor = session.supervisor
    supervisor.begin("shared folder")
    root = session.config.output_dir
    if not root.exists():  # asked before any process makes it
        supervisor.parents.append(root)
    name, *_ = supervisor.gather(uuid.uuid4().hex)
    session.folder = root / f".verify-{name}"
    supervisor.folders.append(session.folder)
    problem = ""
    try:
        session.folder.mkdir(parents=True, exist_ok=True)
        (session.folder / str(supervisor.rank)).write_text("here")
    except OSError as error:
        problem = explain(error)
    supervisor.gather(0)  # all have written
    if not problem:
        problem = wait_for_files(session)
    problems = [text for text in supervisor.gather(problem) if text]
    right = f"what is written to {root} is visible to all processes"
    advice = "put --output-dir on a file system that all nodes share"
    return Check("shared folder", not problems, "; ".join(problems) or right, advice)


def wait_for_files(session: Session) -> str:
    """Wait until this process sees a file of every process.

    Returns:
        What it does not see, in words; empty if it sees all.
    """
    expected = {str(rank) for rank in range(session.supervisor.world)}
    until = time.monotonic() + VISIBLE_WITHIN
    found = names_in(session.folder)
    while not expected <= found:
        if time.monotonic() > until:
            return f"{session.on_this()} sees {len(found)} of {len(expected)} files"
        time.sleep(0.1)
        found = names_in(session.folder)
    return ""


def names_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.glob("*")}
