"""The runs of one program: on several processes, on one, and stopped and started again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.core import UserError
from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.launcher import Launch, Outcome
from mnist_dist.tools.doctor.records import Record
from mnist_dist.tools.doctor.rules_resume import Resume

PROCESSES = "{processes}"  # in the program's flags: how many there are, for folders of its runs
STOPPED = "stopped"  # what the folders of a run that is stopped have behind that
NOT_FRESH = "it resumes from {file}, which the run before it wrote"


@dataclass(frozen=True)
class Plan:
    """What all runs of the program have in common.

    Attributes:
        program: a Python file.
        flags: its own.
        every: one update in so many is examined.
        stop_after: updates after which a run that is to be stopped is.
        cpu: whether to hide the GPUs.
        deadline: seconds without any event after which they hang.
        limit: seconds after which a run is ended.
    """

    program: Path
    flags: Sequence[str]
    every: int
    stop_after: int
    cpu: bool
    deadline: float
    limit: float = math.inf

    def start(
        self,
        world: int,
        name: str = "",
        more: Sequence[str] = (),
        stop: bool = False,
    ) -> Outcome:
        """Start the program, and wait for it.

        Args:
            world: the number of processes.
            name: of the run, for its folders; empty: the number of processes.
            more: flags behind its own.
            stop: whether to stop it.
        """
        words = ["-m", "mnist_dist", "doctor", "--every", str(self.every)]
        if stop:
            words += ["--stop-after", str(self.stop_after)]
        flags = [flag.replace(PROCESSES, name or str(world)) for flag in (*self.flags, *more)]
        launch = Launch([*words, str(self.program), *flags], world, self.cpu, self.deadline)
        outcome = launch.run(self.limit)
        count = "1 process" if world == 1 else f"{world} processes"
        what = f", {'stopped' if stop else 'started again'}" if name else ""
        print(f"{count}{what}: {outcome.updates} updates, {outcome.seconds:.1f} s", flush=True)
        return outcome


def run_again(plan: Plan, case: Case, flags: Sequence[str]) -> Resume:
    """Run the program from its beginning, stop it, and start it again.

    Args:
        plan: what all runs have in common.
        case: the run that was not stopped.
        flags: of the second start, behind the program's own.

    Raises:
        UserError: it did not begin anew, or was not stopped.
    """
    world = case.world
    name = f"{world}-{STOPPED}"
    stopped = plan.start(world, name, stop=True)
    left = case.files_left_to(stopped.records)
    if left:
        advice = f"put {PROCESSES} into the name of the folder that the program's flags give it"
        raise UserError(f"{NOT_FRESH.format(file=left)}: {advice}", status=2)
    refuse_unless_stopped(plan, stopped.records)
    resumed = plan.start(world, name, flags)
    return Resume(
        stopped=stopped.records,
        resumed=resumed.records,
        asked_after=plan.stop_after,
        complaint=resumed.complaint,
        hangs=bool(resumed.hang),
    )


def refuse_unless_stopped(plan: Plan, records: list[Record]) -> None:
    """Refuse to start a program again that did not come to the update after which to stop it.

    Raises:
        UserError: says so.
    """
    made = min((record.made for record in records), default=0)
    if made < plan.stop_after:
        reason = f"it makes {made} updates, so it cannot be stopped after {plan.stop_after}"
        raise UserError(f"{reason}: give a smaller --stop-after", status=2)
