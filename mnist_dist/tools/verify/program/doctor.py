"""What `doctor` sees in a program that does not leave the same on one process and on several."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnist_dist.tools.doctor import rules_course
from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.judge import judge
from mnist_dist.tools.doctor.plan import PROCESSES, Plan
from mnist_dist.tools.doctor.record_files import read_records
from mnist_dist.tools.verify.program.results import Line

EVERY = 10  # updates of which one is examined


class Start(NamedTuple):
    """How a program is started.

    Attributes:
        program: a Python file.
        flags: its own.
        processes: how many are several.
        cpu: whether to hide the GPUs.
        deadline: seconds that a run may take.
    """

    program: Path
    flags: Sequence[str]
    processes: int
    cpu: bool
    deadline: float


def not_connected(records: Path, world: int) -> tuple[str, str] | None:
    """Find processes that were started together and trained each by itself.

    Args:
        records: the folder of what the processes have left.
        world: how many there are.

    Returns:
        What was seen and what to do, None if they are connected.
    """
    found = read_records(records)
    if world == 1 or len(found) < world:
        return None
    finding = rules_course.not_connected(Case(found))
    return (f"{finding.place}: {finding.evidence}", finding.advice) if finding else None


def explain(start: Start, contract: bool = False) -> list[Line]:
    """Run a program under doctor, and say what is wrong with it.

    Args:
        start: how it is started.
        contract: whether it takes the flags of the contract.

    Returns:
        A line for each finding, or one that says that there is none; nothing if it cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        flags = [*start.flags]
        if contract:
            flags += ["--dtype", "float64", "--output-dir", f"{folder}/on-{PROCESSES}"]
        plan = Plan(start.program, flags, EVERY, 0, start.cpu, start.deadline, start.deadline)
        together = plan.start(start.processes)
        if not together.records or not together.updates:
            return []
        case = Case(together.records, hang=together.hang)
        if not together.complaint and not together.hang:
            alone = plan.start(1)
            case.alone = alone.records[0] if alone.records and not alone.complaint else None
    lines = []
    for finding in judge(case):
        if finding.counts:
            where = f"{finding.place}: " if finding.place else ""
            detail = f"{where}{finding.evidence}"
            lines.append(Line(f"doctor: {finding.subject}", False, detail, finding.advice))
    if not lines:
        return [Line("doctor", True, f"found nothing wrong on {start.processes} processes", "")]
    # The advice of lines behind another one that fails is not shown.
    is_cause = 1 if contract else 0
    rest = [line._replace(detail=f"{line.detail} ({line.advice})") for line in lines[is_cause:]]
    return [*lines[:is_cause], *rest]
