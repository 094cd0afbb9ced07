"""The command `doctor`: its flags, and what it does under a launcher and without one."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import tyro

from mnist_dist.core import UserError
from mnist_dist.run.command_line import parse
from mnist_dist.tools.doctor.beside import FirstProcess, LaterProcess, common_folder
from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding, table, write_findings
from mnist_dist.tools.doctor.judge import judge
from mnist_dist.tools.doctor.launcher import FOLDER, Outcome, is_launched
from mnist_dist.tools.doctor.plan import NOT_FRESH, Plan, run_again
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.rules_resume import judge_resume
from mnist_dist.tools.doctor.running import Run
from mnist_dist.usage import UsageError, require, unset

NO_FLAGS = "none"  # the value of --resume-with for a program that resumes by itself
SOUND = 0
FOUND = 1
COULD_NOT_RUN = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Say what is wrong with a distributed training, and where. It runs PROGRAM FLAGS, unmodified.

    Start it as you start the training (torchrun ... -m mnist_dist doctor PROGRAM FLAGS). Without a
    launcher it starts the processes itself. Flags of its own come before PROGRAM.
    """

    all: bool = False
    """Also show what is right."""
    json: Path | None = None
    """Also write the result as JSON to this file."""
    every: int = 10
    """Examine weights and gradients in one of so many updates, and in the first ones: of the
    training, and of each of its first 16 epochs."""
    processes: int = 2
    """How many processes to start, if no launcher has."""
    against: Annotated[int | None, unset("1 where it starts the processes")] = None
    """1: also run it on one process, and compare; 0: do not."""
    cpu: bool = False
    """Hide the GPUs. They are also hidden if there are fewer of them than processes."""
    deadline: float = 120.0
    """Seconds without progress, while a process waits, after which the run counts as hanging."""
    resume_with: Annotated[str | None, unset("it is not resumed")] = None
    """Stop it with SIGTERM, start it again with these flags after its own (none: as before), and
    compare."""
    stop_after: int = 0
    """After how many updates to stop it; with --resume-with."""
    records: Annotated[Path | None, unset("a temporary one")] = None
    """A new folder that all nodes share, if the processes run on several nodes."""
    program: tyro.conf.Suppress[Path] = Path()
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        require(self.every >= 1, "--every", self.every, "a number of updates, 1 or more")
        require(self.processes >= 1, "--processes", self.processes, "1 or more")
        require(self.against in (None, 0, 1), "--against", self.against, "0 or 1")
        require(1 <= self.deadline <= 86_400, "--deadline", self.deadline, "1 to 86,400 seconds")
        writable = self.json is None or (self.json.parent.is_dir() and not self.json.is_dir())
        require(writable, "--json", self.json, "a file in a folder that exists")
        self.check_resume()
        if self.against == 1 and is_launched() and FOLDER not in os.environ:
            reason = "--against 1 needs a second run, and a launcher has started one"
            raise UsageError(f"{reason}: leave it out, or start doctor without a launcher")

    def check_resume(self) -> None:
        """Refuse a stop without a resume, and the other way round.

        Raises:
            UsageError: names the flag that is missing, or what is wrong with it.
        """
        if FOLDER in os.environ:
            return
        wanted = "a number of updates, 1 or more, after which to stop"
        require(self.stop_after >= 0, "--stop-after", self.stop_after, wanted)
        if self.resume_with is None and self.stop_after:
            raise UsageError("--stop-after needs --resume-with and the flags of the second start")
        if self.resume_with is not None and not self.stop_after:
            raise UsageError(f"--resume-with needs --stop-after and {wanted}")
        if self.resume_with is not None and is_launched():
            reason = "--resume-with starts the processes itself, several times"
            raise UsageError(f"{reason}: start doctor without a launcher")


def read(words: Sequence[str], prog: str) -> Config:
    """Read the command line, in which the program's own flags follow its name.

    Args:
        words: behind the command's name.
        prog: the command, for help and messages.

    Returns:
        The settings.

    Raises:
        UsageError: they make no sense.
    """
    number = place_of_program(words)
    config = parse(Config, joined(words[:number]), prog=prog)
    if number == len(words):
        raise UsageError("which program? give PROGRAM and its flags after doctor's own")
    program = Path(words[number])
    require(program.is_file(), "PROGRAM", program, "a Python file")
    return replace(config, program=program, flags=tuple(words[number + 1 :]))


def joined(words: Sequence[str]) -> list[str]:
    """Write `--resume-with FLAGS` as one word, because FLAGS begins with a hyphen itself."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--resume-with":
            found[-1] = f"{found[-1]}={word}"
        else:
            found.append(word)
    return found


def place_of_program(words: Sequence[str]) -> int:
    """Return the number of the first word that is neither a flag nor the value of one."""
    switches = {f"--{field.name}" for field in fields(Config) if field.type == "bool"}
    switches |= {"--all", "--cpu", "--help", "-h"}
    number = 0
    while number < len(words) and words[number].startswith("-"):
        takes_value = words[number] not in switches and "=" not in words[number]
        number += 2 if takes_value else 1
    return min(number, len(words))


def main(config: Config) -> NoReturn:
    """Do it, and end with the status that is the answer."""
    if FOLDER in os.environ:
        status = record_only(config, Path(os.environ[FOLDER]))
    elif is_launched():
        status = watch_beside(config)
    else:
        status = start_and_judge(config)
    sys.exit(status)


def record_only(config: Config, folder: Path) -> int:
    """Run the program in this process, which another one has started, and leave its record."""
    recorder = Recorder(folder, config.every, config.stop_after)
    run = Run(recorder, lambda status: status)
    return run.start(config.program, config.flags)


def watch_beside(config: Config) -> int:
    """Run the program in this process, which the user's launcher has started."""
    folder = common_folder(config.records)
    recorder = Recorder(folder, config.every)
    run = Run(recorder, lambda status: status)

    def judge_records(case: Case) -> int:
        return report(config, case)

    world = recorder.record.asked
    is_own = config.records is None
    rank = recorder.record.rank
    if rank == 0:
        first = FirstProcess(folder, world, judge_records, is_own, config.deadline)
        run.finish = first.finish
        run.before_signal = first.conclude_now
    else:
        later = LaterProcess(rank, folder, world, judge_records, is_own)
        run.finish = later.finish
        run.before_signal = later.conclude_if_first_died
    return run.start(config.program, config.flags)


def start_and_judge(config: Config) -> int:
    """Start the processes, and one process beside them, and judge."""
    plan = plan_of(config)
    together = plan.start(config.processes)
    refuse_what_did_not_run(together)
    case = Case(together.records, hang=together.hang)
    has_ended_well = not together.complaint and not together.hang
    if has_ended_well and config.resume_with is not None:
        is_none = config.resume_with == NO_FLAGS
        flags = [] if is_none else shlex.split(config.resume_with)
        resume = run_again(plan, case, flags)
        return report(config, case, judge_resume(case, resume))
    if has_ended_well and config.against != 0 and config.processes > 1:
        run_beside(plan, case)
    return report(config, case)


def plan_of(config: Config) -> Plan:
    """Return what all runs of the program have in common."""
    return Plan(
        program=config.program,
        flags=config.flags,
        every=config.every if config.resume_with is None else 1,
        stop_after=config.stop_after,
        cpu=config.cpu or torch.cuda.device_count() < config.processes,
        deadline=config.deadline,
    )


def run_beside(plan: Plan, case: Case) -> None:
    """Run the program on one process, to compare with it."""
    alone = plan.start(1)
    if not alone.records or alone.complaint:
        print(f"on 1 process it fails, so nothing is compared with that: {alone.complaint}")
        return
    left = case.files_left_to(alone.records)
    if left:
        print(f"{NOT_FRESH.format(file=left)}, so nothing is compared with that")
        return
    case.alone = alone.records[0]


def refuse_what_did_not_run(outcome: Outcome) -> None:
    """Refuse to judge a program that fails everywhere before its first update.

    Raises:
        UserError: with the status that says so.
    """
    records = outcome.records
    if not records:
        raise UserError(f"the program did not begin: {outcome.complaint}", status=COULD_NOT_RUN)
    if outcome.hang or any(record.made for record in records):
        return
    if outcome.complaint:
        errors = {record.error for record in records}
        if len(errors) == 1:
            raise UserError(
                f"the program fails before its first update: {outcome.complaint}",
                status=COULD_NOT_RUN,
            )
        return
    reason = "no optimizer of torch.optim made a step, so there is nothing to judge"
    raise UserError(f"{reason}: give the flags of a short training", status=COULD_NOT_RUN)


def report(config: Config, case: Case, on_resume: Sequence[Finding] = ()) -> int:
    """Print what was found, and write it.

    Args:
        config: the flags.
        case: all records.
        on_resume: what was found beside that when the program was stopped and started again.

    Returns:
        The exit status.
    """
    findings = [*judge(case), *on_resume]
    lines = table(findings, config.all, case.first.made, len(case.examined))
    print(lines, flush=True)
    if config.json:
        write_findings(config.json, findings, case.ranks)
    return FOUND if any(finding.counts for finding in findings) else SOUND
