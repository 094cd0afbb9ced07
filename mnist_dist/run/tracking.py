"""Where a run's figures go: metrics.jsonl, the record, and through Accelerate to Weights & Biases, the view."""

import contextlib
import json
import logging
import math
import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from tqdm import tqdm

from mnist_dist.core.processes import Stopped, all_or_none
from mnist_dist.run.files import append_json, write_json, write_json_lines
from mnist_dist.run.folder import CONFIG, ENDED, METRICS, SUMMARY, WEIGHTS, Run
from mnist_dist.shell import shell
from mnist_dist.task.data import DataSet
from mnist_dist.task.evaluation import Evaluation

MISTAKES = 50  # most confident mistakes in the table
START_WAIT, START_TIMEOUT, FINISH_TIMEOUT = 5, 10, 60  # seconds: before the first update, to connect, to finish
ANSWER_TIMEOUT, RETRY_WAIT = 20, 5  # seconds for an answer, and at most to the next try: several, in FINISH_TIMEOUT


class Tracker:
    """Records a run. Every process holds one and calls it alike; only the main process writes.

    It is a context manager: entered when it is known whether the run goes on, and left when it ends, however it ends.
    It is also a part of the run's checkpoints: its history survives a stop.

    Args:
        accelerator: the processes.
        run: where it is, and what it is known by.
        settings: JSON values, written to config.json and W&B; `wandb`, `wandb_project` and `wandb_model` say what W&B
            is to do, which without `wandb` is nothing.

    Attributes:
        history: all figures so far, in order: points of the curves and epochs, each with its `global_step`.
    """

    def __init__(self, accelerator: Accelerator, run: Run, settings: dict[str, Any]) -> None:
        self.accelerator, self.folder = accelerator, run.folder
        self.settings = settings | {"wandb_id": run.wandb_id, "job": run.job}
        self.history: list[dict[str, Any]] = []
        self.wandb: WandB | None = None

    def state_dict(self) -> dict[str, Any]:
        """The history, for a checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        self.history = state["history"]

    def __enter__(self) -> "Tracker":
        with all_or_none():
            if self.accelerator.is_main_process:
                (self.folder / ENDED).unlink(missing_ok=True)
                write_json(self.folder / CONFIG, self.settings)
                # A run that was killed may have written more than its last checkpoint holds: that is done again.
                write_json_lines(self.folder / METRICS, self.lines)
                if len(self.lines) < self.settings.get("epochs", math.inf):  # a finished run that goes on is none
                    (self.folder / SUMMARY).unlink(missing_ok=True)
        if self.accelerator.is_main_process and self.settings.get("wandb", "disabled") != "disabled":
            self.wandb = WandB(self.accelerator, self.folder, self.settings, self.history)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error and self.accelerator.is_main_process:
            state = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            with contextlib.suppress(OSError):  # a full disk is what has ended it
                write_json(self.folder / ENDED, {"state": state, "reason": first_line(error)})
        if self.wandb and kind is not KeyboardInterrupt:  # who presses Ctrl-C twice does not want to wait for W&B
            self.wandb.close(failed=kind is not None, to_go_on=kind is Stopped)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl: the epochs."""
        return [figures for figures in self.history if "epoch" in figures]

    def curve(self, point: dict[str, Any]) -> None:
        """Add a point to the curves over updates."""
        self.history.append(point)
        if self.wandb:
            self.wandb.put(point)

    def epoch(self, line: dict[str, Any]) -> None:
        """Add an epoch's figures.

        Raises:
            UserError: on every process, if metrics.jsonl could not be written.
        """
        self.history.append(line)
        with all_or_none():
            if self.accelerator.is_main_process:
                append_json(self.folder / METRICS, line)
        if self.wandb:
            self.wandb.put(line)

    def end(self, test: Evaluation, samples: DataSet) -> None:
        """Add what belongs to the end to W&B: confusion matrix, mistakes and, if asked for, the model."""
        if self.wandb:
            self.wandb.jobs.put(partial(self.wandb.log_end, test, samples))


class WandB:
    """W&B in a thread of its own, so that nothing it does, or fails to do, holds up or ends the training.

    Every call is a job for that thread, in order. The first that fails costs one warning; those after it are dropped.

    A stopped run stays one run with one history. Its id is in config.json. Online, W&B goes on with that id, and is
    given what it lacks. Offline W&B cannot go on (wandb #2423, #4624), so the new part holds the history from the
    beginning. Offline parts from before are removed once the run is complete. `wandb sync` adds all rows of a part to
    those that the server has, so it is for a run that is nowhere but in that part; what an online run lacks is sent by
    going on with it, even if it is finished.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, settings: dict[str, Any], history: list[dict[str, Any]]
    ) -> None:
        self.accelerator, self.folder, self.settings = accelerator, folder, settings
        self.failed = False
        place = shell(folder)
        self.rest = f"to send what it lacks run the same command with --output-dir {place} --resume"
        self.row: dict[str, Any] = {}  # the figures of the latest update, which may not be complete
        self.first = 0  # the first update that W&B has not got
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="wandb-jobs", daemon=True)
        self.thread.start()
        self.jobs.put(self.start)
        for figures in history:
            self.put(figures)
        self.started = threading.Event()
        self.jobs.put(self.started.set)
        # Importing W&B beside the first updates would slow both down; a network that does not answer is not waited for.
        self.started.wait(START_WAIT)

    def work(self) -> None:
        """Do the jobs until None comes, then close W&B's service."""
        while job := self.jobs.get():
            if not self.failed:
                try:
                    job()
                except BaseException as error:  # W&B raises KeyboardInterrupt and SystemExit, too
                    self.warn(f"{type(error).__name__}: {first_line(error)}")
        self.close_service()

    def warn(self, reason: str) -> None:
        """Say once what went wrong, and go on without W&B."""
        if not self.failed:
            self.failed = True
            self.accelerator.trackers.clear()
            warning = f"warning: Weights & Biases failed and is left out from here on ({reason}): {self.rest}"
            with contextlib.suppress(OSError):  # if nobody reads it, W&B has to be ended all the same
                tqdm.write(warning, file=sys.stderr)

    def start(self) -> None:
        """Begin the run: online if that is wanted and possible, else offline."""
        os.environ.setdefault("WANDB_SILENT", "true")  # no lines of its own between ours, no question for a key
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it can hang for seconds if there is no network
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder.resolve() / "wandb"))  # not the home folder
        import wandb  # a second that only a run with W&B pays for, and in this thread

        logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)  # its own log may not reach our standard error
        mode = self.settings["wandb"]
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")
        before = self.parts("run")
        try:
            drop_bad_variables()
            if mode == "auto":  # whether a key is configured, in the environment or a file, without asking the network
                mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
            self.init(mode)
        except Exception as error:
            tqdm.write(f"warning: Weights & Biases goes offline for this run ({first_line(error)})", file=sys.stderr)
            self.accelerator.trackers.clear()
            self.close_service()  # else it says that the run is in use
            for part in self.parts("run") - before:  # empty: W&B knows nothing of it
                shutil.rmtree(part)
            self.init("offline")
        run = self.accelerator.get_tracker("wandb", unwrap=True)
        self.first = run.starting_step  # `run.step` is still 0 here (wandb 0.31)
        for split in ("train", "val", "test"):
            run.define_metric(f"{split}_*", step_metric="epoch")

    def init(self, mode: str) -> None:
        """Start Accelerate's tracker in one mode: "online", "offline" or "disabled"."""
        import wandb

        self.accelerator.log_with = filter_trackers("wandb")
        options = {
            "dir": str(self.folder),
            "name": self.folder.name,
            "id": self.settings["wandb_id"],
            "mode": mode,
            "resume": "allow" if mode == "online" else None,
            "settings": wandb.Settings(
                silent=True,
                console="off",
                init_timeout=START_TIMEOUT,
                x_transaction_log_flush_interval=2.0,  # seconds; a run that is killed keeps all but these
                x_graphql_timeout_seconds=ANSWER_TIMEOUT,
                x_graphql_retry_wait_max_seconds=RETRY_WAIT,
                x_file_stream_timeout_seconds=ANSWER_TIMEOUT,
                x_file_stream_retry_wait_max_seconds=RETRY_WAIT,
                x_file_transfer_retry_wait_max_seconds=RETRY_WAIT,
            ),
        }
        self.accelerator.init_trackers(
            self.settings["wandb_project"], config=self.settings, init_kwargs={"wandb": options}
        )

    def put(self, figures: dict[str, Any]) -> None:
        """Log the figures of an update, with its number as `global_step`."""
        self.jobs.put(partial(self.log, figures))

    def log(self, figures: dict[str, Any]) -> None:
        """Collect the figures of one update into one row, so that none of them can be there without the others."""
        if self.row and self.row["global_step"] != figures["global_step"]:
            self.send()
        self.row = self.row | figures

    def send(self) -> None:
        """Give W&B the latest row, unless it has it from before a stop."""
        row, self.row = self.row, {}
        if row and row["global_step"] >= self.first:
            self.accelerator.log(row, step=row["global_step"])

    def close(self, failed: bool, to_go_on: bool) -> None:
        """Let the jobs be done and the run end, for at most `FINISH_TIMEOUT` seconds."""
        self.jobs.put(partial(self.finish, failed, to_go_on))
        self.jobs.put(None)
        self.thread.join(FINISH_TIMEOUT)
        if self.thread.is_alive():
            self.warn(f"no answer within {FINISH_TIMEOUT} s")
            for process in psutil.Process().children():  # the jobs wait for it, and so would Python at its exit
                if process.name().startswith("wandb-core"):
                    process.kill()
            self.thread.join(FINISH_TIMEOUT)

    def finish(self, failed: bool, to_go_on: bool) -> None:
        """End the run, as finished, failed or preempted, and say where to find it."""
        if not failed:  # else the row may not be complete, and one that goes on adds nothing to rows that W&B has
            self.send()
        run = self.accelerator.get_tracker("wandb", unwrap=True)
        if to_go_on:
            run.mark_preempting()  # with a failure behind it: preempted
        place, url, offline = Path(run.dir).parent, run.url, run.offline
        run.finish(exit_code=int(failed))
        if not offline and (error := upload_error(place)):
            self.warn(error)
            return
        for part in self.parts("offline-run") - {place}:
            shutil.rmtree(part)
        if url:
            tqdm.write(f"Weights & Biases: {url}")
        elif self.parts("run"):
            tqdm.write(f"Weights & Biases has this run offline, and a part of it online; {self.rest}")
        elif offline:
            tqdm.write(f"Weights & Biases has this run offline; send it with:\n{shell('wandb', 'sync', place)}")

    def parts(self, kind: str) -> set[Path]:
        """The folders of this run's parts: "run", those begun online, or "offline-run"."""
        return set((self.folder / "wandb").glob(f"{kind}-*-{self.settings['wandb_id']}"))

    def log_end(self, test: Evaluation, samples: DataSet) -> None:
        """Log the confusion matrix, the table of mistakes and, if asked for, the model."""
        import wandb

        step = max(self.row["global_step"], self.first)  # a finished run goes on: it may have the row, but not these
        self.send()
        run = self.accelerator.get_tracker("wandb", unwrap=True)
        names, predictions = list(samples.classes), test.predictions.tolist()
        confusion = wandb.plot.confusion_matrix(
            y_true=test.labels.tolist(), preds=predictions, class_names=names, title="Test confusion matrix"
        )
        worst = test.mistakes()[:MISTAKES]
        sure = test.probabilities.max(dim=1).values
        pixels = samples.pixels(samples.test.images[worst.to(samples.test.images.device), 0]).cpu().numpy()
        rows = [
            [
                number,
                wandb.Image(image, mode="L"),
                names[test.labels[number]],
                names[predictions[number]],
                float(sure[number]),
            ]
            for number, image in zip(worst.tolist(), (255 * pixels).astype("uint8"), strict=True)
        ]
        columns: list[str | int] = ["sample", "image", "class", "predicted", "confidence"]
        run.log({"confusion_matrix": confusion, "mistakes": wandb.Table(columns=columns, data=rows)}, step=step)
        if self.settings["wandb_model"]:
            artifact = wandb.Artifact(f"{self.settings['dataset']}-{self.settings['model']}", type="model")
            artifact.add_file(str(self.folder / WEIGHTS))
            run.log_artifact(artifact)

    @staticmethod
    def close_service() -> None:
        """End W&B's own process, even if it is dead already, so that Python's exit finds nothing left to trip over."""
        if "wandb" in sys.modules:
            with contextlib.suppress(BaseException):
                sys.modules["wandb"].teardown()


def drop_bad_variables() -> None:
    """Remove the environment variables that W&B cannot read: with them not even an offline run would begin.

    Raises:
        ValueError: names them. What they were to say is not known, so nothing should be sent.
    """
    import wandb

    bad = []
    for name, value in list(os.environ.items()):
        try:
            if name.startswith("WANDB_") and name != "WANDB_API_KEY":  # that one is judged, and not shown, at the login
                wandb.Settings().update_from_env_vars({name: value})
        except ValueError:
            bad.append(f"{name}={os.environ.pop(name)!r}")
    if bad:
        raise ValueError(f"it cannot read {', '.join(bad)}")


def upload_error(part: Path) -> str | None:
    """What W&B's own log says of something that it gave up sending, for it raises and returns nothing.

    Args:
        part: the folder of a part of a run that has ended.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):  # a log of another version of W&B says nothing
        for line in (part / "logs" / "debug-internal.log").read_text().splitlines():
            entry = json.loads(line)
            if entry["level"].startswith("ERROR") and not entry["msg"].startswith("api:"):  # who asked says what failed
                return entry["msg"].splitlines()[0]
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
