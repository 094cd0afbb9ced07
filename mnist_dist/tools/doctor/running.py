"""Runs the user's program in this process, watched."""

import atexit
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.tools.doctor.places import place_of_error
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.signs import Signs
from mnist_dist.tools.doctor.watch_files import FileWatch
from mnist_dist.tools.doctor.watch_gradients import GradientWatch
from mnist_dist.tools.doctor.watch_loaders import LoaderWatch
from mnist_dist.tools.doctor.watch_losses import LossWatch
from mnist_dist.tools.doctor.watch_models import ModelWatch
from mnist_dist.tools.doctor.watch_optimizers import OptimizerWatch
from mnist_dist.tools.doctor.watch_processes import ProcessWatch
from mnist_dist.tools.doctor.watch_schedules import ScheduleWatch

LONGEST = 300  # characters of an error


class Run:
    """The user's program in this process.

    Args:
        recorder: of this process.
        finish: what else is to be done when the program has ended. It is given the status with
            which the program ended, and returns that with which the process is to end.

    Attributes:
        before_signal: what is to be done before the process ends by SIGTERM.
    """

    def __init__(self, recorder: Recorder, finish: Callable[[int], int]) -> None:
        self.recorder = recorder
        self.finish = finish
        self.signs = Signs(recorder)
        self.exit_now = os._exit
        self.before_signal: Callable[[], Any] = lambda: None

    def install(self) -> None:
        """Set all hooks."""
        models = ModelWatch(self.recorder)
        models.install()
        gradients = GradientWatch(self.recorder)
        gradients.install()
        LossWatch(self.recorder, models, gradients).install()
        OptimizerWatch(self.recorder, models, gradients).install()
        LoaderWatch(self.recorder).install()
        ScheduleWatch(self.recorder).install()
        ProcessWatch(self.recorder).install()
        FileWatch(self.recorder).install()
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self.terminated)
        replaced: Any = self.left_at_once
        os._exit = replaced
        atexit.register(self.recorder.quietly(self.recorder.write))

    def start(self, program: Path, flags: Sequence[str]) -> int:
        """Run the program to its end.

        Args:
            program: a Python file.
            flags: its own.

        Returns:
            The status with which this process is to end.
        """
        sys.argv = [str(program), *flags]
        sys.path[0] = str(program.resolve().parent)
        self.install()
        self.recorder.write()
        status = 0
        try:
            execute(program)
        except SystemExit as stop:
            status = status_of(stop)
        except KeyboardInterrupt:
            status = 130
        except Exception as error:
            status = 1
            self.failed(error)
        return self.ended(status)

    def failed(self, error: Exception) -> None:
        """Note an error that ends the program, and print it as Python does."""
        record = self.recorder.record
        record.error = f"{type(error).__name__}: {error}"[:LONGEST]
        record.error_place = place_of_error(error.__traceback__)
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)

    def ended(self, status: int) -> int:
        """Note that the program has ended, and do what is then to be done.

        Args:
            status: with which it ended.

        Returns:
            The status with which this process is to end.
        """
        record = self.recorder.record
        record.ended = True
        record.status = status
        self.recorder.write()
        self.signs.end()
        sys.stdout.flush()
        sys.stderr.flush()
        return self.finish(status)

    def left_at_once(self, status: int) -> None:
        """End the process, as the program asks for by `os._exit`."""
        if os.getpid() == self.recorder.pid and not self.recorder.record.ended:
            status = self.ended(status)
        self.exit_now(status)

    def terminated(self, number: int, _: Any) -> None:
        """Write the record before the process ends by a signal, which it does as without it."""
        self.recorder.record.status = -number
        self.recorder.quietly(self.recorder.write)()
        if os.getpid() == self.recorder.pid:
            self.before_signal()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def execute(program: Path) -> None:
    """Execute a Python file as `python FILE` does."""
    module = types.ModuleType("__main__")
    module.__file__ = str(program)
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    code = compile(program.read_bytes(), str(program.resolve()), "exec")
    exec(code, module.__dict__)


def status_of(stop: SystemExit) -> int:
    """Return the exit status that a program has asked for."""
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1
