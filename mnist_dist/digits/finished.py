"""Finished runs: the newest one, and what can be done with one."""

from pathlib import Path

from mnist_dist.core.errors import UserError
from mnist_dist.run.folder import PLOTS, REPORT, ROOT, SUMMARY
from mnist_dist.scripts import command
from mnist_dist.shell import shell


def newest_run(otherwise: str = "name it with --weights") -> Path:
    """Find the finished run in runs/ that ended last.

    Args:
        otherwise: what a user can do who has a run elsewhere.

    Returns:
        Its folder.

    Raises:
        UserError: there is none.
    """
    summaries = sorted(ROOT.glob(f"*/{SUMMARY}"), key=lambda file: file.stat().st_mtime)
    if not summaries:
        problem = f"there is no finished run in {ROOT}/"
        train = shell(*command("train"))
        raise UserError(f"{problem}: train one with `{train}`, or {otherwise}")
    return summaries[-1].parent


def next_steps(folder: Path) -> str:
    """Say what can be done with a finished run.

    Args:
        folder: the run's folder.

    Returns:
        Lines with commands that can be pasted into a shell.
    """
    predict = ["python", "-m", "mnist_dist", "predict"]
    if folder.parent != ROOT:  # without --weights, predict takes the newest run in there
        predict += ["--weights", str(folder)]
    lines = [
        f"evaluate: {shell(*command('evaluate'), folder)}",
        f"predict:  {shell(*predict)} IMAGE...",
    ]
    for name, path in (("plots", folder / PLOTS), ("report", folder / REPORT)):
        if path.exists():  # the run may have been told to make none
            lines.append(f"{f'{name}:':<9} {shell(path)}")
    return "\n".join(lines)
