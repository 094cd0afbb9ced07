"""How the processes of a program end: their messages and exit statuses."""

import multiprocessing
import os
import platform
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from mnist_dist.core.errors import STOPPED, SingleProcessError, Stopped, UserError, explain
from mnist_dist.core.waiting import WATCHES
from mnist_dist.run import locks, neighbour
from mnist_dist.run.neighbour import NEIGHBOURS
from mnist_dist.run.streams import prepare_streams
from mnist_dist.shell import shell

GRACE = 5  # seconds in which the first process of a node can say why all leave
STAY = 2  # seconds in which every torchrun, which looks every 0.1, notices that a node has joined
ALONE = (SingleProcessError, OSError)  # errors of a single process, once all are connected
INTERRUPTED = 130  # the exit status by which shells report SIGINT
HOW = {0: "has finished, and left", STOPPED: "has left, for it was asked to stop"}  # by exit status
RESUME = "run the same command with --output-dir {run} --resume"


def run(main: Callable[[], None], name: str, again: str = RESUME) -> None:
    """Run a script's `main` and end the process with the status that the README promises.

    Once the processes are connected, a `UserError` is raised on all of them (see `all_or_none`),
    and the first process prints it. Before that, all processes of a node normally see the same
    error, and the first one on the node prints it; otherwise each process that has the error does.
    Any other error concerns a single process, which prints it itself.

    Args:
        main: does the work.
        name: the program's name, for messages.
        again: how to resume a run that was stopped. `{run}` stands for its folder.
    """
    status = 0
    has_failed_alone = False
    prepare_streams()
    neighbour.how_to_go_on = again_in_words(again)
    try:
        main()
    except BrokenPipeError:
        status = 1
        has_failed_alone = True  # only the first process prints; the others are at work
        report_broken_pipe(name)
    except (UserError, OSError) as error:
        status = getattr(error, "status", 1)
        has_failed_alone = isinstance(error, ALONE)
        report_refusal(error, name, again)
    except Exception as error:
        if is_lost_connection(error):
            leave_without_the_others(error, name, again)
        status = 1
        has_failed_alone = True
        report_bug(error, name)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        exit_now(INTERRUPTED)  # so that nothing is finished first
    leave(status, has_failed_alone)


def leave(status: int, has_failed_alone: bool) -> NoReturn:
    """End this process.

    Args:
        status: the exit status.
        has_failed_alone: whether only this process has failed, and the others may be at work.
    """
    connected = dist.is_initialized()
    for watch in WATCHES:
        watch.end(HOW.get(status, "has ended with an error"))
    if connected and not has_failed_alone:
        disconnect()
    locks.let_go()
    status = status or status_of_output()
    sys.stderr.flush()
    if status == STOPPED and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        # When a node joins, torchrun stops its processes, which makes those on other nodes exit,
        # too. A torchrun whose process exits before it has noticed the new node would count that as
        # a failure, and give up if no restarts are left.
        time.sleep(STAY)
    if connected:
        # Python's own exit can abort in a thread that the process group left behind (1 of 12 runs
        # of two gloo processes, torch 2.15), and a launcher would call a finished run failed.
        # Nothing is left for it to do.
        exit_now(status)
    sys.exit(status)


def exit_now(status: int) -> NoReturn:
    """End this process without Python's own exit, and the workers of its loaders with it.

    Workers that are left alone notice only seconds later that their process is gone (5 with torch
    2.14). Until then they would keep its output open, which `tee` waits for.
    """
    if hasattr(signal, "SIGCHLD"):  # which Windows has not
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would call their end an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.terminate()
    os._exit(status)


def status_of_output() -> int:
    """Flush the standard output, and report an error if that fails.

    Returns:
        The exit status for it.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        print(f"error: the end of the output is lost: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def disconnect() -> None:
    """Take the connections of all processes down together.

    This is not possible after a bug, because the other processes may be inside a collective
    operation, for which NCCL would wait forever.
    """
    for one in NEIGHBOURS:
        one.farewell()
    dist.destroy_process_group()


def leave_without_the_others(error: Exception, name: str, again: str) -> NoReturn:
    """End this process at once: the others are gone, so nothing can be taken down together.

    Args:
        error: how the loss of the connection was noticed.
        name: what the user called.
        again: as in `run`.
    """
    left = "; ".join(watch.who_left() for watch in WATCHES)
    why = left or "if a process has died, see its message"
    print(
        f"{name}: error: process {own_rank()} lost the connection to another process, or never had "
        f"one ({cause(error)}): {why}; {again_in_words(again)}",
        file=sys.stderr,
        flush=True,
    )
    exit_now(1)


def again_in_words(again: str) -> str:
    """Say how to resume a run whose folder is not known here.

    Args:
        again: as in `run`.
    """
    how = again.format(run="FOLDER")
    return f"to resume from the last checkpoint, {how}"


def is_lost_connection(error: Exception) -> bool:
    """Tell whether an error means that another process cannot be reached."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def report_broken_pipe(name: str) -> None:
    """Say that the output is no longer read, and let the rest of it go nowhere."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    print(
        f"{name}: error: stopped early, because its output is no longer read (by `head`, say)",
        file=sys.stderr,
    )


def report_refusal(error: UserError | OSError, name: str, again: str) -> None:
    """Print, once for all processes, why a request was refused or where a run was stopped.

    Before the processes are connected, a process that is still there some seconds later says so
    itself: the first one of its node has not met the same, or it would have ended all.

    Args:
        error: the reason.
        name: what the user called.
        again: as in `run`.
    """
    what = "" if isinstance(error, Stopped) else "error: "
    message = f"{name}: {what}{explain(error)}"
    if is_first():
        stopped_run = getattr(error, "run", None)
        if stopped_run:
            how_to_resume = again.format(run=shell(stopped_run))
            message += f": to resume, {how_to_resume}"
        print(message, file=sys.stderr)
    elif not dist.is_initialized():
        # A launcher that saw this process leave would end the first one before it has spoken.
        time.sleep(GRACE)
        print(f"{own_label()}{message}", file=sys.stderr)
    elif isinstance(error, ALONE):
        print(f"{own_label()}{message}", file=sys.stderr)


def report_bug(error: Exception, name: str) -> None:
    """Print what went wrong in this process alone; on all but the first, every line says who.

    Args:
        error: the exception that nobody foresaw.
        name: what the user called.
    """
    message = "".join(traceback.format_exception(error))
    if any(kind.__module__ == "torch._dynamo.exc" for kind in type(error).__mro__):
        first_line, *_ = str(error).strip().splitlines()
        failure = f"{name}: error: torch.compile failed ({first_line})"
        message = f"{failure}: install what it needs, or leave --compile out\n"
    labelled = textwrap.indent(message, own_label(), lambda _: True)
    print(labelled, file=sys.stderr, end="")


def own_rank() -> str:
    """The number that the launcher has given to this process."""
    return os.environ.get("RANK", "0")


def own_label() -> str:
    """The prefix that identifies this process's lines in a shared log.

    Returns:
        An empty text for the first process.
    """
    rank = own_rank()
    if rank == "0":
        return ""
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    return f"[rank {rank} on {node}]: "


def is_first() -> bool:
    """Tell whether this process speaks for all, or, before they are connected, for its node."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    rank = os.environ.get("LOCAL_RANK", "")
    return not rank.isdecimal() or int(rank) == 0


def cause(error: Exception) -> str:
    """Say in a line what a library reported.

    Args:
        error: an error of PyTorch's, gloo's or NCCL's, with a message of one or more lines.

    Returns:
        The first line of the message, and what NCCL itself reported, which comes last.
    """
    first_line, *others = str(error).strip().splitlines()
    reason = first_line.rstrip(".")
    _, _, reported_by_nccl = "\n".join(others).partition("Last error:\n")
    if reported_by_nccl:
        return f"{reason}; {reported_by_nccl.splitlines()[0]}"
    return reason
