"""Logs a run to Weights & Biases (W&B) from a background thread."""

import contextlib
import json
import logging
import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from tqdm import tqdm

from mnist_dist.shell import shell

# All in seconds.
START_WAIT = 5  # for W&B to be imported and connected, before the first update
START_TIMEOUT = 10  # to connect
FINISH_TIMEOUT = 60  # to finish
# For an answer, and at most until the next try: so there are several tries in FINISH_TIMEOUT.
ANSWER_TIMEOUT = 20
RETRY_WAIT = 5
FLUSH_INTERVAL = 2.0  # a killed run loses at most what was logged in this time

# Logs what belongs to the end of a run, given the run of W&B's library and the step to log it at.
AtEnd = Callable[[Any, int], None]


class WandB:
    """A run within W&B.

    A thread of its own calls W&B, so that nothing W&B does, or fails to do, holds up or ends the
    training. Every call is a job for that thread, in order. The first job that fails costs one
    warning, and those after it are dropped.

    A stopped run stays one run with one history. Its id is in config.json. Online, W&B resumes the
    run with that id, and is given what it lacks. Offline, W&B cannot resume a run (wandb #2423,
    #4624), so the new part holds the history from the beginning. Earlier offline parts are removed
    once the run is complete. `wandb sync` appends all rows of a part to those on the server, so use it only for a
    run that exists in that part alone. To upload what an online run lacks, resume it, even if it
    has finished.

    Args:
        accelerator: the processes.
        folder: the run's folder.
        settings: JSON values for W&B to show. `wandb` is the mode, `wandb_project` the project, and
            `wandb_id` the run's name.
        history: the figures from before a stop, in order, each with its `global_step`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        settings: dict[str, Any],
        history: list[dict[str, Any]],
    ) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.settings = settings
        self.failed = False
        self.row: dict[str, Any] = {}  # the figures of the latest update, perhaps not all of them
        self.first = 0  # the first update that W&B does not have
        self.started = threading.Event()
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="wandb-jobs", daemon=True)
        self.thread.start()
        self.jobs.put(self.start)
        for figures in history:
            self.put(figures)
        self.jobs.put(self.started.set)
        # Importing W&B during the first updates would slow both down, so wait for it, but no longer
        # than this, in case the network does not respond.
        self.started.wait(START_WAIT)

    @property
    def how_to_send_the_rest(self) -> str:
        """What a user can do about a run that W&B does not have whole."""
        folder = shell(self.folder)
        return f"to upload the rest, run the same command with --output-dir {folder} --resume"

    # What the training calls.

    def put(self, figures: dict[str, Any]) -> None:
        """Log the figures of an update.

        Args:
            figures: values by name, with the number of the update as `global_step`.
        """
        self.jobs.put(partial(self.log, figures))

    def put_at_end(self, at_end: AtEnd) -> None:
        """Log what belongs to the end of a run.

        Args:
            at_end: called by W&B's thread.
        """
        self.jobs.put(partial(self.log_end, at_end))

    def close(self, failed: bool, to_go_on: bool) -> None:
        """Let the jobs be done and the run end, for at most `FINISH_TIMEOUT` seconds.

        Args:
            failed: whether the training ended by an error, or was stopped.
            to_go_on: whether it was stopped and can be resumed.
        """
        self.jobs.put(partial(self.finish, failed, to_go_on))
        self.jobs.put(None)
        self.thread.join(FINISH_TIMEOUT)
        if self.thread.is_alive():
            self.warn(f"no answer within {FINISH_TIMEOUT} s")
            # The thread waits for W&B's own process, and so would Python at its exit.
            for process in psutil.Process().children():
                if process.name().startswith("wandb-core"):
                    process.kill()
            self.thread.join(FINISH_TIMEOUT)

    # What the thread does.

    def work(self) -> None:
        """Do the jobs until None comes, then close W&B's own process."""
        while True:
            job = self.jobs.get()
            if job is None:
                break
            if self.failed:
                continue
            try:
                job()
            except BaseException as error:  # W&B raises KeyboardInterrupt and SystemExit, too
                self.warn(f"{type(error).__name__}: {first_line(error)}")
        self.close_service()

    def warn(self, reason: str) -> None:
        """Say once what went wrong, and go on without W&B.

        Args:
            reason: what went wrong, in a few words.
        """
        if self.failed:
            return
        self.failed = True
        self.accelerator.trackers.clear()
        warning = f"warning: Weights & Biases failed and is left out from here on ({reason})"
        with contextlib.suppress(OSError):  # if nobody reads it, W&B must be ended all the same
            tqdm.write(f"{warning}: {self.how_to_send_the_rest}", file=sys.stderr)

    def start(self) -> None:
        """Begin the run: online if that is wanted and possible, else offline."""
        self.drop_other_id()
        set_default_variables(self.folder)
        import wandb  # takes a second, for which only a run with W&B waits, in this thread

        # W&B's own log may not reach our standard error.
        logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)
        mode = mode_of(self.settings)
        before = self.parts("run")
        try:
            drop_bad_variables()
            if mode == "auto":
                # Whether a key is configured is in the environment or a file, so the network need
                # not be asked.
                has_key = wandb.login(prompt=False, verify=False)
                mode = "online" if has_key else "offline"
            self.init(mode)
        except Exception as error:
            warning = f"warning: Weights & Biases goes offline for this run ({first_line(error)})"
            tqdm.write(warning, file=sys.stderr)
            self.accelerator.trackers.clear()
            self.close_service()  # otherwise it says that the run is in use
            for part in self.parts("run") - before:  # they are empty: W&B did not get the run
                shutil.rmtree(part)
            self.init("offline")
        run = self.run_of_wandb()
        self.first = run.starting_step  # `run.step` is still 0 here (wandb 0.31)
        for split in ("train", "val", "test"):
            run.define_metric(f"{split}_*", step_metric="epoch")

    def drop_other_id(self) -> None:
        """Remove another run's WANDB_RUN_ID from the environment, with a warning."""
        left = os.environ.pop("WANDB_RUN_ID", None)
        own = self.settings["wandb_id"]
        if left is None or left == own:
            return
        warning = f"warning: WANDB_RUN_ID={left} belongs to another run; this one's id is {own}"
        tqdm.write(f"{warning}: unset it", file=sys.stderr)

    def init(self, mode: str) -> None:
        """Start Accelerate's tracker.

        Args:
            mode: "online", "offline" or "disabled".
        """
        import wandb

        library_settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=START_TIMEOUT,
            x_transaction_log_flush_interval=FLUSH_INTERVAL,
            x_graphql_timeout_seconds=ANSWER_TIMEOUT,
            x_graphql_retry_wait_max_seconds=RETRY_WAIT,
            x_file_stream_timeout_seconds=ANSWER_TIMEOUT,
            x_file_stream_retry_wait_max_seconds=RETRY_WAIT,
            x_file_transfer_retry_wait_max_seconds=RETRY_WAIT,
        )
        options = {
            "dir": str(self.folder),
            "name": self.folder.name,
            "id": self.settings["wandb_id"],
            "mode": mode,
            "resume": "allow" if mode == "online" else None,
            "settings": library_settings,
        }
        self.accelerator.log_with = filter_trackers("wandb")
        self.accelerator.init_trackers(
            self.settings["wandb_project"],
            config=self.settings,
            init_kwargs={"wandb": options},
        )

    def run_of_wandb(self) -> Any:
        """The run as W&B's library has it."""
        return self.accelerator.get_tracker("wandb", unwrap=True)

    def log(self, figures: dict[str, Any]) -> None:
        """Collect the figures of one update into one row, so that W&B has all of them or none.

        Args:
            figures: values by name, with the number of the update as `global_step`.
        """
        if self.row and self.row["global_step"] != figures["global_step"]:
            self.send()
        self.row = self.row | figures

    def send(self) -> None:
        """Give W&B the latest row, unless it has it from before a stop."""
        row = self.row
        self.row = {}
        if row and row["global_step"] >= self.first:
            self.accelerator.log(row, step=row["global_step"])

    def log_end(self, at_end: AtEnd) -> None:
        """Log what belongs to the end of a run.

        Args:
            at_end: as for `put_at_end`.
        """
        # A finished run that is resumed may have the last row, but not what belongs to the end.
        step = max(self.row["global_step"], self.first)
        self.send()
        at_end(self.run_of_wandb(), step)

    def finish(self, failed: bool, to_go_on: bool) -> None:
        """End the run, as finished, failed or preempted, and say where to find it.

        Args:
            failed, to_go_on: as for `close`.
        """
        # After a failure the row may not be complete, and a run that goes on adds nothing to rows
        # that W&B has.
        if not failed:
            self.send()
        run = self.run_of_wandb()
        if to_go_on:
            run.mark_preempting()  # together with a failing status: preempted
        place = Path(run.dir).parent
        url = run.url
        is_offline = run.offline
        run.finish(exit_code=1 if failed else 0)
        if not is_offline:
            problem = upload_error(place)
            if problem:
                self.warn(problem)
                return
        for part in self.parts("offline-run") - {place}:
            shutil.rmtree(part)
        if url:
            tqdm.write(f"Weights & Biases: {url}")
        elif self.parts("run"):
            has = "Weights & Biases has this run offline, and a part of it online"
            tqdm.write(f"{has}; {self.how_to_send_the_rest}")
        elif is_offline:
            command = shell("wandb", "sync", place)
            tqdm.write(f"Weights & Biases has this run offline; send it with:\n{command}")

    def parts(self, kind: str) -> set[Path]:
        """Find the folders of this run's parts.

        Args:
            kind: "run" for those begun online, or "offline-run".

        Returns:
            The folders.
        """
        pattern = f"{kind}-*-{self.settings['wandb_id']}"
        return set((self.folder / "wandb").glob(pattern))

    @staticmethod
    def close_service() -> None:
        """End W&B's own process, even if it is dead: Python's exit would stumble on it."""
        if "wandb" in sys.modules:
            with contextlib.suppress(BaseException):
                sys.modules["wandb"].teardown()


def mode_of(settings: Mapping[str, Any]) -> str:
    """Find the mode that was asked for, by the flag or else by W&B's own environment variable.

    Args:
        settings: those of the run, with the flag's value as `wandb`, or without it.

    Returns:
        "online", "offline", "disabled", "auto", or whatever the variable says.
    """
    mode = settings.get("wandb", "disabled")
    return os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode


def set_default_variables(folder: Path) -> None:
    """Set environment variables of W&B that nobody has set.

    Args:
        folder: the run's folder.
    """
    # No lines of W&B's own between ours, and no question for a key.
    os.environ.setdefault("WANDB_SILENT", "true")
    # Reports of W&B's errors can hang for seconds if there is no network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # By default, artifacts are staged in the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / "wandb"))


def drop_bad_variables() -> None:
    """Remove environment variables that W&B cannot read: with them not even an offline run begins.

    Raises:
        ValueError: names them. What they were to say is not known, so nothing should be sent.
    """
    import wandb

    bad = []
    for name, value in list(os.environ.items()):
        # The key is judged, and not shown, at the login.
        if not name.startswith("WANDB_") or name == "WANDB_API_KEY":
            continue
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except ValueError:
            del os.environ[name]
            bad.append(f"{name}={value!r}")
    if bad:
        raise ValueError(f"it cannot read {', '.join(bad)}")


def upload_error(part: Path) -> str | None:
    """Find what W&B gave up sending, which it says in its own log only.

    Args:
        part: the folder of a part of a run that has ended.

    Returns:
        The first line of the first error. None if there is none, or if the log is written in the
        way of another version of W&B.
    """
    log = part / "logs" / "debug-internal.log"
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            is_error = entry["level"].startswith("ERROR")
            # Errors of W&B API calls are reported by the code that made the call.
            if is_error and not entry["msg"].startswith("api:"):
                return entry["msg"].splitlines()[0]
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    message = str(error) or type(error).__name__
    return message.splitlines()[0]
