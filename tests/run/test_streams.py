"""A terminal that is closed asks a training to stop, or, under nohup, only ends what it prints."""

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, REPOSITORY, call, clean_environment

from mnist_dist.core.output import say, warn
from mnist_dist.core.stopping import StopRequest, signals_heard
from mnist_dist.run import leaving, progress, streams
from mnist_dist.run.streams import LastingStream, prepare_streams

FLAGS = "--dataset mnist-5k --cpu --wandb disabled --no-plots --output-dir".split()


class Broken(io.StringIO):
    """A stream to which nothing can be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, _: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        self.write("")


@pytest.fixture
def answers():
    """The program's answers to signals, as they were before."""
    handlers = {number: signal.getsignal(number) for number in (*signals_heard(), signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("answers")
def test_a_hangup_is_a_request_to_stop():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    request = StopRequest()
    assert not request.agreed()
    os.kill(os.getpid(), signal.SIGHUP)
    assert request.agreed() and request.received == "SIGHUP"


@pytest.mark.usefixtures("answers")
def test_under_nohup_it_is_none():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not request.agreed() and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC, errno.ESTALE])
def test_what_cannot_be_printed_is_no_reason_to_stop(number, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken(number))
    warn("nobody reads this")
    monkeypatch.setattr(sys, "stdout", Broken(number))
    if number == errno.EPIPE:  # of a pipe to `head`
        with pytest.raises(BrokenPipeError):
            say("nobody reads this")
    else:
        say("nobody reads this")
    prepare_streams()
    print("nor this", file=sys.stderr, flush=True)
    if number == errno.EIO:
        print("nor this", flush=True)
    else:  # it may be the answer that a program was called for
        with pytest.raises(OSError, match=os.strerror(number)):
            print("nor this", flush=True)


class Loader(list):
    """A loader of micro-batches that are updates."""

    first_batch = 0


class Accelerator:
    """What the bar asks of an accelerator."""

    is_main_process = True
    sync_gradients = True


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_a_progress_bar_that_cannot_be_shown_ends_no_epoch(number, monkeypatch):
    stream = Broken(number)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    accelerator: Any = Accelerator()
    loader: Any = Loader(range(3))
    assert list(progress.progress_bar(accelerator, loader, "epoch")) == [0, 1, 2]


def test_output_that_is_lost_at_the_end_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", LastingStream(Broken(errno.ENOSPC), loses_all=False))
    assert leaving.status_of_output() == 1
    assert (
        capsys.readouterr().err == "error: the end of the output is lost: No space left on device\n"
    )
    monkeypatch.setattr(sys, "stdout", LastingStream(Broken(errno.EIO), loses_all=False))
    assert leaving.status_of_output() == 0


def test_streams_are_prepared_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    prepare_streams()
    first = sys.stdout
    prepare_streams()
    assert sys.stdout is first
    assert streams.lasting_error() is sys.stderr


def wait_for_checkpoint(run: Path, process: subprocess.Popen) -> None:
    """Wait until a training has begun."""
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.02)


def begin(*words: str | Path, ignored: bool = False, **streams_of: Any) -> subprocess.Popen:
    """Begin a training, as a shell does, or with SIGHUP ignored, as nohup does."""
    answer = signal.SIG_IGN if ignored else signal.SIG_DFL
    return subprocess.Popen(
        [PYTHON, "train.py", *FLAGS, *words],
        cwd=REPOSITORY,
        env=clean_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, answer),
        **streams_of,
    )


def test_a_training_whose_terminal_is_closed_leaves_with_a_checkpoint(tmp_path):
    running = begin(
        tmp_path / "run", "--epochs", "100000", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for_checkpoint(tmp_path / "run", running)
    running.send_signal(signal.SIGHUP)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors
    assert errors.decode().startswith("train.py: stopped on request at update ")


@pytest.mark.slow
def test_under_nohup_it_ends_well_though_its_terminal_is_closed(tmp_path):
    terminal, end = pty.openpty()
    running = begin(tmp_path / "run", "--epochs", "60", ignored=True, stdout=end, stderr=end)
    os.close(end)
    try:
        wait_for_checkpoint(tmp_path / "run", running)
    finally:
        os.close(terminal)
    running.send_signal(signal.SIGHUP)
    assert running.wait(timeout=120) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_of_a_lost_process_a_program_says_how_it_itself_goes_on():
    words = leaving.again_in_words("run the same command")
    assert words == "to resume from the last checkpoint, run the same command"
    assert leaving.again_in_words(leaving.RESUME).endswith("with --output-dir FOLDER --resume")
    code = (
        "from mnist_dist.run import launch\n"
        "def main():\n"
        "    raise RuntimeError('gloo: Connection closed by peer')\n"
        "launch.run(main, 'own.py', again='run the same command')\n"
    )
    done = call(PYTHON, "-c", code)
    assert done.returncode == 1 and "--resume" not in done.stderr
    assert "own.py: error: process 0 lost the connection to another" in done.stderr
    assert done.stderr.endswith("last checkpoint, run the same command\n")
