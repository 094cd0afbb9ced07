"""The real `train.py`, watched: each of its updates is compared with the `Reference`'s, on every process."""

import copy
import importlib
import io
import json
import math
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mnist_dist.core import Batch, Checkpoints, Stopped, Training, UserError
from mnist_dist.core.checkpoints import newest_checkpoint
from mnist_dist.core.processes import SIGNALS, explain
from mnist_dist.digits.config import TrainConfig
from mnist_dist.plots import figures
from mnist_dist.run import launch
from mnist_dist.run.command_line import as_flags
from mnist_dist.task import data
from mnist_dist.task.data import DataSet, Split
from mnist_dist.tools import reference
from mnist_dist.tools.reference import Reference


class Enough(Exception):
    """Raised out of a training that is to end here, as if it were killed."""


def script() -> Any:
    """The module `train.py`, beside this package."""
    root = os.fspath(Path(__file__).parents[2])
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module("train")


def cut(samples: DataSet, train: int, others: int) -> DataSet:
    """The first samples of each split."""

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    val = first(samples.val, others) if samples.val else None
    return replace(samples, train=first(samples.train, train), test=first(samples.test, others), val=val)


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest between numbers of the same name; infinite if there is none or if names, shapes or a NaN differ."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return math.inf
    gaps = [0.0]
    for name, tensor in one.items():
        mine, its = tensor.detach().double(), other[name].detach().to(tensor.device).double()
        gap = (mine - its).abs()
        gap[(mine == its) | (mine.isnan() & its.isnan())] = 0
        gaps.append(float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max()) if gap.numel() else 0.0)
    return max(gaps)


@dataclass
class Seen:
    """What a process saw of one training, for the others.

    Attributes:
        apart: for each kind of thing the largest difference from the reference, and the update, from 1, of the first
            that exceeds the tolerance, or of the largest.
        indices: for each update the numbers of this process's samples.
        batches: for each update its epoch and its number in it, from 0.
        left: the updates made when it was over.
        end: how it ended: `done`, `enough`, `stopped`, or what went wrong.
        at: what it was about at its end, as a line of the table.
        rounding: of the gradient, the largest relative difference (of norms).
    """

    apart: dict[str, tuple[float, int]] = field(default_factory=dict)
    indices: list[list[int]] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)
    left: int = 0
    end: str = "done"
    at: str = "initial weights"
    rounding: float = 0.0

    @property
    def error(self) -> str:
        """What went wrong, if anything did."""
        return "" if self.end in ("done", "enough", "stopped") else self.end


class Watch:
    """Runs `train.py` in the processes that there are, and compares.

    Args:
        settings: of the training; with an output folder.
        samples: what it trains on and is tested with.
        tolerance: the largest difference that is rounding.
        note: told how far it is.
        reference: as far as the training is that goes on; None for one from the beginning.
        enough: updates after which it ends, as if killed.
        ask: the update, from 0, before which this process asks itself to stop.

    Attributes:
        seen: what it saw.
        lines: what metrics.jsonl should say of each epoch.
        reference: where the training is.
        kept: the reference as it was after updates, by number: those of `keep`.
    """

    def __init__(
        self,
        settings: TrainConfig,
        samples: DataSet,
        tolerance: float,
        note: Callable[[str], None] = lambda _: None,
        reference: Reference | None = None,
        *,
        enough: int | None = None,
        ask: int | None = None,
        keep: tuple[int, ...] = (),
    ) -> None:
        self.settings, self.samples, self.tolerance, self.note = settings, samples, tolerance, note
        self.reference = reference or Reference(settings, samples.train.images.double(), samples.train.labels)
        self.resumed, self.enough, self.ask, self.keep = reference is not None, enough, ask, keep
        self.seen, self.lines, self.kept = Seen(), list[dict[str, float]](), dict[int, Reference]()
        self.total = settings.epochs * math.ceil(len(samples.train) / settings.batch_size)
        self.found: dict[int, tuple[Tensor, float]] = {}  # gradient and rate by the id of the parameter
        self.first = True

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.settings.output_dir or Path()

    def train(self) -> Seen:
        """Run the training; never raises what a training may."""
        words = as_flags(replace(self.settings, recipe=None))
        with ExitStack() as around:
            for stream in (redirect_stdout, redirect_stderr):
                around.enter_context(stream(io.StringIO()))
            around.enter_context(patch.object(sys, "argv", ["train.py", *words]))
            around.enter_context(patch.object(data, "obtain", lambda *_, **__: self.samples))
            around.enter_context(without_pictures())
            around.enter_context(patch.object(Training, "update", self.watched_update()))
            around.enter_context(patch.object(Checkpoints, "save", self.watched_save()))
            hook = register_optimizer_step_pre_hook(lambda optimizer, *_: self.keep_gradient(optimizer))
            around.callback(hook.remove)
            try:
                script().main()
            except Enough:
                self.seen.end = "enough"
            except Stopped:
                self.seen.end = "stopped"
            except Exception as error:
                self.seen.end = f"{type(error).__name__}: {' '.join(explain(error).split())}"[:400]
                if not isinstance(error, UserError):  # whose place is of no interest
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    self.seen.end += f" ({Path(last.filename).name}:{last.lineno})"
        return self.seen

    def apart(self, what: str, found: float, update: int) -> None:
        """Note a difference at an update, from 1."""
        worst, first = self.seen.apart.get(what, (0.0, 0))
        if worst > self.tolerance:  # what comes after the first may follow from it
            update = first
        if not first or found > worst:
            self.seen.apart[what] = found, update

    def keep_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the weights are changed: what by, and at which rate."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.found[id(parameter)] = parameter.grad.detach().clone(), group["lr"]

    def watched_update(self) -> Callable[..., None]:
        """`Training.update`, with all that it changes compared."""
        update, watch = Training.update, self

        def watched(training: Training, batch: Batch, **options: Any) -> None:
            watch.before(training, batch)
            update(training, batch, **options)
            watch.after(training)

        return watched

    def before(self, training: Training, batch: Batch) -> None:
        """Compare what an update begins with."""
        at, seen, mine = training.progress, self.seen, self.reference
        seen.left = at.global_step
        if self.enough == at.global_step:
            raise Enough
        if self.ask == at.global_step:
            if hasattr(signal, "SIGUSR1"):
                signal.raise_signal(signal.SIGUSR1)
            else:  # on Windows, where any other signal would reach the supervisor, too
                stop = signal.getsignal(SIGNALS[-1])
                assert callable(stop)
                stop(SIGNALS[-1], None)
        seen.at = seen.at if self.first else "gradient"
        self.note(f"in update {at.global_step + 1}")
        seen.indices.append(batch.index.tolist())
        seen.batches.append((at.epoch, at.step))
        begin = "resumed weights" if self.resumed else "initial weights"
        weights = {name: tensor.detach() for name, tensor in training.bare.named_parameters()}
        self.apart(begin if self.first else "update", difference(mine.weights, weights), at.global_step + 1)
        mine.weights = {name: tensor.double().clone() for name, tensor in weights.items()}
        self.first, seen.at = False, "gradient"
        self.gradient = mine.gradient(at.epoch, at.step)
        self.found.clear()

    def after(self, training: Training) -> None:
        """Compare what an update was made of, and what it made."""
        mine, seen, named = self.reference, self.seen, dict(training.bare.named_parameters())
        found = {name: self.found[id(p)][0].double() for name, p in named.items() if id(p) in self.found}
        rates = [self.found[id(p)][1] for p in named.values() if id(p) in self.found]
        seen.left = training.progress.global_step
        self.apart("gradient", difference(self.gradient, found), seen.left)
        if found.keys() == self.gradient.keys():
            norm = sum(float((self.gradient[name] - tensor).square().sum()) for name, tensor in found.items()) ** 0.5
            whole = sum(float(tensor.square().sum()) for tensor in self.gradient.values()) ** 0.5
            relative = norm / whole if whole else 0.0
            seen.rounding = max(seen.rounding, relative if math.isfinite(relative) else math.inf)
            expected = reference.rate(self.settings, mine.updates, self.total)
            self.apart("schedule", max(abs(rate - expected) / self.settings.lr for rate in rates), seen.left)
            mine.update(found, rates[0])
        else:
            mine.update(self.gradient, reference.rate(self.settings, mine.updates, self.total))
        self.apart("update", difference(mine.weights, named), seen.left)
        mine.weights = {name: tensor.detach().double().clone() for name, tensor in named.items()}
        mine.follow()
        seen.at = "evaluation" if training.epoch_is_complete else "checkpoint"
        if mine.updates in self.keep:
            self.kept[mine.updates] = copy.deepcopy(mine)

    def watched_save(self) -> Callable[..., None]:
        """`Checkpoints.save`, with the moving average compared; and the figures of an epoch that ends here."""
        save, watch = Checkpoints.save, self

        def watched(checkpoints: Checkpoints, *words: Any, **options: Any) -> None:
            watch.seen.at = "checkpoint"
            watch.at_checkpoint(checkpoints)
            save(checkpoints, *words, **options)

        return watched

    def at_checkpoint(self, checkpoints: Checkpoints) -> None:
        """Compare what is about to be saved."""
        at, mine = checkpoints.training.progress, self.reference
        self.note(f"at a checkpoint after update {at.global_step}")
        if self.settings.ema:
            state = checkpoints.parts["averaged"].state_dict() if "averaged" in checkpoints.parts else {}
            prefix = "module."
            averaged = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            self.apart("moving average", difference(mine.averaged, averaged), at.global_step)
        if at.step == 0:
            line = {"epoch": at.epoch, "global_step": at.global_step, "train_loss": mine.loss / len(self.samples.train)}
            for name, split in {"test": self.samples.test, "val": self.samples.val}.items():
                if split:
                    loss, right = mine.evaluate(split.images.double(), split.labels)
                    line |= {f"{name}_loss": loss, f"{name}_correct": right, f"{name}_total": len(split)}
            self.lines.append(line)


def wrong_samples(seen: list[Seen], settings: TrainConfig, samples: int, first: int = 0) -> list[str]:
    """How the batches of all processes together differ from those of one, in words.

    Args:
        first: updates that were made before.
    """
    per_epoch, size = math.ceil(samples / settings.batch_size), settings.batch_size
    expected = [divmod(update, per_epoch) for update in range(first, settings.epochs * per_epoch)]
    faults: list[str] = []
    for rank, it in enumerate(seen):
        given = [tuple(batch) for batch in it.batches]
        if given != expected[: len(given)] or (it.end == "done" and len(given) < len(expected)):
            skipped = next(
                (n for n, pair in enumerate(zip(given, expected, strict=False)) if pair[0] != pair[1]), len(given)
            )
            faults.append(
                f"process {rank} has {len(given)} batches of {len(expected)}, other ones from its {skipped + 1}. on"
            )
    if faults:
        return faults
    visits: Counter[int] = Counter()
    for n, (epoch, number) in enumerate(expected[: min(len(it.batches) for it in seen)]):
        visits = visits if number else Counter()
        together = sorted(index for it in seen for index in it.indices[n])
        visits.update(together)
        right = reference.order(samples, settings.seed, epoch)[number * size : (number + 1) * size]
        if together != sorted(right.tolist()):
            twice = sum(count > 1 for count in visits.values())
            what = f"update {first + n + 1} has {len(together)} samples, not those {len(right)} of one process"
            return [what + (f", and {twice} more than once in the epoch" if twice else "")]
    return []


def wrong_figures(expected: list[dict[str, float]], folder: Path, tolerance: float) -> list[str]:
    """What metrics.jsonl says otherwise of the last epochs, in words."""
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        return [f"metrics.jsonl cannot be read ({type(error).__name__})"]
    if len(lines) < len(expected):
        return [f"metrics.jsonl has {len(lines)} of {len(expected)} epochs"]
    faults = []
    for right, line in zip(expected, lines[len(lines) - len(expected) :], strict=True):
        for name, value in right.items():
            found = line.get(name, math.nan)
            if not abs(found - value) <= (0 if isinstance(value, int) else tolerance):
                faults.append(f"{name} of epoch {right['epoch']:.0f} is {found:.6g} and should be {value:.6g}")
    return faults


def wrong_checkpoint(expected: Reference, folder: Path, tolerance: float) -> tuple[list[str], int]:
    """What the newest checkpoint of a run does not hold, in words; and the update that it says it is of."""
    payload, warnings = newest_checkpoint(folder)
    if payload is None:
        return warnings or ["there is none"], 0
    tensors: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value.detach().double())
        elif isinstance(value, Mapping | list | tuple):
            for item in value.values() if isinstance(value, Mapping) else value:
                collect(item)

    collect(payload["parts"])
    kinds = {"weights": expected.weights, "moving average": expected.averaged}
    kinds |= {"Adam's first moments": expected.moments[0], "Adam's second moments": expected.moments[1]}
    faults = list(warnings)
    for kind, values in kinds.items():
        for name, value in values.items():
            here = value.cpu()
            if not any(
                other.shape == here.shape and difference({"": here}, {"": other}) <= tolerance for other in tensors
            ):
                faults.append(f"it lacks or changes {kind} of {name}")
                break
    return faults, int(payload["parts"]["training"]["progress"]["global_step"])


def without_pictures() -> Any:
    """Let a run draw none: they would take half of its time."""
    return patch.object(figures, "save", lambda *_, **__: None)


@contextmanager
def small(samples: int, others: int) -> Iterator[None]:
    """Whatever data set a training asks for is cut."""
    obtain = data.obtain
    with patch.object(data, "obtain", lambda *words, **more: cut(obtain(*words, **more), samples, others)):
        yield


def alone() -> None:
    """Train on one process of its own: `python -c "...alone()" '{"flags": [...], "samples": n, "others": m}'`."""
    asked = json.loads(sys.argv[1])
    sys.argv = ["train.py", *asked["flags"]]
    with without_pictures(), small(asked["samples"], asked["others"]):
        launch.run(script().main, "train.py")
