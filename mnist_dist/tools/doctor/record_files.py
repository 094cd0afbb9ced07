"""The files through which processes leave their records and signs of life."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_dist.tools.doctor.records import Epoch, Optimized, Record, Schedule, Sign
from mnist_dist.tools.doctor.updates import Update


def write(path: Path, value: Record | Sign) -> None:
    """Write a file in one piece, so that whoever reads it finds all or what was there before."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(asdict(value), default=str))
    beside.replace(path)


def read_records(folder: Path) -> list[Record]:
    """Read the records of all processes, that of the first one first."""
    records = []
    for path in folder.glob("record-*.json"):
        values = json.loads(path.read_text())
        records.append(record_from(values))
    return sorted(records, key=lambda record: record.rank)


def record_from(values: dict[str, Any]) -> Record:
    """Make a record of what a file holds."""
    updates = [Update(**each) for each in values.pop("updates")]
    epochs = [Epoch(**each) for each in values.pop("epochs")]
    schedules = [Schedule(**each) for each in values.pop("schedules")]
    optimizers = [Optimized(**each) for each in values.pop("optimizers")]
    return Record(
        **values, updates=updates, epochs=epochs, schedules=schedules, optimizers=optimizers
    )


def read_signs(folder: Path) -> list[Sign]:
    """Read the last sign of life of every process, that of the first one first."""
    signs = [Sign(**json.loads(path.read_text())) for path in folder.glob("sign-*.json")]
    return sorted(signs, key=lambda sign: sign.rank)
