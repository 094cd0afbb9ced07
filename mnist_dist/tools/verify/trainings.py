"""The small trainings that `verify` watches."""

import math
import time
from dataclasses import replace
from typing import Any

from mnist_dist.digits.config import TrainConfig
from mnist_dist.tools.verify import reference
from mnist_dist.tools.verify.session import Session, Trial
from mnist_dist.tools.verify.watched.samples import cut

TESTED = 997  # samples of a small training that it is tested with
PATIENCE = 6.0  # seconds
# Updates in one of the two epochs of your training: as many as the reference does in PATIENCE.
FEWEST = 6
MOST = 24

# A prime batch, so that hardly any number of processes shares it evenly, and a last one of one.
PLAIN = TrainConfig(batch_size=61, lr=0.003)
ALL_OPTIONS = TrainConfig(
    batch_size=61,
    lr=0.003,
    hidden=(384, 64),  # above a MiB of gradients, as PLAIN is below: they may travel otherwise
    schedule="one-cycle",
    weight_decay=0.1,
    label_smoothing=0.1,
    dropout=0.1,
    affine=0.5,
    elastic=1.0,
    clip_norm=1.0,
    ema=0.9,
    gradient_accumulation_steps=3,
)
CNN = replace(
    ALL_OPTIONS,
    model="cnn",
    channels=(4, 8, 8),
    hidden=(32,),
    schedule="cosine",
    warmup=0.2,
)


def choose(session: Session) -> dict[str, Trial]:
    """Return the trainings to watch, by title: the one asked for, or some that have every option."""
    asked = session.config.asked()
    if asked:
        return {"your settings": shorten(session, asked, affordable(session, asked))}
    return {
        "plain": shorten(session, PLAIN, 24, epochs=3),
        "all options": shorten(session, ALL_OPTIONS, 24),
        "all options, cnn": shorten(session, CNN, 5),
        "virtual processes": shorten(session, shared_by_more(session), 4),
    }


def shared_by_more(session: Session) -> TrainConfig:
    """Return a training whose batches are shared by one more virtual process than there are."""
    return replace(ALL_OPTIONS, hidden=(32,), virtual_processes=session.supervisor.world + 1)


def most_general(trials: dict[str, Trial]) -> Trial:
    """Return the training that is killed, resumed and stopped."""
    return trials.get("all options") or trials["your settings"]


def shorten(session: Session, settings: TrainConfig, updates: int, epochs: int = 2) -> Trial:
    """Make a small training, in float64, of a few epochs of so many updates, or of more.

    Args:
        session: the processes and the data.
        settings: of the whole training.
        updates: at most so many in an epoch; the last one is of one sample.
        epochs: how many there are, if there are enough samples for those updates.
    """
    size = min(len(session.samples.train), (updates - 1) * settings.batch_size + 1)
    samples = cut(session.samples, size, max(TESTED, session.supervisor.world))
    per_epoch = math.ceil(size / settings.batch_size)
    changes: dict[str, Any] = {
        "dtype": "float64",
        "mixed_precision": "no",
        "recipe": None,
        "compile": False,
        "epochs": max(epochs, math.ceil(2 * updates / per_epoch)),
        "wandb": "disabled",
        "plots": False,
        "report": False,
        "log_every": 5,
        "checkpoint_every": max(1, per_epoch // 2),
        "resume": False,
        "output_dir": None,
        "dataset": samples.name,
        "data_dir": session.choice.data_dir,
        "cpu": session.config.cpu or settings.cpu,
    }
    return Trial(replace(settings, **changes), samples)


def affordable(session: Session, settings: TrainConfig) -> int:
    """Return the updates per epoch that a training can have to be watched in reasonable time."""
    trial = shorten(session, settings, 2)
    train = trial.samples.train
    one = reference.Reference(trial.settings, train.images, train.labels)
    begin = time.perf_counter()
    one.gradient(0, 0)
    seconds = max(session.supervisor.gather(time.perf_counter() - begin))
    patience = min(PATIENCE, session.config.deadline / 8)
    return max(FEWEST, min(MOST, int(patience / seconds)))
