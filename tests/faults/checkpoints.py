"""Faults in what is saved, in what is given back, and in when all stop."""

from unittest.mock import patch

from faults.registry import fault, on_the_last_process
from mnist_dist.core import state
from mnist_dist.core.optimizer import ExactOptimizer
from mnist_dist.core.stopping import StopRequest
from mnist_dist.tools.verify.watched import files as watched_files


@fault
def checkpoint_reads_other_weights():
    """A file system gives back something else than was written, under the right digest."""
    newest = watched_files.newest_checkpoint

    def other(run):
        payload, warnings = newest(run)
        assert payload is not None
        payload["state"]["models"][0]["fc1.bias"] += 1
        return payload, warnings

    return patch.object(watched_files, "newest_checkpoint", other)


@fault
def checkpoint_without_optimizer():
    """Its state is not saved."""
    state_dict = ExactOptimizer.state_dict
    return patch.object(ExactOptimizer, "state_dict", lambda self: state_dict(self) | {"state": {}})


@fault
def epochs_end_without_optimizer():
    """The state is not saved with an epoch's last update."""
    collect = state.collect

    def forgetful(accelerator):
        found = collect(accelerator)
        if found["loaders"][0]["batch"] == 0:
            found["optimizers"] = [{**each, "state": {}} for each in found["optimizers"]]
        return found

    return patch.object(state, "collect", forgetful)


@fault
def optimizer_lost_at_resume():
    """On the last process."""

    def lose(accelerator):
        for optimizer in accelerator._optimizers:
            optimizer.optimizer.state.clear()

    return on_the_last_process(state, "restore", lose)


@fault
def resume_skips_a_batch():
    """On all processes."""
    restore = state.restore

    def skipping(accelerator, found):
        restore(accelerator, found)
        accelerator._dataloaders[0].first_batch += 1

    return patch.object(state, "restore", skipping)


@fault
def stop_seen_by_one_process():
    """Each process asks itself alone."""
    return patch.object(StopRequest, "agreed", lambda self, **_: self.received is not None)
