"""A process that waits in vain says where, and where the others are."""

import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import PYTHON, REPOSITORY, clean_environment

from mnist_dist.core.agreement import all_or_none
from mnist_dist.core.whereabouts import place_of

SCRIPT = Path(__file__).with_name("waits_alone.py")


def line_of(text: str) -> int:
    """The number of the line of the script that holds a text."""
    (number,) = (n for n, line in enumerate(SCRIPT.read_text().splitlines(), 1) if text in line)
    return number


def start(what: str, folder) -> subprocess.Popen:
    launch = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*launch, SCRIPT, what, folder],
        cwd=REPOSITORY,
        env=clean_environment(PYTHONPATH=str(REPOSITORY)),
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("saves", f"process 1 waits in ExactAccelerator.save_state at {SCRIPT.name}:{{alone}}"),
        ("leaves the loop", f"process 1 is in does_something_else at {SCRIPT.name}:{{elsewhere}}"),
        ("ends", "process 1 has finished, and left"),
    ],
)
def test_what_one_process_does_alone_is_named_where_the_others_wait(what, other, tmp_path):
    places = {"alone": line_of("# alone"), "elsewhere": line_of("# elsewhere")}
    running = start(what, tmp_path)
    too_long = threading.Timer(90, running.send_signal, [signal.SIGTERM])
    too_long.start()
    assert running.stderr
    lines = iter(running.stderr.readline, "")
    # On a busy machine there may be others before it, of a process that is slow to start.
    warning = next((line for line in lines if other.format(**places) in line), "")
    too_long.cancel()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert warning.startswith("warning: process 0 has waited ")
    if what != "ends":
        here = f"in ExactAccelerator.backward at {SCRIPT.name}:{line_of('# the others')} (update 4)"
        assert here in warning


@pytest.mark.slow
def test_who_only_takes_long_is_not_named(tmp_path):
    running = start("all are slow", tmp_path)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0 and "has waited" not in errors


def test_a_place_is_the_users_line_and_what_it_calls():
    begun, release = threading.Event(), threading.Event()

    def users_code() -> None:
        begun.set()
        release.wait()

    def in_a_block() -> None:
        with all_or_none():
            users_code()

    thread = threading.Thread(target=in_a_block)
    thread.start()
    begun.wait()
    time.sleep(0.01)
    assert thread.ident is not None
    one, two = place_of(thread.ident), place_of(thread.ident)
    release.set()
    thread.join()
    line = users_code.__code__.co_firstlineno + 2
    assert (
        one is not None
        and one == two
        and one.where == f"test_waiting.py:{line}"
        and one.call == "Event.wait"
    )
    assert not one.waits
    assert place_of(thread.ident) is None
