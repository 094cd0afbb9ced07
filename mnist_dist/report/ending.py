"""The page that a training writes when it is over."""

from mnist_dist.core.output import warn
from mnist_dist.run.folder import REPORT
from mnist_dist.run.tracking import Tracker
from mnist_dist.task.data import DataSplits
from mnist_dist.task.evaluation import Evaluation


def at_end(tracker: Tracker, test: Evaluation, samples: DataSplits, train_seconds: float) -> None:
    """Write the run's page, on the main process. If that fails it costs one warning, and no more.

    Args:
        tracker: the record of the run, whose weights are written already.
        test: what the trained model says of the test samples.
        samples: the data.
        train_seconds: how long the training took.
    """
    if not tracker.accelerator.is_main_process:
        return
    path = tracker.folder / REPORT
    try:
        # A page from before a stop is not this run's any more, even if no new one can be written.
        path.unlink(missing_ok=True)
        # Imported here, for only the main process needs it.
        from mnist_dist.report.run_page import write

        write(path, tracker.folder, test, samples, tracker.history, train_seconds)
    except Exception as error:  # a page is never worth a training that is complete
        reason = str(error).strip() or type(error).__name__
        first_line, *_ = reason.splitlines()
        warn(f"the run's report could not be written ({first_line}): all else is as it would be")
