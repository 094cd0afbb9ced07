"""The answer of `verify`: a table for people, JSON for programs."""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from mnist_dist.run.files import write_json

VERSION = 2  # of the JSON


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was checked.
        passed: whether it is right; what is slow is right, too.
        detail: what was found.
        advice: what to do if it is not right, or slow.
        slow: it is right, and costs time.
    """

    name: str
    passed: bool
    detail: str
    advice: str
    slow: bool = False

    def __str__(self) -> str:
        """Return what a person reads at a glance."""
        found = f"{self.name:21}  {self.detail}"
        if self.passed and not self.slow:
            return f"PASS  {found}"
        verdict = "WARN" if self.passed else "FAIL"
        return f"{verdict}  {found}\n{'':29}-> {self.advice}"


@dataclass(frozen=True)
class Process:
    """What a process says of itself.

    Attributes:
        rank: its number.
        node: the name of its node.
        device: the kind of its device, such as "cuda".
        gpu: the UUID of its GPU, empty on a CPU.
        gpus: how many it sees.
        backend: what its messages are sent by, such as "nccl", or "none".
        threads: those that PyTorch calculates with.
        versions: those of Python and the packages, in words.
        code: digest of this package's source and the scripts beside it.
        data: name of the data set and digests of its tensors, by part, or why they could not be
            read.
    """

    rank: int
    node: str
    device: str
    gpu: str
    gpus: int
    backend: str
    threads: int
    versions: str
    code: str
    data: str


@dataclass
class Answer:
    """The result; the first process has it.

    Attributes:
        checks: the lines of the table.
        processes: all of them; none if they could not be connected.
        measurements: in seconds, samples per second and bytes per second; none if not everything was
            compared.
        json: where to write it.
        printing: whether this process prints lines as they are made.
        out, errors: where to, also while a training's words are swallowed.
    """

    checks: list[Check] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    measurements: dict[str, float] = field(default_factory=dict)
    json: Path | None = None
    printing: bool = True
    out: TextIO = field(default_factory=lambda: sys.stdout)
    errors: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that did not pass."""
        return [check.name for check in self.checks if not check.passed]

    def add(self, *checks: Check, cause: str = "") -> None:
        """Add lines, and print them.

        Args:
            *checks: the lines.
            cause: the line that says why others fail; empty for the first that does. The advice of
                the others is to look at that one.
        """
        for check in checks:
            first = cause or [*self.failed, check.name][0]
            if not check.passed and check.name != first:
                check = replace(check, advice=f"because of {first}: put that right first")
            self.checks.append(check)
            self.say(str(check))

    def say(self, text: str) -> None:
        """Print a text at once."""
        if self.printing:
            print(text, file=self.out, flush=True)

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads."""
        return {
            "version": VERSION,
            "passed": not self.failed,
            "checks": [asdict(check) for check in self.checks],
            "processes": [asdict(process) for process in self.processes],
            "measurements": self.measurements,
        }

    def end(self) -> None:
        """Print and write what follows the lines.

        Raises:
            OSError: the JSON cannot be written.
        """
        if self.failed and not self.measurements:
            rest = "what else there is to check needs these to be right first, and was not made"
            self.say(f"\n{rest}")
        if self.printing and self.json:
            write_json(self.json, self.as_json())
