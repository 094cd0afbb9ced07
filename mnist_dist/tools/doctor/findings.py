"""What was found: lines for people, JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mnist_dist.run.files import write_json
from mnist_dist.tools.doctor.records import Record

VERSION = 1  # of the JSON
WIDTH = 14  # of the column with the subjects

Level = Literal["FAIL", "WARN", "NOTE", "PASS"]


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        level: FAIL: the training is another one than was meant. WARN: it may be, or it costs time.
            NOTE: by intent, but good to know. PASS: nothing was found.
        subject: what it is about, in a word or two.
        evidence: what was seen, with figures.
        advice: what to do.
        place: the line of the user's program, as FILE:LINE.
    """

    level: Level
    subject: str
    evidence: str
    advice: str = ""
    place: str = ""

    @property
    def counts(self) -> bool:
        """Whether something is to be put right."""
        return self.level in ("FAIL", "WARN")

    def __str__(self) -> str:
        """Return what a person reads."""
        where = f"{self.place}: " if self.place else ""
        lines = [f"{self.level}  {self.subject:{WIDTH}}  {where}{self.evidence}"]
        if self.advice:
            lines.append(f"{'':{WIDTH + 8}}-> {self.advice}")
        return "\n".join(lines)


def table(findings: Sequence[Finding], show_all: bool, made: int, examined: int) -> str:
    """Return all lines.

    Args:
        findings: in the order in which they are to be read.
        show_all: whether to show what was right, too.
        made: how many updates the training made.
        examined: of how many of them weights and gradients were compared.
    """
    shown = [finding for finding in findings if show_all or finding.level != "PASS"]
    lines = [str(finding) for finding in shown]
    number = sum(finding.counts for finding in findings)
    if number == 0:
        lines.append(
            f"nothing wrong was found in {made} updates, of which {examined} were examined"
        )
    else:
        lines.append("1 finding" if number == 1 else f"{number} findings")
    return "\n".join(lines)


def write_findings(path: Path, findings: Sequence[Finding], ranks: Sequence[Record]) -> None:
    """Write the JSON.

    Args:
        path: of the file.
        findings: all of them.
        ranks: the records of the processes.

    Raises:
        OSError: it cannot be written.
    """
    processes = []
    for record in ranks:
        figures = {"rank": record.rank, "updates": record.made, "seconds": record.seconds}
        processes.append(figures | {"node": record.node, "device": record.device})
    value = {
        "version": VERSION,
        "sound": not any(finding.counts for finding in findings),
        "findings": [asdict(finding) for finding in findings],
        "processes": processes,
    }
    write_json(path, value)
