"""The flags of `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.command_line import parse
from mnist_dist.task.settings import DataConfig
from mnist_dist.usage import UsageError, require

A_DAY = 86_400  # seconds


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Answer in under a minute whether this set-up trains right.

    Start it as you start the training. Words after `--` are flags of train.py: then it is this
    training that is checked, in float64 and shortened.
    """

    training: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """After --: flags of the training to come, or of --program."""
    processes: int = 0
    """How many processes are meant; 0: as many as there are, and 2 for --program."""
    cpu: bool = False
    """Force the CPU."""
    output_dir: Path = Path("runs")
    """Where runs go; what is written there must be seen by all nodes, and is removed again."""
    json: Path | None = None
    """Also write the result as JSON to this file."""
    deadline: float = 120.0
    """Seconds that each part may take."""
    program: Path | None = None
    """Any training program: run it on one process and on several, and compare what it leaves
    (docs/verify.md)."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(
            self.processes >= 0,
            "--processes",
            self.processes,
            "a number of processes, or 0",
        )
        if self.json is not None:
            is_writable = self.json.parent.is_dir() and not self.json.is_dir()
            require(is_writable, "--json", self.json, "a file in a folder that exists")
        require(
            1 <= self.deadline <= A_DAY,
            "--deadline",
            self.deadline,
            "a number of seconds from 1 to 86,400",
        )
        if self.program:
            require(self.program.is_file(), "--program", self.program, "a Python file")
            require(
                self.processes != 1,
                "--processes",
                self.processes,
                "2 or more, to compare with 1",
            )
        else:
            self.asked()

    def asked(self) -> TrainConfig | None:
        """Return the training to come; None if no flags say what it is."""
        if not self.training:
            return None
        about_data = ["--dataset", self.dataset, "--data-dir", str(self.data_dir)]
        asked: TrainConfig = parse(TrainConfig, [*about_data, *self.training], "verify ... --")
        if asked.teacher:
            problem = "verify does not know teachers, and so cannot check --teacher"
            raise UsageError(f"{problem}: leave it out")
        return asked
