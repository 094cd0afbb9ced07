"""The command `report`: a page for a run, or one that compares several."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mnist_dist.core import UserError, all_or_none, announce
from mnist_dist.core.files import make_folder
from mnist_dist.digits.finished import newest_run
from mnist_dist.records.columns import Row
from mnist_dist.records.files import read, why_not_there, why_unreadable
from mnist_dist.report import comparison, run_page
from mnist_dist.report.curves import history_of
from mnist_dist.report.evaluated import evaluate
from mnist_dist.run import launch
from mnist_dist.run.folder import CONFIG, REPORT
from mnist_dist.run.printing import printable
from mnist_dist.shell import shell
from mnist_dist.task.settings import DataConfig
from mnist_dist.tools.runs import read_all
from mnist_dist.usage import require, unset

RunsData = Annotated[Path | None, unset("the run's if the data set is there, else data")]
Place = Annotated[
    Path | None, unset("report.html in the run's folder, or in the folder of the runs")
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a page that shows a run, or compares several: one HTML file that needs nothing else."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Runs' folders, or folders of runs; default: the newest finished run in runs/."""
    data_dir: RunsData = None
    """Folder with MNIST/raw/... in it, for the page of one run."""
    output: Place = None
    """The .html file."""
    cpu: bool = False
    """Force the CPU."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        if self.output:
            require(self.output.suffix == ".html", "--output", self.output, "an .html file")
        if self.data_dir is not None:
            DataConfig(data_dir=self.data_dir).check()


def main(config: Config) -> None:
    """Write the page, and say where it is.

    Args:
        config: the flags.

    Raises:
        UserError: a run is not there, damaged or not finished, or its data cannot be read.
    """
    folders = config.runs or (newest_run("name its folder"),)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(why_not_there(folder))
    if len(folders) == 1 and (folders[0] / CONFIG).exists():
        path = report_run(config, folders[0])
    else:
        path = report_several(config, folders)
    announce(f"report: {shell(path)}")


def report_run(config: Config, folder: Path) -> Path:
    """Write the page of one run.

    Args:
        config: the flags.
        folder: the run's folder.

    Returns:
        The page.

    Raises:
        UserError: the run is damaged or not finished, or its data cannot be read.
    """
    try:
        row, _ = read(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"the run in {printable(folder)} cannot be read: {why_unreadable(error)}; restore the file, "
            "or name another run"
        ) from error
    run_page.refuse_unfinished(folder, row)
    path = config.output or folder / REPORT
    accelerator = launch.start(config.cpu, mixed_precision="no")
    test, samples = evaluate(accelerator, folder, config.data_dir)
    with all_or_none():
        if accelerator.is_main_process:
            make_folder(path.parent)
            run_page.write(path, folder, test, samples, history_of(folder))
    return path


def report_several(config: Config, folders: Sequence[Path]) -> Path:
    """Write the page that compares several runs; a warning names each that cannot be read.

    Args:
        config: the flags.
        folders: runs' folders, or folders of runs.

    Returns:
        The page.

    Raises:
        UserError: there is no run.
    """
    rows, epochs = read_all(folders)
    path = config.output or folder_of(rows) / REPORT
    make_folder(path.parent)
    comparison.write(path, rows, epochs)
    return path


def folder_of(rows: Sequence[Row]) -> Path:
    """Find the innermost folder that all runs are in.

    Args:
        rows: the runs.

    Returns:
        The folder, relative to the current one if it is in there.

    Raises:
        UserError: it is the root of the file system, where no page belongs.
    """
    place = Path(os.path.commonpath([Path(row["run"]).parent.resolve() for row in rows]))
    if place == Path(place.anchor):
        raise UserError("the runs have no folder in common: name the page by --output FILE.html")
    here = Path.cwd()
    return place.relative_to(here) if place.is_relative_to(here) else place
