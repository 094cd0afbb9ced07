"""The command `doctor`: its flags, and what it does under a launcher and without one."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import tyro

from mnist_dist.core import UserError
from mnist_dist.run.command_line import parse
from mnist_dist.tools.doctor.beside import FirstProcess, common_folder
from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding, table, write_findings
from mnist_dist.tools.doctor.judge import judge
from mnist_dist.tools.doctor.launcher import FOLDER, Launch, Outcome, is_launched
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.running import Run
from mnist_dist.usage import UsageError, require, unset

PROCESSES = "{processes}"  # in the program's flags: how many there are, for folders of its runs
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
    """Show what is right, too."""
    json: Path | None = None
    """Write the result for machines to this file, too."""
    every: int = 10
    """Look at weights and gradients in one update of so many, and in the first three."""
    processes: int = 2
    """How many processes to start, if no launcher has."""
    against: Annotated[int | None, unset("1 where it starts the processes")] = None
    """1: run it on one process, too, and compare; 0: do not."""
    cpu: bool = False
    """Hide the GPUs. They are hidden if there are fewer than processes, too."""
    deadline: float = 120.0
    """Seconds in which nothing happens and somebody waits: that is a hang."""
    records: Annotated[Path | None, unset("a temporary one")] = None
    """A new folder that all nodes see, if the processes are on several."""
    program: tyro.conf.Suppress[Path] = Path()
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        require(self.every >= 1, "--every", self.every, "a number of updates, 1 or more")
        require(self.processes >= 1, "--processes", self.processes, "1 or more")
        require(self.against in (None, 0, 1), "--against", self.against, "0 or 1")
        require(1 <= self.deadline <= 86_400, "--deadline", self.deadline, "1 to 86,400 seconds")
        writable = self.json is None or (self.json.parent.is_dir() and not self.json.is_dir())
        require(writable, "--json", self.json, "a file in a folder that exists")
        if self.against == 1 and is_launched() and FOLDER not in os.environ:
            reason = "--against 1 needs a second run, and a launcher has started one"
            raise UsageError(f"{reason}: leave it out, or start doctor without a launcher")


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
    config = parse(Config, words[:number], prog=prog)
    if number == len(words):
        raise UsageError("which program? give PROGRAM and its flags behind doctor's own")
    program = Path(words[number])
    require(program.is_file(), "PROGRAM", program, "a Python file")
    return replace(config, program=program, flags=tuple(words[number + 1 :]))


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
    recorder = Recorder(folder, config.every)
    run = Run(recorder, lambda status: status)
    return run.start(config.program, config.flags)


def watch_beside(config: Config) -> int:
    """Run the program in this process, which the user's launcher has started."""
    folder = common_folder(config.records)
    recorder = Recorder(folder, config.every)
    run = Run(recorder, lambda status: status)
    if recorder.record.rank == 0:
        first = FirstProcess(
            folder,
            recorder.record.asked,
            config.deadline,
            lambda case: report(config, case),
            own_folder=config.records is None,
        )
        run.finish = first.finish
        run.before_signal = first.conclude_now
    return run.start(config.program, config.flags)


def start_and_judge(config: Config) -> int:
    """Start the processes, and one process beside them, and judge."""
    together = start(config, config.processes)
    refuse_what_did_not_run(together)
    case = Case(together.records, hang=together.hang)
    has_ended_well = not together.complaint and not together.hang
    if config.against != 0 and config.processes > 1 and has_ended_well:
        alone = start(config, 1)
        if alone.records and not alone.complaint:
            case.alone = alone.records[0]
        else:
            print(f"on 1 process it fails, so nothing is compared with that: {alone.complaint}")
    return report(config, case)


def start(config: Config, world: int) -> Outcome:
    """Start the program on so many processes, and wait for them."""
    words = ["-m", "mnist_dist", "doctor", "--every", str(config.every)]
    flags = [flag.replace(PROCESSES, str(world)) for flag in config.flags]
    words += [str(config.program), *flags]
    cpu = config.cpu or torch.cuda.device_count() < config.processes
    outcome = Launch(words, world, cpu, config.deadline).run()
    count = "1 process" if world == 1 else f"{world} processes"
    print(f"{count}: {outcome.updates} updates, {outcome.seconds:.1f} s", flush=True)
    return outcome


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


def report(config: Config, case: Case) -> int:
    """Print what was found, and write it.

    Returns:
        The exit status.
    """
    findings: list[Finding] = judge(case)
    print(table(findings, config.all), flush=True)
    if config.json:
        write_findings(config.json, findings, case.ranks)
    return FOUND if any(finding.counts for finding in findings) else SOUND
