"""Is this distributed set-up right? It trains on all processes, watched, and compares with a training written apart."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator

from mnist_dist.core import Batch, GlobalBatches, Training, UserError
from mnist_dist.core.processes import explain
from mnist_dist.digits import weights
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch
from mnist_dist.run.command_line import as_flags, parse
from mnist_dist.task import data, networks
from mnist_dist.task.data import DataSet, Split
from mnist_dist.task.evaluation import BATCH, classify
from mnist_dist.task.objective import adam, loss_of
from mnist_dist.task.settings import DataConfig
from mnist_dist.tools import links, program, reference
from mnist_dist.tools.answer import Answer, Check, Process
from mnist_dist.tools.preflight import (
    check_equal,
    check_processes,
    digests,
    faults_in_data,
    introduce,
    own_files,
)
from mnist_dist.tools.supervisor import NOT_ALL, Supervisor, is_lost_connection
from mnist_dist.tools.watched import Seen, Watch, cut, difference, wrong_checkpoint, wrong_figures, wrong_samples
from mnist_dist.usage import UsageError, require

TOLERANCE = 1e-9  # between float64 results: rounding gives 1e-14, the smallest mistake 1e-6
SLOW = 1.5  # times the median of all processes
VISIBLE_WITHIN = 10.0  # seconds, for a file on all nodes: network file systems cache folders for a few
TESTED = 997  # samples of a small training that it is tested with
ASKED = 3  # the update, from 0, before which a process is asked to stop
FEWEST, MOST = 6, 24  # updates in one of the two epochs of your training: as many as the reference does in
PATIENCE = 6.0  # seconds

# A prime batch, so that hardly any number of processes shares it evenly, and a last one of one sample.
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
CNN = replace(ALL_OPTIONS, model="cnn", channels=(4, 8, 8), hidden=(32,), schedule="cosine", warmup=0.2)
AGREE = "all must learn of a request after the same update, and then save: core/processes.py, Checkpoints.after_update"
OPTIONS = {  # those that change the gradient: what to look at if it is wrong with one alone
    "label_smoothing": "the loss must spread that share of the target over all classes (task/objective.py)",
    "dropout": "draw it for the whole global batch and take this process's rows: batch.rand (task/distortions.py)",
    "affine": "draw it for the whole global batch and take this process's rows: batch.rand (task/distortions.py)",
    "elastic": "draw it for the whole global batch and take this process's rows: batch.rand (task/distortions.py)",
    "clip_norm": "limit the norm of the mean over all processes, once it is there, not of each one's part",
    "gradient_accumulation_steps": "a piece's loss is to be divided by the samples of the global batch, as any other",
}


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Answer in under a minute whether this set-up trains right. Start it as you start the training.

    Words after `--` are flags of train.py: then it is this training that is checked, in float64 and shortened.
    """

    training: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """After --: flags of the training to come, or of --program."""
    processes: int = 0
    """How many processes are meant; 0: as many as there are, and 2 for --program."""
    cpu: bool = False
    """Force the CPU."""
    output_dir: Path = Path("runs")
    """Where runs go; what is written there must be seen by all nodes, and is removed again."""
    json: Path | None = None
    """Write the result for machines to this file, too."""
    deadline: float = 120.0
    """Seconds that each part may take."""
    program: Path | None = None
    """Any training program: run it on one process and on several, and compare what it leaves (docs/verify.md)."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(self.processes >= 0, "--processes", self.processes, "a number of processes, or 0")
        writable = self.json is None or (self.json.parent.is_dir() and not self.json.is_dir())
        require(writable, "--json", self.json, "a file in a folder that exists")
        require(1 <= self.deadline <= 86_400, "--deadline", self.deadline, "a number of seconds from 1 to 86,400")
        if self.program:
            require(self.program.is_file(), "--program", self.program, "a Python file")
            require(self.processes != 1, "--processes", self.processes, "2 or more, to compare with 1")
        else:
            self.asked()

    def asked(self) -> TrainConfig | None:
        """The training to come; None if no flags say what it is."""
        about_data = ["--dataset", self.dataset, "--data-dir", str(self.data_dir)]
        asked = parse(TrainConfig, [*about_data, *self.training], "verify ... --") if self.training else None
        if asked and asked.teacher:
            raise UsageError("verify does not know teachers, and so cannot check --teacher: leave it out")
        return asked


def main(config: Config) -> None:
    """Print whether this distributed set-up is right.

    Raises:
        UserError: it is not; names the lines that fail.
    """
    begin = time.perf_counter()
    result = answer(config)
    if result.failed:
        raise UserError(f"this set-up is not right: {', '.join(result.failed)} failed")
    result.say(f"\nthis set-up trains right ({time.perf_counter() - begin:.0f} s)")


def answer(config: Config) -> Answer:
    """Check all that must be right for training on the processes that there are. All of them call it alike.

    What must be equal before anything can be compared comes first, and if it is not, the rest is not done.
    """
    result = Answer(json=config.json, printing=launch.is_first())
    if config.program:
        checks = program.compare(config.program, config.training, config.processes or 2, config.cpu, config.deadline)
        for name, passed, detail, advice in checks:
            result.add(Check(name, passed, detail, advice))
    else:
        launch.watching = False  # the supervisor does, and says what was being checked
        try:
            accelerator = launch.start(config.cpu, mixed_precision="no", dtype=torch.float64)
        except UserError as error:
            result.add(Check("start", False, "the processes are not connected", explain(error)))
        else:
            result.printing = accelerator.is_main_process
            Verify(accelerator, config, result).everything()
    result.end()
    return result


class Over(Exception):
    """The processes can no longer work with each other, as the last line says."""


class Verify:
    """The checks, in order, and what they share."""

    def __init__(self, accelerator: Accelerator, config: Config, result: Answer) -> None:
        self.accelerator, self.config, self.result = accelerator, config, result
        self.supervisor = Supervisor(accelerator, config.deadline, self.fail)
        self.seen: dict[str, list[Seen]] = {}  # of all processes, by the training's title

    def fail(self, line: str, detail: str, advice: str) -> None:
        """The last line, of a check that did not come to its end."""
        self.result.printing = True  # if the first process has died, another speaks
        self.result.add(Check(line, False, detail, advice))
        self.result.end()
        names = ", ".join(self.result.failed)
        print(f"mnist_dist: error: this set-up is not right: {names} failed", file=self.result.errors, flush=True)

    def everything(self) -> None:
        """All lines of the table, unless one fails that others need."""
        try:
            with suppress(Over):
                if self.set_up() and self.training():
                    self.going_on()
                    self.costs()
        except Exception as error:  # a bug here, or a process that others lost: the thread of the first says which
            self.supervisor.gather(None, error=f"{type(error).__name__}: {explain(error)}")
            raise
        self.supervisor.close()

    # ---------------------------------------------------------------------------------- what must be equal or distinct

    def set_up(self) -> bool:
        """The same programs, versions and data on processes that are distinct, and one folder for all of them."""
        self.supervisor.begin("processes")
        facts = self.supervisor.gather(asdict(introduce(self.accelerator)))
        processes = self.result.processes = [Process(**each) for each in facts]
        described = launch.describe(self.accelerator)
        self.result.add(check_processes(processes, self.config.processes, described), *check_equal(processes))
        if self.result.failed or not self.read_data():
            return False
        self.result.add(self.check_shared_folder())
        return not self.result.failed

    def on(self, rank: int) -> str:
        """A process by its number and its node."""
        return f"process {rank} on {self.result.processes[rank].node}"

    def read_data(self) -> bool:
        """The data as the training reads it, and whether all processes hold the same."""
        asked = self.config.asked()
        choice, val_size, seed = asked or self.config, asked.val_size if asked else 0, asked.seed if asked else 0
        self.choice: DataConfig = choice
        self.supervisor.begin("data", "reading the data")
        problem, held = "", {}
        try:
            samples = data.obtain(self.accelerator, choice.dataset, choice.data_dir, val_size, seed, torch.float64)
            held = digests(samples)
            problem = "; ".join(faults_in_data(samples))
        except (UserError, OSError) as error:
            problem = explain(error)
        problems = self.supervisor.gather(problem, error="" if held else problem)
        self.result.processes = [replace(it, data=held.get("files", "")) for it in self.result.processes]
        if not held:
            found = self.supervisor.gather(own_files(choice))
            odd = [rank for rank, other in enumerate(found) if other != Counter(found).most_common(1)[0][0]]
            each = "; ".join(f"{self.on(rank)} has {found[rank]}" for rank in odd or [0])
            self.result.add(Check("data", False, f"refused, as train.py would: {each}", problem))
            return False
        faults = [f"{self.on(rank)}: {problem}" for rank, problem in enumerate(problems) if problem]
        everywhere = self.supervisor.gather(held)
        for part in held:
            common = Counter(each.get(part) for each in everywhere).most_common(1)[0][0]
            other = [self.on(rank) for rank, each in enumerate(everywhere) if each.get(part) != common]
            faults += [f"{', '.join(other)}: other {part}"] if other else []
        self.samples = samples
        detail = f"{samples.name}: {len(samples.train):,} to train, {len(samples.test):,} to test, the same everywhere"
        advice = "the files are the same, but not what is made of them: compare task/data.py and its libraries"
        self.result.add(
            Check("data", not faults, "; ".join(faults) or f"{detail} (digest {samples.digest[:12]})", advice)
        )
        return not faults

    def check_shared_folder(self) -> Check:
        """Whether what one process writes the others can read; from here on there is a folder for trials."""
        root, supervisor = self.config.output_dir, self.supervisor
        supervisor.begin("shared folder")
        supervisor.parents += [] if root.exists() else [root]  # asked before any process makes it
        self.folder = root / f".verify-{supervisor.gather(uuid.uuid4().hex)[0]}"
        supervisor.folders.append(self.folder)
        problem, found = "", set[str]()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / str(supervisor.rank)).write_text("here")
        except OSError as error:
            problem = explain(error)
        supervisor.gather(0)  # all have written
        expected, until = {str(rank) for rank in range(supervisor.world)}, time.monotonic() + VISIBLE_WITHIN
        while not problem and not expected <= (found := {path.name for path in self.folder.glob("*")}):
            if time.monotonic() > until:
                problem = f"{self.on(supervisor.rank)} sees {len(found)} of {len(expected)} files"
            time.sleep(0.1)
        problems = [problem for problem in supervisor.gather(problem) if problem]
        right = f"what is written to {root} is there for all processes"
        advice = "put --output-dir on a file system that all nodes see"
        return Check("shared folder", not problems, "; ".join(problems) or right, advice)

    # ------------------------------------------------------------------------------------ train.py and the reference

    def training(self) -> bool:
        """Small trainings by train.py, and whether each of their updates is that of one process."""
        asked = self.config.asked()
        if asked:
            trainings = {"your settings": self.shortened(asked, self.affordable(asked))}
        else:
            trainings = {
                "plain": self.shortened(PLAIN, 40),
                "all options": self.shortened(ALL_OPTIONS, 24),
                "all options, cnn": self.shortened(CNN, 5),
            }
        self.main = list(trainings.values())[0 if asked else 1]
        figures: list[str] = []
        for title, (settings, samples) in trainings.items():
            watch = self.run("initial weights", title, settings, samples)
            if self.seen[title][0].error:
                break
            wrong = wrong_figures(watch.lines, watch.folder, TOLERANCE)
            figures += [f"{title}: {fault}" for fault in self.supervisor.gather(wrong)[0]]
        self.result.add(
            self.compared("initial weights", "the same --seed must give all processes the same first weights"),
            self.check_samples(trainings),
        )
        gradient = self.compared("gradient", "")
        if not gradient.passed and not self.result.failed:
            gradient = replace(gradient, advice=self.why_gradient(trainings))
        self.result.add(
            gradient,
            self.compared("update", "the optimizer is to make one step of AdamW an update, and nothing besides"),
            self.compared("schedule", "the rate must move once an update, not once a process: do not prepare it"),
        )
        if any(settings.ema for settings, _ in trainings.values()):
            self.result.add(self.compared("moving average", "every process must move its average after every update"))
        ended = self.trouble("evaluation")
        detail = "; ".join(figures) or "losses and counts of every epoch are those of one process"
        advice = "count by sample, without padding, and divide sums by counts: evaluate, and Training's figures"
        self.result.add(Check("evaluation", not figures and not ended, ended or detail, advice))
        self.result.add(self.check_test_count())
        return not self.result.failed

    def shortened(self, settings: TrainConfig, updates: int) -> tuple[TrainConfig, DataSet]:
        """A training of so many updates an epoch, in float64, the last one of one sample, and twice as many in all."""
        size = min(len(self.samples.train), (updates - 1) * settings.batch_size + 1)
        samples, per_epoch = (
            cut(self.samples, size, max(TESTED, self.supervisor.world)),
            -(-size // settings.batch_size),
        )
        values: dict[str, Any] = {"dtype": "float64", "mixed_precision": "no", "recipe": None}
        values |= {"compile": False, "cuda_graph": False}
        values |= {"epochs": max(2, -(-2 * updates // per_epoch)), "wandb": "disabled", "log_every": 5}
        values |= {"checkpoint_every": max(1, per_epoch // 2), "resume": False, "output_dir": None}
        values |= {"dataset": samples.name, "data_dir": self.choice.data_dir}
        values["cpu"] = self.config.cpu or settings.cpu
        return replace(settings, **values), samples

    def affordable(self, settings: TrainConfig) -> int:
        """Updates an epoch that a training can have to be watched in reasonable time."""
        trial, samples = self.shortened(settings, 2)
        one = reference.Reference(trial, samples.train.images, samples.train.labels)
        begin = time.perf_counter()
        one.gradient(0, 0)
        longest = max(self.supervisor.gather(time.perf_counter() - begin))
        return max(FEWEST, min(MOST, int(min(PATIENCE, self.config.deadline / 8) / longest)))

    def run(self, line: str, title: str, settings: TrainConfig, samples: DataSet, **options: Any) -> Watch:
        """Watch a training on all processes; a failure that is not that of all ends it all in its line."""
        steps = settings.epochs * math.ceil(len(samples.train) / settings.batch_size)
        self.result.say(f"....  {title}: train.py, {steps} updates at most")
        self.supervisor.begin(line, title, *([AGREE] if line == "stop" else []))
        folder = self.folder / title.replace(" ", "-")
        settings = settings if settings.output_dir else replace(settings, output_dir=folder)
        watch = Watch(settings, samples, TOLERANCE, **options)

        def note(text: str) -> None:
            self.supervisor.note = f"{title}, {text}"
            if line == "initial weights":
                self.supervisor.line = watch.seen.at

        watch.note = note
        seen = watch.train()
        self.supervisor.catch_signals()
        self.seen[title] = [Seen(**it) for it in self.supervisor.gather(asdict(seen), error=seen.error)]
        errors = {rank: it.error for rank, it in enumerate(self.seen[title]) if it.error}
        own = {rank: error for rank, error in errors.items() if not is_lost_connection(error)}
        if own != errors or len(errors) not in (0, self.supervisor.world):  # it did not fail on all alike
            rank, error = next(iter((own or errors).items()))
            line = self.seen[title][rank].at if line == "initial weights" else line
            self.result.add(Check(line, False, f"{title}: {self.on(rank)}: {error}", NOT_ALL))
            raise Over
        return watch

    def compared(self, kind: str, advice: str) -> Check:
        """A line: that what processes saw of this kind differs from the reference by no more than rounding."""
        ended = self.trouble(kind)
        most, faults = 0.0, list[tuple[int, str]]()
        for title, all_seen in self.seen.items():
            for rank, seen in enumerate(all_seen):
                found, update = seen.apart.get(kind, (0.0, 0))
                most = max(most, found)
                if not found <= TOLERANCE:
                    what = f"by {found:.1e}" if math.isfinite(found) else "and is no finite number"
                    faults.append(
                        (update, f"{title}: {self.on(rank)} differs from one process's {what}, first at update")
                    )
        first, text = min(faults, default=(0, ""), key=lambda fault: fault[0])
        failing = f"{text} {first}" if faults else ""
        updates = sum(all_seen[0].left for all_seen in self.seen.values())
        right = f"differs from one process's by {most:.0e} at most, {updates} updates (float64)"
        return Check(kind, not failing and not ended, failing or ended or right, advice)

    def trouble(self, line: str) -> str:
        """How a training ended that came to grief at what this line is about, in words."""
        for title, (first, *_) in self.seen.items():
            if first.error and first.at == line:
                return f"{title}, after update {first.left}: {first.error}"
        return ""

    def check_samples(self, trainings: dict[str, tuple[TrainConfig, DataSet]]) -> Check:
        """Every sample once an epoch, and global batches as those of one process."""
        faults: list[str] = []
        for title, (settings, samples) in trainings.items():
            if title not in self.seen:
                continue
            faults += [f"{title}: {fault}" for fault in wrong_samples(self.seen[title], settings, len(samples.train))]
        advice = (
            "do not pass the loader to accelerator.prepare, and give all processes the same --seed and --batch-size"
        )
        right = "each once an epoch, in the batches of one process"
        return Check("samples", not faults, "; ".join(faults[:2]) or right, advice)

    def why_gradient(self, trainings: dict[str, tuple[TrainConfig, DataSet]]) -> str:
        """What to do about a wrong gradient, by trials: without options, in equal shares, with each option alone."""
        title = next(t for t in self.seen if any(s.apart.get("gradient", (0, 0))[0] > TOLERANCE for s in self.seen[t]))
        (settings, samples), seen = trainings[title], self.seen[title]
        at = min(12, *(it.apart["gradient"][1] for it in seen if it.apart["gradient"][0] > TOLERANCE), 12)
        off: dict[str, Any] = {
            name: getattr(TrainConfig(), name) for name in (*OPTIONS, "schedule", "weight_decay", "ema")
        }
        plain = replace(settings, **off)

        def wrong(settings: TrainConfig, samples: DataSet = samples, title: str = "plain") -> float:
            self.run("gradient", f"trial, {title}", settings, samples, enough=at)
            found = self.seen.pop(f"trial, {title}")
            bad = any(not it.apart.get("gradient", (math.inf, 0))[0] <= TOLERANCE for it in found)
            return max(it.rounding for it in found) if bad else 0.0

        if rounding := wrong(plain):
            world = self.supervisor.world
            batch = world * max(1, settings.batch_size // world)
            equal = replace(plain, batch_size=batch)
            even = cut(samples, len(samples.train) // batch * batch, TESTED)
            if world > 1 and len(even.train) and not wrong(equal, even, "equal shares"):
                return "only unequal shares are wrong: weigh a process's loss by its samples, not by processes"
            if rounding == math.inf:
                return "it is no number at that update: look at the loss and its gradient there, and for an overflow"
            if rounding < 5e-3:
                return (
                    f"it is rounded by {rounding:.0e} of itself, as bfloat16 is: exchange it in the weights' own dtype"
                )
            return "it is not the mean over the samples of the global batch: look at the loss, and at core/"
        flags: dict[str, list[str]] = {}
        for name, advice in OPTIONS.items():
            value = getattr(settings, name)
            if value != getattr(plain, name) and wrong(replace(plain, **{name: value}), title=name):
                flags.setdefault(advice, []).append(f"--{name.replace('_', '-')}")
        said = "; ".join(f"{' and '.join(names)} alone made it wrong: {advice}" for advice, names in flags.items())
        return said or "without options, and with each alone, it is right: look at how they work together"

    def check_test_count(self) -> Check:
        """The evaluation counts each test sample once and is that of one process."""
        self.supervisor.begin("test count")
        advice = "count by sample, without padding: the loader of the test set is not to be prepared either"
        torch.manual_seed(0)
        model, test = networks.build("mlp").double().to(self.accelerator.device), self.samples.test
        try:
            result = classify(self.accelerator, model, test, batch_size=BATCH - 1)
        except RuntimeError as error:
            self.supervisor.gather(0, error=str(error))
            return Check("test count", False, str(error), advice)
        with torch.no_grad():
            alone = int((model(test.images).argmax(dim=1) == test.labels).sum())
        found = [tuple(counts) for counts in self.supervisor.gather([result.correct, result.total, alone])]
        right = set(found) == {(alone, len(test), alone)}
        what = f"{result.correct} of {result.total} right, {alone} of {len(test)} alone"
        return Check("test count", right, what, advice)

    # -------------------------------------------------------------------------------------- checkpoint, resume, stop

    def going_on(self) -> None:
        """A training that is killed and one that is asked to stop, and what follows."""
        settings, samples = self.main
        every = settings.checkpoint_every
        killed = self.folder / "killed"
        watch = self.run(
            "checkpoint",
            "killed",
            replace(settings, output_dir=killed),
            samples,
            enough=every + min(2, every - 1),  # before the next one is due
            keep=(every,),
        )
        advice = "weights, optimizer and moving average of all processes must be in it, and the file system keep it"
        faults = self.read_back(watch.kept.get(every), killed, every)
        right = f"that of update {every}, written by one process, is what all of them held"
        self.result.add(Check("checkpoint", not faults, "; ".join(faults) or right, advice))
        going = self.continued(killed)
        self.supervisor.gather(0)
        resumed = self.run(
            "resume",
            "resumed",
            replace(settings, output_dir=going, resume=True),
            samples,
            reference=watch.kept.get(every),
        )
        self.result.add(self.check_resumed(resumed, every))
        self.result.add(self.check_stop())

    def read_back(self, expected: reference.Reference | None, folder: Path, update: int) -> list[str]:
        """What the newest checkpoint does not hold of what processes have."""
        faults, found = wrong_checkpoint(expected, folder, TOLERANCE) if expected else (["none was due"], 0)
        if found != update and not faults:
            faults.append(f"the newest is of update {found}, not of {update}")
        everywhere = self.supervisor.gather(faults)
        return [f"{self.on(rank)}: {'; '.join(each)}" for rank, each in enumerate(everywhere) if each][:2]

    def continued(self, folder: Path) -> Path:
        """A copy of a run's folder: that of a process that lives is locked."""
        copy = folder.with_name(f"{folder.name}-resumed")
        if self.accelerator.is_main_process:
            shutil.copytree(folder, copy)
        return copy

    def check_resumed(self, watch: Watch, update: int) -> Check:
        """What follows a checkpoint is what would have been."""
        words = {
            "resumed weights": "the weights are not those that were saved",
            "gradient": "the gradient is another",
            "update": "the update is another, so the optimizer's state is not what was saved",
            "schedule": "the learning rate is another",
            "moving average": "the moving average is not what was saved",
        }
        settings, samples = self.main
        faults = [f"{self.on(rank)}: {it.end}" for rank, it in enumerate(self.seen["resumed"]) if it.end != "done"]
        found: list[tuple[int, str]] = []
        for rank, seen in enumerate(self.seen["resumed"]):
            for kind, what in words.items():
                off, at = seen.apart.get(kind, (0.0, 0))
                if not off <= TOLERANCE:
                    found.append((at, f"{self.on(rank)}: {what}, by {off:.1e} at update {at}"))
        if found:  # the first: what comes after may follow from it, an end before its time, too
            faults.insert(0, min(found, key=lambda fault: fault[0])[1])
        faults += wrong_samples(self.seen["resumed"], settings, len(samples.train), update)
        wrong = wrong_figures(watch.lines, watch.folder, TOLERANCE)
        faults = faults or self.supervisor.gather(wrong)[0]
        right = f"after update {update} all processes went on as if nothing had been"
        advice = "every part of the state must be saved and given back to every process: Checkpoints and its parts"
        return Check("resume", not faults, "; ".join(faults[:2]) or right, advice)

    def check_stop(self) -> Check:
        """A request to one process lets all leave after the same update, with a checkpoint to go on from."""
        settings, samples = self.main
        folder, last = self.folder / "stopped", self.supervisor.world - 1
        ask = ASKED if self.supervisor.rank == last else None
        watch = self.run("stop", "stopped", replace(settings, output_dir=folder, checkpoint_every=0), samples, ask=ask)
        advice = AGREE
        seen = self.seen["stopped"]
        ends = Counter((it.end, it.left) for it in seen)
        left = seen[0].left
        if ends != {("stopped", left): len(seen)}:
            found = [f"{self.on(rank)} {it.end} after update {it.left}" for rank, it in enumerate(seen)]
            return Check(
                "stop", False, f"asked before update {ASKED + 1} of process {last}: " + "; ".join(found), advice
            )
        faults = self.read_back(watch.reference, folder, left)
        if not faults and self.supervisor.world > 1:
            self.result.say("....  going on from there: train.py on 1 process")
            self.supervisor.begin("stop", "going on from there on 1 process")
            faults = self.supervisor.gather(
                self.gone_on_alone(watch, folder) if self.accelerator.is_main_process else []
            )[0]
        right = f"asked on process {last}, all left after update {left}"
        right += ", and 1 process went on from there as all would have" if self.supervisor.world > 1 else ""
        return Check("stop", not faults, "; ".join(faults) or right, advice)

    def gone_on_alone(self, watch: Watch, folder: Path) -> list[str]:
        """What one process makes of a checkpoint of several otherwise than they would have, in words."""
        settings, samples = self.main
        going = replace(settings, output_dir=self.continued(folder), resume=True)
        asked = {"flags": as_flags(going), "samples": len(samples.train), "others": len(samples.test)}
        code = "from mnist_dist.tools.watched import alone; alone()"
        environment = program.unlaunched() | {"PYTHONPATH": os.fspath(Path(__file__).parents[2])}
        command = [sys.executable, "-c", code, json.dumps(asked)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:]
            return [f"1 process could not go on from there: {' '.join(said) or f'status {done.returncode}'}"]
        one, per_epoch = watch.reference, math.ceil(len(samples.train) / settings.batch_size)
        total = settings.epochs * per_epoch
        for update in range(one.updates, total):
            one.update(one.gradient(*divmod(update, per_epoch)), reference.rate(settings, update, total))
            one.follow()
        trained = weights.load_weights((going.output_dir or Path()) / weights.WEIGHTS)
        apart = difference(one.averaged or one.weights, trained)
        return [] if apart <= TOLERANCE else [f"1 process that goes on from there differs by {apart:.1e} in the end"]

    # ------------------------------------------------------------------------------------------------- what it costs

    def costs(self) -> None:
        """Precisions that the device offers, bits, links and speed."""
        self.supervisor.begin("mixed precision")
        train = cut(self.samples, 20 * PLAIN.batch_size, 1).train
        self.result.add(self.check_mixed_precision(train))
        if self.supervisor.world > 1:
            self.supervisor.begin("same bits", "comparing bits")
            self.result.add(self.check_bits(train))
            self.supervisor.begin("links", "measuring links")
            found = links.measure(self.accelerator, lambda: self.supervisor.gather(0))
            passed, detail = links.judge(self.supervisor.gather(found)[0], [it.node for it in self.result.processes])
            advice = "look at its cable, switch and network interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
            self.result.add(Check("links", True, detail, advice, slow=not passed))
        self.supervisor.begin("speed of each process", "measuring speed")
        self.result.add(self.measure(cut(self.samples, 3994, 1).train))
        self.result.say(throughput(self.result.measurements, self.supervisor.world))

    def check_mixed_precision(self, train: Split) -> Check:
        """A few updates in each precision that the device offers, on each process by itself."""
        device = self.accelerator.device.type
        offered = {"fp16": torch.float16} if device != "cpu" else {}
        offered |= {"bf16": torch.bfloat16}
        problems = []
        for name, dtype in offered.items():
            torch.manual_seed(0)
            model = networks.build("mlp").to(self.accelerator.device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            scaler = torch.amp.GradScaler(device, enabled=name == "fp16")
            losses = []
            for images, labels in zip(train.images.float().split(61), train.labels.split(61), strict=True):
                optimizer.zero_grad()
                with torch.autocast(device, dtype):
                    loss = F.cross_entropy(model(images), labels)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss.detach().float())
            broken = int((~torch.stack(losses).isfinite()).sum())
            if broken:
                where = self.on(self.supervisor.rank)
                problems.append(f"{broken} of {len(losses)} losses in {name} are not finite on {where}")
        problems = sum(self.supervisor.gather(problems), [])
        return Check(
            "mixed precision",
            not problems,
            "; ".join(problems) or f"finite losses in {' and '.join(offered)} on {device}",
            "use --mixed-precision no there",
        )

    def check_bits(self, train: Split) -> Check:
        """Whether float32 updates have the same bits on all processes together and on each of them alone."""
        threads, found = torch.get_num_threads(), []
        torch.set_num_threads(1)
        for who in (None, self.accelerator):
            torch.manual_seed(0)
            model = networks.build("mlp").to(self.accelerator.device)
            training = Training(self.accelerator, model, adam(model, PLAIN), loss_of(model, PLAIN))
            samples = train.images.float(), train.labels
            for batch in GlobalBatches(samples, PLAIN.batch_size, who, seed=0, virtual=self.supervisor.world).epoch():
                training.update(batch)
            found.append(weights.fingerprint(model.state_dict()))
        torch.set_num_threads(threads)
        alone, together = zip(*self.supervisor.gather(found), strict=True)
        common = Counter(alone).most_common(1)[0][0]
        odd = [self.on(rank) for rank, bits in enumerate(alone) if bits != common]
        detail = f"--virtual-processes {self.supervisor.world}: float32 weights have the same bits together and alone"
        if odd:
            detail = f"{', '.join(odd)}: even alone it has other bits than the others"
        elif set(together) != {common}:
            detail = "float32 weights have other bits together than alone"
        advice = "with --virtual-processes use one kind of CPU or GPU, and look at what differs in versions and threads"
        return Check("same bits", True, detail, advice, slow=bool(odd) or set(together) != {common})

    def measure(self, train: Split) -> Check:
        """Throughput together and alone, the all-reduce, and which process is the slowest."""
        accelerator, world, device = self.accelerator, self.supervisor.world, self.accelerator.device
        images = Split(train.images.float(), train.labels)
        torch.manual_seed(0)
        model, own = (networks.build("mlp").to(device) for _ in range(2))
        training = Training(accelerator, model, adam(model, PLAIN), loss_of(model, PLAIN))
        together = len(images) / fastest(training.update, self.batches_of(images, accelerator), device)
        # Alone, and then each process's own gradient, without a word to the others.
        optimizer, loss = adam(own, PLAIN), loss_of(own, PLAIN)

        def calculate(batch: Batch) -> None:
            optimizer.zero_grad()
            (loss(own, batch) / batch.size).backward()

        def update(batch: Batch) -> None:
            calculate(batch)
            optimizer.step()

        alone = together
        if world > 1:
            first = accelerator.is_main_process
            alone = len(images) / fastest(update, self.batches_of(images), device) if first else 0.0
            alone = self.supervisor.gather(alone)[0]
        self.supervisor.gather(0)  # all begin at once
        batch = next(self.batches_of(images).epoch())
        times = self.supervisor.gather(links.average_seconds(lambda: calculate(batch), device))
        self.result.measurements = {
            "samples_per_second": together,
            "samples_per_second_alone": alone,
            "efficiency": together / alone / world,
            **(links.all_reduce(accelerator, self.supervisor.gather) if world > 1 else {}),
        }
        slowest, typical = max(range(world), key=times.__getitem__), statistics.median_low(times)
        share = times[slowest] / typical
        return Check(
            "speed of each process",
            True,
            f"the slowest, {self.on(slowest)}, takes {share:.2f} times the median, {1e6 * typical:,.0f} us a batch",
            f"all wait for it: look what else runs beside {self.on(slowest)}, and at its clock, threads and cooling",
            slow=not share <= SLOW,
        )

    def batches_of(self, split: Split, accelerator: Accelerator | None = None) -> GlobalBatches:
        """Batches to measure with."""
        return GlobalBatches(split.tensors, PLAIN.batch_size, accelerator, seed=0)


def fastest(update: Callable[[Batch], object], batches: GlobalBatches, device: torch.device) -> float:
    """The seconds of the faster of two epochs, after one to warm up."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for batch in batches.epoch():
            update(batch)
        links.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def throughput(speeds: dict[str, float], world: int) -> str:
    """What was measured, in words, and whether more processes are worth it."""
    together, alone = speeds["samples_per_second"], speeds["samples_per_second_alone"]
    lines = f"\ntraining: {together:,.0f} samples/s on {world} process(es)"
    if world > 1:
        lines += f", {alone:,.0f} on 1: efficiency {100 * speeds['efficiency']:.0f}%"
        lines += f"\nall-reduce: {1e6 * speeds['all_reduce_seconds']:,.0f} us for one number, "
        lines += f"{speeds['all_reduce_bytes_per_second'] / 1e9:.2f} GB/s for {links.BYTES // 2**20} MiB"
        if together < alone:
            few = f"with batches of {PLAIN.batch_size}: use one, or larger batches"
            lines += f"\n{world} processes are slower than one {few}"
    return lines
