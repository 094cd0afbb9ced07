"""Is this distributed set-up right? It trains on all processes and alone, and compares."""

import hashlib
import platform
import shutil
import signal
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mnist_dist.core import Batch, Checkpoints, GlobalBatches, Training, UserError, stream
from mnist_dist.core.checkpoints import newest_checkpoint
from mnist_dist.core.errors import explain
from mnist_dist.core.processes import broadcast
from mnist_dist.core.stopping import SIGNALS
from mnist_dist.run import launch, weights
from mnist_dist.run.files import write_json
from mnist_dist.run.settings import TrainConfig
from mnist_dist.task import data, datasets, networks
from mnist_dist.task.data import Split
from mnist_dist.task.evaluation import BATCH, classify
from mnist_dist.task.objective import adam, loss_of, schedule
from mnist_dist.task.settings import DataConfig, require

# The training that is done twice: 264 updates, few enough samples for the 5,000 digits. A prime batch, so that hardly
# any number of processes shares it evenly, and a smaller last one; pieces; a schedule that moves with every update.
SETTINGS = TrainConfig(
    batch_size=61,
    epochs=4,
    lr=0.003,
    schedule="one-cycle",
    gradient_accumulation_steps=2,
    dtype="float64",
)
SAMPLES = 65 * SETTINGS.batch_size + 29
TOLERANCE = 1e-9  # between float64 results: rounding gives 1e-14, the smallest mistake 1e-6
SLOW = 1.5  # times the median of all processes
VISIBLE_WITHIN = 10.0  # seconds, for a file on all nodes: network file systems cache folders for a few
BANDWIDTH_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Answer in under a minute whether this set-up trains right. Start it as you start the training."""

    processes: int = 0
    """How many processes are meant; 0: as many as there are."""
    cpu: bool = False
    """Force the CPU."""
    output_dir: Path = Path("runs")
    """Where runs go; what is written there must be seen by all nodes, and is removed again."""
    json: Path | None = None
    """Write the result for machines to this file, too."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(self.processes >= 0, "--processes", self.processes, "a number of processes, or 0")
        writable = self.json is None or (self.json.parent.is_dir() and not self.json.is_dir())
        require(writable, "--json", self.json, "a file in a folder that exists")


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was checked.
        passed: whether it is right.
        detail: what was found.
        advice: what to do if it is not.
    """

    name: str
    passed: bool
    detail: str
    advice: str


@dataclass(frozen=True)
class Process:
    """What a process says of itself.

    Attributes:
        gpu: the UUID of its GPU, empty on a CPU.
        gpus: how many it sees.
        code: digest of this package's source.
        data: digest of the data files, or why they could not be read.
    """

    rank: int
    node: str
    device: str
    gpu: str
    gpus: int
    backend: str
    threads: int
    versions: str
    code: str
    data: str


@dataclass(frozen=True)
class Answer:
    """The result, the same on all processes.

    Attributes:
        checks: the lines of the table.
        processes: all of them; none if they could not be connected.
        measurements: in seconds, samples a second and bytes a second; none if not everything was compared.
    """

    checks: list[Check]
    processes: list[Process] = field(default_factory=list)
    measurements: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that did not pass."""
        return [check.name for check in self.checks if not check.passed]

    def __str__(self) -> str:
        """What a person reads at a glance."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{'PASS' if check.passed else 'FAIL'}  {check.name:{width}}  {check.detail}")
            if not check.passed:
                lines.append(f"      {'':{width}}  -> {check.advice}")
        found = self.measurements
        if not found:
            return "\n".join([*lines, "", "the other checks compare what must be right first, and were not made"])
        lines.append(f"\ntraining: {found['samples_per_second']:,.0f} samples/s on {len(self.processes)} process(es)")
        if len(self.processes) > 1:
            lines[-1] += f", {found['samples_per_second_alone']:,.0f} on 1: efficiency {100 * found['efficiency']:.0f}%"
            lines.append(
                f"all-reduce: {1e6 * found['all_reduce_seconds']:,.0f} us for one number, "
                f"{found['all_reduce_bytes_per_second'] / 1e9:.2f} GB/s for {BANDWIDTH_BYTES // 2**20} MiB"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """What a program reads."""
        return {"passed": not self.failed} | asdict(self)


def main(config: Config) -> None:
    """Print whether this distributed set-up is right.

    Raises:
        UserError: it is not; names the lines that fail.
    """
    begin = time.perf_counter()
    result = answer(config)
    if launch.is_first():
        print(result)
        if config.json:
            write_json(config.json, result.as_json())
    if result.failed:
        raise UserError(f"this set-up is not right: {', '.join(result.failed)} failed")
    if launch.is_first():
        print(f"\nthis set-up trains right ({time.perf_counter() - begin:.0f} s)")


def answer(config: Config) -> Answer:
    """Check all that must be right for training on the processes that there are. All of them call it alike.

    What must be equal before anything can be compared comes first, and if it is not, the rest is not done.
    """
    try:
        accelerator = launch.start(config.cpu, mixed_precision="no")
    except UserError as error:
        return Answer([Check("start", False, "the processes are not connected", explain(error))])
    samples, fingerprint = obtain(accelerator, config)
    processes = [Process(**facts) for facts in gather_object([asdict(introduce(accelerator, fingerprint))])]
    checks = [check_processes(processes, config, launch.describe(accelerator)), *check_equal(processes)]
    if samples is None or not all(check.passed for check in checks):
        return Answer(checks, processes)
    train = Split(samples.train.images[:SAMPLES], samples.train.labels[:SAMPLES]).to(accelerator.device)
    checks += [check_samples(accelerator, train), check_shared_folder(accelerator, config.output_dir)]
    if not all(check.passed for check in checks):
        return Answer(checks, processes)
    checks.append(check_gradient(accelerator, train))
    checks += check_training(accelerator, train, config.output_dir)
    checks.append(check_test_count(accelerator, samples.test.to(accelerator.device)))
    checks.append(check_mixed_precision(accelerator, train))
    slowest, measurements = measure(accelerator, train, processes)
    return Answer([*checks, slowest], processes, measurements)


def obtain(accelerator: Accelerator, config: Config) -> tuple[data.DataSet | None, str]:
    """This process's own reading of the data, and its digest or why there is none."""
    choice: tuple[str, str] | None = None
    if accelerator.is_local_main_process:  # it fetches what is missing on its node
        try:
            choice = (datasets.find(config.dataset, config.data_dir)[0], "")
        except UserError as error:
            choice = ("", explain(error))
    choices = [choice for choice in gather_object([choice]) if choice]
    name, problem = max(choices, key=lambda choice: choice[1])  # a problem on any node before a name
    if problem:
        return None, problem
    try:
        samples = data.load(name, config.data_dir, dtype=torch.float64)
        return samples, samples.digest
    except (UserError, OSError) as error:
        return None, explain(error)


def introduce(accelerator: Accelerator, fingerprint: str) -> Process:
    """What this process says of itself."""
    device = accelerator.device
    properties: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    return Process(
        rank=accelerator.process_index,
        node=platform.node(),
        device=device.type,
        gpu=str(getattr(properties, "uuid", "")),
        gpus=torch.cuda.device_count(),
        backend=dist.get_backend() if dist.is_initialized() else "none",
        threads=torch.get_num_threads(),
        versions=", ".join(f"{name} {version}" for name, version in launch.versions().items()),
        code=source.hexdigest(),
        data=fingerprint,
    )


# ------------------------------------------------------------------------------------- what must be equal or distinct


def check_processes(processes: list[Process], config: Config, set_up: str) -> Check:
    """As many as meant, each on a device of its own, all on the same kind."""
    nodes = Counter(process.node for process in processes)
    detail = f"{set_up}; " + ", ".join(f"{count} on {node}" for node, count in nodes.items())
    detail += f"; {processes[0].threads} thread(s) each"
    faults: list[str] = []
    if config.processes and len(processes) != config.processes:
        faults.append(
            f"{config.processes} processes were meant and {len(processes)} are connected: start them through torchrun, "
            "accelerate launch or slurm/train.sbatch"
        )
    shared = [gpu for gpu, count in Counter(p.gpu for p in processes if p.gpu).items() if count > 1]
    for gpu in shared:
        ranks = [process.rank for process in processes if process.gpu == gpu]
        faults.append(f"processes {ranks} share one GPU ({gpu}): start one process per GPU")
    devices = Counter(process.device for process in processes)
    if len(devices) > 1:
        rare = min(devices, key=lambda device: devices[device])
        odd = [f"{process.rank} on {process.node}" for process in processes if process.device == rare]
        faults.append(f"process {', '.join(odd)} runs on {rare}: look at its driver and CUDA_VISIBLE_DEVICES")
    if not config.cpu and "cuda" not in devices and Path("/proc/driver/nvidia").exists():
        faults.append(
            "there is an NVIDIA driver and PyTorch sees no GPU: look at CUDA_VISIBLE_DEVICES and at the PyTorch build, "
            "or give --cpu"
        )
    return Check("processes", not faults, detail, "; ".join(faults))


def check_equal(processes: list[Process]) -> list[Check]:
    """The same versions, code and data everywhere."""
    return [
        equal("versions", processes, lambda process: process.versions, "install the same environment on every node"),
        equal("code", processes, lambda process: process.code, "put the same checkout on every node"),
        equal("data", processes, lambda process: process.data, "copy the same --data-dir to every node")
        if all(len(process.data.split()) == 1 for process in processes)
        else Check("data", False, "not read", next(p.data for p in processes if len(p.data.split()) > 1)),
    ]


def equal(name: str, processes: list[Process], value: Callable[[Process], str], advice: str) -> Check:
    """That all processes have the value that most have."""
    values = Counter(value(process) for process in processes)
    common = values.most_common(1)[0][0]
    odd = [f"{process.rank} on {process.node}" for process in processes if value(process) != common]
    shown = common if len(common) < 200 and " " in common else f"digest {common[:12]}"
    return Check(name, not odd, f"{shown} everywhere" if not odd else f"process {', '.join(odd)} differs", advice)


def check_samples(accelerator: Accelerator, train: Split) -> Check:
    """Every sample once an epoch, and global batches as those of one process, over two epochs."""
    dealt, faults = batches_of(accelerator, train), []
    for epoch in range(2):
        shares = gather_object([[batch.index.tolist() for batch in dealt.epoch(epoch)]])
        alone = reference_order(len(train), epoch)
        visits = Counter(index for share in shares for part in share for index in part)
        if sorted(visits.elements()) != list(range(len(train))):
            many = sum(count > 1 for count in visits.values())
            faults.append(
                f"epoch {epoch + 1} visits {many} samples twice or more and leaves {len(train) - len(visits)} out"
            )
            continue
        batches = [sorted(sum(parts, [])) for parts in zip(*shares, strict=False)]
        wrong = sum(
            one != sorted(other.tolist()) for one, other in zip(batches, alone.split(SETTINGS.batch_size), strict=False)
        )
        if wrong or len(batches) != len(alone.split(SETTINGS.batch_size)):
            faults.append(f"epoch {epoch + 1} has {wrong} batches of other samples than one process has")
    return Check(
        "samples",
        not faults,
        "; ".join(faults) or f"each of {len(train):,} once an epoch, in the batches of one process",
        "do not pass the loader to accelerator.prepare, and give all processes the same --seed and --batch-size",
    )


def batches_of(accelerator: Accelerator, split: Split) -> GlobalBatches:
    """The batches, as the training has them."""
    return GlobalBatches(split.tensors, SETTINGS.batch_size, accelerator, seed=SETTINGS.seed)


def reference_order(size: int, epoch: int) -> Tensor:
    """The order of one process, by the definition alone: a permutation that depends on seed and epoch."""
    return torch.randperm(size, generator=stream("order", SETTINGS.seed, epoch))


def check_shared_folder(accelerator: Accelerator, folder: Path) -> Check:
    """Whether what one process writes the others can read."""
    name = broadcast(f".verify-{uuid.uuid4().hex}")
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{accelerator.process_index}").write_text("here")
    except OSError as error:
        problem = explain(error)
    gather_object([0])  # all have written
    expected = {f"{name}-{rank}" for rank in range(accelerator.num_processes)}
    deadline = time.monotonic() + VISIBLE_WITHIN
    while not problem and not expected <= (found := {path.name for path in folder.glob(f"{name}-*")}):
        if time.monotonic() > deadline:
            problem = (
                f"process {accelerator.process_index} on {platform.node()} sees {len(found)} of {len(expected)} files"
            )
        time.sleep(0.1)
    problems = [problem for problem in gather_object([problem]) if problem]
    with suppress(OSError):
        (folder / f"{name}-{accelerator.process_index}").unlink()
    return Check(
        "shared folder",
        not problems,
        "; ".join(problems) or f"what is written to {folder} is there for all processes",
        "put --output-dir on a file system that all nodes see",
    )


# ------------------------------------------------------------------------------------- training, together and alone


def fresh_model() -> networks.MNISTNet:
    """The MLP in float64, with the same weights on every call."""
    torch.manual_seed(SETTINGS.seed)
    return networks.build("mlp", SETTINGS.hidden).double()


def mean_loss(model: nn.Module, train: Split, index: Tensor) -> Tensor:
    """What a single process minimises, in the plainest form."""
    return F.cross_entropy(model(train.images[index]), train.labels[index])


def compare(name: str, difference: Callable[[], float], advice: str, accelerator: Accelerator) -> Check:
    """A check that the first process makes: that something differs from its reference by no more than rounding."""
    found = broadcast(difference() if accelerator.is_main_process else 0.0)
    return Check(name, found <= TOLERANCE, f"differs from one process's by {found:.1e} at most (float64)", advice)


def check_gradient(accelerator: Accelerator, train: Split) -> Check:
    """One update's gradient against that of the whole batch in one process."""
    model = fresh_model()
    before = [parameter.detach().clone().to(accelerator.device) for parameter in model.parameters()]
    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=1.0), loss_of(model, SETTINGS))
    training.update(next(batches_of(accelerator, train).epoch()), pieces=SETTINGS.gradient_accumulation_steps)
    after = [parameter.detach() for parameter in model.parameters()]

    def difference() -> float:
        alone = fresh_model().to(accelerator.device)
        mean_loss(alone, train, reference_order(len(train), 0)[: SETTINGS.batch_size]).backward()
        return max(
            float((start - end - parameter.grad).abs().max())  # a step of plain descent at rate 1 is the gradient
            for start, end, parameter in zip(before, after, alone.parameters(), strict=True)
            if parameter.grad is not None
        )

    return compare("gradient", difference, "weigh a process's loss by its samples, not by processes", accelerator)


def check_training(accelerator: Accelerator, train: Split, root: Path) -> list[Check]:
    """A few hundred updates by the real loop, with a checkpoint, against a plain loop in one process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    folder = Path(broadcast(tempfile.mkdtemp(prefix=".verify-", dir=root) if accelerator.is_main_process else ""))
    try:
        model, rates = fresh_model(), []
        training = Training(accelerator, model, adam(model, SETTINGS), loss_of(model, SETTINGS))
        batches = batches_of(accelerator, train)
        rate = schedule(SETTINGS, SETTINGS.epochs * len(batches))
        checkpoints = Checkpoints(folder, training, {}, {})
        while training.progress.epoch < SETTINGS.epochs:
            for batch in training.epoch(batches):
                training.set_rate(rate(training.progress.global_step))
                training.update(batch, pieces=SETTINGS.gradient_accumulation_steps)
                rates.append(training.rate)
        checkpoints.save()
        expected = broadcast(train_alone(train) if accelerator.is_main_process else None)
        trained = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        steps = len(expected["rates"])
        return [
            compare(
                f"weights, {steps} updates",
                lambda: max(
                    float((trained[name] - tensor).abs().max()) for name, tensor in expected["weights"].items()
                ),
                "the processes do not make the update of one: look at the lines above, and at changes to core/",
                accelerator,
            ),
            compare(
                "schedule",
                lambda: (
                    max(abs(one - other) for one, other in zip(rates, expected["rates"], strict=True))
                    if len(rates) == steps
                    else float("inf")
                ),
                "the rate must move once an update, not once a process: do not prepare the scheduler",
                accelerator,
            ),
            check_checkpoint(accelerator, folder, trained),
        ]
    finally:
        for number, handler in handlers.items():  # the training's, which note a signal, are not for what follows
            signal.signal(number, handler)
        gather_object([0])  # nobody reads it any more
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def train_alone(train: Split) -> dict[str, Any]:
    """The same training in one process, written with nothing but PyTorch: final weights (on the CPU) and all rates."""
    model = fresh_model().to(train.images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.lr, weight_decay=0.0)
    steps = -(-len(train) // SETTINGS.batch_size) * SETTINGS.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SETTINGS.lr, total_steps=steps, cycle_momentum=False)
    rates = []
    for epoch in range(SETTINGS.epochs):
        for index in reference_order(len(train), epoch).split(SETTINGS.batch_size):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            mean_loss(model, train, index).backward()
            optimizer.step()
            if len(rates) < steps:
                schedule.step()
    return {"weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()}, "rates": rates}


def check_checkpoint(accelerator: Accelerator, folder: Path, trained: dict[str, Tensor]) -> Check:
    """What all wrote together one reads, and from it all go on with the same weights."""
    payload, warnings = newest_checkpoint(folder) if accelerator.is_main_process else (None, [])
    payload, warnings = broadcast((payload, warnings))
    read = weights.fingerprint(payload["parts"]["training"]["model"]) if payload else "none"
    digests = {weights.fingerprint(trained), read}
    different = len(set().union(*gather_object([digests])))
    world = accelerator.num_processes
    return Check(
        "checkpoint",
        different == 1,
        "; ".join(warnings)
        or f"written by {world}, read by 1 and given to {world}: "
        + ("the same weights" if different == 1 else f"{different} different weights"),
        "look at the file system under --output-dir, and whether the processes hold the same weights",
    )


def check_test_count(accelerator: Accelerator, test: Split) -> Check:
    """The evaluation counts each test sample once and is that of one process."""
    advice = "count by sample, without padding: the loader of the test set is not to be prepared either"
    model = fresh_model().to(accelerator.device)
    try:
        result = classify(accelerator, model, test, batch_size=BATCH - 1)
    except RuntimeError as error:
        return Check("test count", False, str(error), advice)
    with torch.no_grad():
        alone = int((model(test.images).argmax(dim=1) == test.labels).sum())
    found = gather_object([(result.correct, result.total)])
    right = set(found) == {(alone, len(test))}
    return Check("test count", right, f"{result.correct} of {result.total} right, {alone} of {len(test)} alone", advice)


def check_mixed_precision(accelerator: Accelerator, train: Split) -> Check:
    """A few updates in each precision that the device offers, on each process by itself."""
    device = accelerator.device.type
    problems, offered = (
        [],
        {"fp16": torch.float16, "bf16": torch.bfloat16} if device != "cpu" else {"bf16": torch.bfloat16},
    )
    for name, dtype in offered.items():
        model = fresh_model().float().to(accelerator.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler(device, enabled=name == "fp16")
        losses = []
        for index in reference_order(len(train), 0).split(SETTINGS.batch_size)[:20]:
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                loss = F.cross_entropy(model(train.images[index].float()), train.labels[index])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach().float())
        broken = int((~torch.stack(losses).isfinite()).sum())
        if broken:
            problems.append(f"{broken} of {len(losses)} losses in {name} are not finite on {platform.node()}")
    problems = sorted(set(sum(gather_object([problems]), [])))
    return Check(
        "mixed precision",
        not problems,
        "; ".join(problems) or f"finite losses in {' and '.join(offered)} on {device}",
        "use --mixed-precision no there",
    )


# ------------------------------------------------------------------------------------- how fast


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """How long each of so many calls took."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return times


def measure(accelerator: Accelerator, train: Split, processes: list[Process]) -> tuple[Check, dict[str, float]]:
    """Throughput together and alone, the all-reduce, and which process is the slowest."""
    device, world = accelerator.device, accelerator.num_processes
    images = Split(train.images.float(), train.labels)

    def throughput(update: Callable[[Batch], object], batches: GlobalBatches) -> float:
        """Samples a second over an epoch, after one to warm up."""

        def epoch() -> None:
            for batch in batches.epoch():
                update(batch)

        epoch()
        return len(images) / min(seconds(epoch, 2, device))

    model, own = fresh_model().float().to(device), fresh_model().float().to(device)
    training = Training(accelerator, model, adam(model, SETTINGS), loss_of(model, SETTINGS))
    together, alone = throughput(training.update, batches_of(accelerator, images)), 0.0
    # Alone, and then each process's own share, without a word to the others.
    optimizer, loss = adam(own, SETTINGS), loss_of(own, SETTINGS)

    def update_alone(batch: Batch) -> None:
        optimizer.zero_grad()
        (loss(own, batch) / batch.size).backward()
        optimizer.step()

    if accelerator.is_main_process:
        alone = throughput(update_alone, GlobalBatches(images.tensors, SETTINGS.batch_size, seed=SETTINGS.seed))
    alone = broadcast(alone)
    index = torch.arange(SETTINGS.batch_size, device=device)
    times = gather_object([statistics.median(seconds(lambda: mean_loss(own, images, index).backward(), 100, device))])
    measurements = {
        "samples_per_second": together,
        "samples_per_second_alone": alone,
        "efficiency": together / alone / world,
    }
    if world > 1:
        small, large = torch.ones(1, device=device), torch.ones(BANDWIDTH_BYTES // 4, device=device)
        latency = statistics.median(seconds(lambda: dist.all_reduce(small), 200, device))
        duration = statistics.median(seconds(lambda: dist.all_reduce(large), 5, device))
        measurements |= {
            "all_reduce_seconds": max(gather_object([latency])),
            "all_reduce_bytes_per_second": BANDWIDTH_BYTES / max(gather_object([duration])),
        }
    slowest = max(range(world), key=times.__getitem__)
    typical = statistics.median_low(times)
    where = f"process {slowest} on {processes[slowest].node}"
    return Check(
        "speed of each process",
        times[slowest] <= SLOW * typical,
        f"the slowest, {where}, takes {times[slowest] / typical:.2f} times the median, {1e6 * typical:,.0f} us a batch",
        f"all wait for the slowest: look what else runs beside {where}, and at its clock, threads and cooling",
    ), measurements
