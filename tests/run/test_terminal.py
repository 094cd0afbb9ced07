"""A run on a terminal of 80 columns, as a new user sees it, and commands to paste there."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from conftest import PYTHON, REPOSITORY, clean_environment

from mnist_dist.digits.finished import next_steps
from mnist_dist.shell import shell


def on_a_terminal(*command, cwd) -> tuple[int, str]:
    """Run a command on a pseudo terminal of 80 columns; its status and all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = clean_environment(PYTHONPATH=str(REPOSITORY), TERM="xterm-256color")
    del environment["COLUMNS"]
    running = subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # the last process has closed it
            break
    os.close(ours)
    return running.wait(60), written.decode()


def test_a_command_is_quoted_for_the_shell_of_the_system(monkeypatch):
    words = "python", "evaluate.py", "runs/a b", r"runs\c"
    for platform, expected in (
        ("linux", r"python evaluate.py 'runs/a b' 'runs\c'"),
        ("win32", r'python evaluate.py "runs/a b" runs\c'),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert shell(*words) == expected


def test_at_the_end_only_what_there_is_is_named(tmp_path):
    bare = next_steps(tmp_path).splitlines()
    assert [line.split(":")[0] for line in bare] == ["evaluate", "predict"]
    (tmp_path / "plots").mkdir()
    (tmp_path / "report.html").touch()
    assert next_steps(tmp_path).splitlines() == [
        *bare,
        f"plots:    {tmp_path}/plots",
        f"report:   {tmp_path}/report.html",
    ]


@pytest.mark.slow
def test_nothing_wraps_in_a_normal_run_on_two_processes(tmp_path):
    launch = (
        PYTHON,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        REPOSITORY / "train.py",
    )
    flags = "--dataset mnist-5k --cpu --wandb disabled --epochs 2 --val-size 500".split()
    status, screen = on_a_terminal(*launch, *flags, cwd=tmp_path)
    assert status == 0, screen
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", screen)]
    assert [line for line in lines if len(line) > 80] == []
    assert any(line.startswith("epoch 2/2: ") for line in lines)  # the bar
    (folder,) = (tmp_path / "runs").iterdir()
    *_, evaluate, predict, pictures, report, accuracy = filter(None, lines)
    assert evaluate == f"evaluate: python evaluate.py runs/{folder.name}"
    assert predict == "predict:  python -m mnist_dist predict IMAGE..."
    assert pictures == f"plots:    runs/{folder.name}/plots" and (folder / "plots").is_dir()
    assert report == f"report:   runs/{folder.name}/report.html"
    assert accuracy.startswith("Test Accuracy: ")
    status, screen = on_a_terminal(PYTHON, "-m", "mnist_dist", "runs", cwd=tmp_path)
    assert status == 0 and folder.name in screen and max(map(len, screen.splitlines())) <= 80
