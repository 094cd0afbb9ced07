"""What befalls a process, or a disk, at one moment of a training."""

import contextlib
import ctypes
import errno
import os
import signal
import time
from unittest.mock import patch

import train
from faults.devices import a_process_is_watched
from faults.registry import all_of, before_backward, fault, is_last, overflow, rank
from mnist_dist.run import tracking
from mnist_dist.tools.verify import setup as verify_setup

HOURS = 10_000  # seconds


def in_update(number, harm):
    """Something that happens to the last process alone, in an update, by its number from 1."""

    def happen(accelerator):
        if is_last() and accelerator.updates == number - 1:
            harm(accelerator)

    return before_backward(happen)


def fail_with(error):
    """What raises an error."""

    def fail(*_, **__):
        raise error

    return fail


def be_killed(_):
    """As by the kernel, if memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


@fault
def last_process_has_a_bug():
    """An exception of its own, in update 5."""
    return in_update(5, fail_with(ZeroDivisionError("planted")))


@fault
def last_process_is_killed():
    """In update 5."""
    return in_update(5, be_killed)


@fault
def first_process_aborts():
    """In update 5, as gloo does if a message is longer than what it is received into."""

    def abort(accelerator):
        if rank() == 0 and accelerator.updates == 4:
            os.abort()

    return before_backward(abort)


@fault
def verify_has_a_bug():
    """On all processes alike."""
    return patch.object(verify_setup, "digests", fail_with(ZeroDivisionError("planted")))


@fault
def last_process_hangs():
    """In update 5: it never comes to the exchange of gradients."""
    return in_update(5, lambda _: time.sleep(HOURS))


@fault
def last_process_is_killed_while_the_others_wait_in_c():
    """In update 6, as in a CUDA stream that never ends; with what is made on GPUs."""

    def wait(accelerator):
        if accelerator.updates == 5:
            ctypes.CDLL(None).sleep(100)

    return all_of(a_process_is_watched(), before_backward(wait), in_update(6, be_killed))


@fault
def gradient_breaks_at_update_30():
    """On the last process: the loss stays finite and the gradient does not."""
    return in_update(30, overflow)


@fault
def last_process_raises_at_update_30():
    """An exception that nobody foresaw."""
    return in_update(30, fail_with(MemoryError("planted")))


@fault
def last_process_cannot_read_at_update_30():
    """A disk that fails."""
    return in_update(30, fail_with(OSError(errno.EIO, os.strerror(errno.EIO), "/dev/planted")))


@fault
def evaluation_fails():
    """That of the first epoch, on a disk that fails, when all its updates have been done."""
    return patch.object(train, "evaluate", fail_with(OSError(errno.EIO, "planted")))


@fault
def stuck_in_an_update():
    """An update that does not end."""

    def stick(_):
        print("stuck", flush=True)
        time.sleep(HOURS)

    return before_backward(stick)


@fault
def disk_full_at_metrics():
    """Another program fills the disk just before a line of metrics.jsonl is written."""
    append = tracking.append_json

    def filled(path, value):
        with (
            contextlib.suppress(OSError),
            (path.parent / "filler").open("ab", buffering=0) as filler,
        ):
            while True:
                filler.write(bytes(4096))
        append(path, value)

    return patch.object(tracking, "append_json", filled)
