"""The last lines of `verify`: precisions that the device offers, bits, links and speed."""

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator, UserError
from mnist_dist.run import launch, weights
from mnist_dist.task import networks
from mnist_dist.task.data import Split
from mnist_dist.task.objective import make_optimizer
from mnist_dist.tools.verify import links
from mnist_dist.tools.verify.answer import Check
from mnist_dist.tools.verify.session import Session
from mnist_dist.tools.verify.setup import most_common
from mnist_dist.tools.verify.trainings import PLAIN
from mnist_dist.tools.verify.watched.samples import cut

SLOW = 1.5  # times the median of all processes
ROUNDS = 4  # of a second each, in all of which a process must be slow: others may be busy for some
BATCHES = 20  # of a few updates
MEASURED = 3994  # samples to measure with
MIB = 2**20
GB = 1e9


def check_costs(session: Session) -> None:
    """Make the lines about what this set-up costs."""
    supervisor = session.supervisor
    answer = session.answer
    train = in_float32(session, BATCHES * PLAIN.batch_size)
    supervisor.begin("mixed precision")
    answer.add(check_mixed_precision(session, train))
    if supervisor.world > 1:
        supervisor.begin("same bits", "comparing bits")
        answer.add(check_bits(session, train))
        supervisor.begin("links", "measuring links")
        answer.add(check_links(session))
    supervisor.begin("speed of each process", "measuring speed")
    answer.add(check_speed(session, in_float32(session, MEASURED)))
    answer.say(throughput(answer.measurements, supervisor.world))


def in_float32(session: Session, samples: int) -> Split:
    """Return the first samples to train on, in float32."""
    train = cut(session.samples, samples, 1).train
    return Split(train.images.float(), train.labels)


# -------------------------------------------------------------------------------------- precisions


def check_mixed_precision(session: Session, train: Split) -> Check:
    """Check a few updates in each precision that the device offers, on each process by itself."""
    device = session.accelerator.device
    offered = {"bf16": torch.bfloat16}
    if device.type != "cpu":
        offered = {"fp16": torch.float16, **offered}
    problems = []
    for name, dtype in offered.items():
        losses = train_in(dtype, device, train)
        broken = int((~losses.isfinite()).sum())
        if broken:
            count = f"{broken} of {len(losses)} losses in {name}"
            problems.append(f"{count} are not finite on {session.on_this()}")
    found = [text for problems in session.supervisor.gather(problems) for text in problems]
    right = f"finite losses in {' and '.join(offered)} on {device.type}"
    advice = "use --mixed-precision no there"
    return Check("mixed precision", not found, "; ".join(found) or right, advice)


def train_in(dtype: torch.dtype, device: torch.device, train: Split) -> Tensor:
    """Train a little in mixed precision, as plain PyTorch does.

    Returns:
        The losses, float32.
    """
    torch.manual_seed(0)
    model = networks.build("mlp").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    losses = []
    images = train.images.split(PLAIN.batch_size)
    labels = train.labels.split(PLAIN.batch_size)
    for some_images, some_labels in zip(images, labels, strict=True):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype):
            loss = F.cross_entropy(model(some_images), some_labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach().float())
    return torch.stack(losses)


# -------------------------------------------------------------------------------------------- bits


def check_bits(session: Session, train: Split) -> Check:
    """Check whether float32 updates have the same bits together and on each process alone."""
    world = session.supervisor.world
    threads = torch.get_num_threads()
    try:
        alone = bits_of_training(session, train, is_alone=True)
        together = bits_of_training(session, train, is_alone=False)
        detail = which_bits_differ(session, alone, together)
    except UserError as error:  # on all processes
        detail = str(error)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    right = f"--virtual-processes {world}: float32 weights have the same bits together and alone"
    advice = "with --virtual-processes, use one kind of CPU or GPU, "
    advice += "and look at what differs in versions and threads"
    return Check("same bits", True, detail or right, advice, slow=bool(detail))


def bits_of_training(session: Session, train: Split, is_alone: bool) -> str:
    """Train with a virtual process for each process.

    Args:
        session: the processes.
        train: what to train on.
        is_alone: whether every process works on all shares, as if it were the only one.

    Returns:
        The fingerprint of the weights.

    Raises:
        UserError: on every process, if they differ in what decides bits.
    """
    kind = AloneAccelerator if is_alone else ExactAccelerator
    accelerator = new_accelerator(session, kind, virtual_processes=session.supervisor.world)
    torch.manual_seed(0)
    network = networks.build("mlp").to(accelerator.device)
    train_epoch = training_loop(accelerator, network, train)
    train_epoch()
    return weights.fingerprint(network.state_dict())


def which_bits_differ(session: Session, alone: str, together: str) -> str:
    """Return who has other bits, in words; empty if nobody has."""
    all_alone = session.supervisor.gather(alone)
    all_together = session.supervisor.gather(together)
    common = most_common(all_alone)
    odd = [session.on(rank) for rank, bits in enumerate(all_alone) if bits != common]
    if odd:
        return f"{', '.join(odd)}: even alone its bits differ from those of the others"
    if set(all_together) != {common}:
        return "float32 weights have different bits together and alone"
    return ""


class AloneAccelerator(ExactAccelerator):
    """Works as if its process were the only one; what processes compare is still compared."""

    @property
    def num_processes(self) -> int:
        """One."""
        return 1

    @property
    def process_index(self) -> int:
        """The first."""
        return 0


def new_accelerator(
    session: Session,
    kind: type[ExactAccelerator] = ExactAccelerator,
    virtual_processes: int = 0,
) -> ExactAccelerator:
    """Make an accelerator of the same processes, whatever the launcher's environment asks for."""
    return kind(
        cpu=session.accelerator.device.type == "cpu",
        mixed_precision="no",
        dynamo_plugin=launch.dynamo_plugin(None),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        virtual_processes=virtual_processes,
    )


def training_loop(
    accelerator: ExactAccelerator,
    network: nn.Module,
    train: Split,
) -> Callable[[], None]:
    """Prepare a plain training.

    Returns:
        Trains for an epoch.
    """
    loader = DataLoader(
        TensorDataset(train.images, train.labels),
        PLAIN.batch_size,
        shuffle=True,
    )
    model, optimizer, loader = accelerator.prepare(network, make_optimizer(network, PLAIN), loader)

    def train_epoch() -> None:
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return train_epoch


# ------------------------------------------------------------------------------- links and speed


def check_links(session: Session) -> Check:
    """Check whether no link is far slower than the others."""
    supervisor = session.supervisor
    found = links.measure(session.accelerator, lambda: supervisor.gather(0))
    of_first_process, *_ = supervisor.gather(found)
    nodes = [process.node for process in session.answer.processes]
    passed, detail = links.judge(of_first_process, nodes)
    advice = "look at its cable, switch and network interface "
    advice += "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
    return Check("links", True, detail, advice, slow=not passed)


def check_speed(session: Session, train: Split) -> Check:
    """Measure the throughput together and alone, and check which process is the slowest."""
    world = session.supervisor.world
    device = session.accelerator.device
    torch.manual_seed(0)
    train_together = training_loop(
        new_accelerator(session),
        networks.build("mlp").to(device),
        train,
    )
    together = len(train) / fastest(train_together, device)
    alone = together
    figures: dict[str, float] = {}
    if world > 1:
        alone, *_ = session.supervisor.gather(speed_alone(session, train))
        figures = links.all_reduce(session.accelerator, session.supervisor.gather)
    session.answer.measurements = {
        "samples_per_second": together,
        "samples_per_second_alone": alone,
        "efficiency": together / alone / world,
        **figures,
    }
    session.supervisor.gather(0)  # all begin at once
    return who_is_slow(session, train)


def fastest(train_epoch: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the faster of two epochs, after one to warm up."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        train_epoch()
        links.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def speed_alone(session: Session, train: Split) -> float:
    """Return the samples per second of a plain training on the first process; 0 on others."""
    if not session.accelerator.is_main_process:
        return 0.0
    device = session.accelerator.device
    model = networks.build("mlp").to(device)
    optimizer = make_optimizer(model, PLAIN)

    def train_epoch() -> None:
        order = torch.randperm(len(train)).to(device)
        for numbers in order.split(PLAIN.batch_size):
            images = train.images.index_select(0, numbers)
            labels = train.labels.index_select(0, numbers)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return len(train) / fastest(train_epoch, device)


def who_is_slow(session: Session, train: Split) -> Check:
    """Compare how long each process takes for a gradient, without a word to the others."""
    device = session.accelerator.device
    model = networks.build("mlp").to(device)
    images = train.images[: PLAIN.batch_size]
    labels = train.labels[: PLAIN.batch_size]

    def calculate() -> None:
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad()

    own = math.inf
    share = math.inf
    for _ in range(ROUNDS):
        own = min(own, links.average_seconds(calculate, device))
        times = session.supervisor.gather(own)
        slowest = times.index(max(times))
        typical = statistics.median_low(times)
        share = times[slowest] / typical
        if share <= SLOW:
            break
    who = session.on(slowest)
    detail = (
        f"the slowest, {who}, takes {share:.2f} times the median, {1e6 * typical:,.0f} us a batch"
    )
    advice = f"all wait for it: look at what else runs beside {who}, "
    advice += "and at its clock, threads and cooling"
    return Check("speed of each process", True, detail, advice, slow=not share <= SLOW)


def throughput(speeds: dict[str, float], world: int) -> str:
    """Return what was measured, in words, and whether more processes are worth it."""
    together = speeds["samples_per_second"]
    alone = speeds["samples_per_second_alone"]
    lines = f"\ntraining: {together:,.0f} samples/s on {world} process(es)"
    if world == 1:
        return lines
    lines += f", {alone:,.0f} on 1: efficiency {100 * speeds['efficiency']:.0f}%"
    microseconds = 1e6 * speeds["all_reduce_seconds"]
    bandwidth = speeds["all_reduce_bytes_per_second"] / GB
    lines += f"\nall-reduce: {microseconds:,.0f} us for one number, "
    lines += f"{bandwidth:.2f} GB/s for {links.BYTES // MIB} MiB"
    if together < alone:
        advice = "use one, or larger batches"
        lines += f"\n{world} processes are slower than one with batches of "
        lines += f"{PLAIN.batch_size}: {advice}"
    return lines
