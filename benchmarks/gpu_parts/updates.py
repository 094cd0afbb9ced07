"""What an update takes: ours, Accelerate's documented loop, and a hand-written CUDA graph."""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from common import random_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gpu_parts.asking import (
    Asked,
    Result,
    make_training,
    microseconds,
    show,
    synchronize,
)
from mnist_dist.digits.config import TrainConfig
from mnist_dist.task import networks

MODELS: tuple[networks.Name, ...] = ("mlp", "cnn")
BATCHES = (64, 512)
PRECISIONS: dict[str, Literal["no", "bf16"]] = {  # and Accelerate's word for each
    "float32": "no",
    "bf16": "bf16",
}
SAMPLES = 60_000
WARM_UP = 20
ROUNDS = 3
UPDATES = 200  # a round
LOOPS = 3  # ours, Accelerate's, and the hand-written one
KERNELS_OF = 20  # updates in which kernels are counted
SETTINGS = len(MODELS) * len(BATCHES) * len(PRECISIONS)
OF_A_LOOP = WARM_UP + ROUNDS * UPDATES
ALL_UPDATES = SETTINGS * (LOOPS * OF_A_LOOP + 2 * KERNELS_OF)
MakeUpdates = Callable[[int], object]


def updates(asked: Asked) -> Result:
    """Microseconds of an update, beside a hand-written CUDA graph and Accelerate's loop."""
    found: Result = {}
    batches = BATCHES[:1] if asked.cpu else BATCHES
    for model, size in itertools.product(MODELS, batches):
        for precision, mixed in PRECISIONS.items():
            config = TrainConfig(model=model, batch_size=size, mixed_precision=mixed)
            row = ours(asked, config)
            row["us, hand-written graph"] = timed(asked, hand_written(asked, config))
            row["us, Accelerate's loop"] = timed(asked, documented(asked, config))
            for other in ("hand-written graph", "Accelerate's loop"):
                row[f"ours to {other}"] = row["us"] / row[f"us, {other}"]
            found[f"{model}, batch {size}, {precision}"] = row
            show(found)
    return found


def timed(asked: Asked, make_updates: MakeUpdates) -> float:
    """The microseconds of an update."""
    if asked.cpu:
        return microseconds(make_updates, asked, warm_up=1, rounds=1, updates=5)
    return microseconds(
        make_updates,
        asked,
        warm_up=WARM_UP,
        rounds=ROUNDS,
        updates=UPDATES,
    )


def samples_of(asked: Asked, config: TrainConfig) -> int:
    """How many samples there are to train on."""
    return 60 * config.batch_size if asked.cpu else SAMPLES


def ours(asked: Asked, config: TrainConfig) -> dict[str, float]:
    """Microseconds, kernels and peak memory of an update of ours."""
    training = make_training(asked, config, samples_of(asked, config))
    if asked.cpu:
        return {"us": timed(asked, training.make_updates)}
    torch.cuda.reset_peak_memory_stats()
    found = {"us": timed(asked, training.make_updates)}
    found["MiB"] = torch.cuda.max_memory_allocated() / 2**20
    found["kernels"] = kernels(training.make_updates)
    return found


def kernels(make_updates: MakeUpdates) -> float:
    """Kernels and copies that the GPU is given in an update: what twice as many updates add."""
    few = count_kernels(make_updates, KERNELS_OF // 2)
    many = count_kernels(make_updates, KERNELS_OF)
    return (many - few) / (KERNELS_OF - KERNELS_OF // 2)


def count_kernels(make_updates: MakeUpdates, count: int) -> int:
    """Kernels and copies that the GPU is given in so many updates and an epoch's beginning."""
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        make_updates(count)
        torch.cuda.synchronize()
    on_gpu = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(on_gpu)


def documented(asked: Asked, config: TrainConfig) -> MakeUpdates:
    """The loop of Accelerate's documentation, with a loader over tensors on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=asked.cpu, mixed_precision=config.mixed_precision)
    network = networks.build(config.model)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    samples = random_digits(samples_of(asked, config))
    loader = DataLoader(samples, batch_size=config.batch_size, shuffle=True)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)

    def make_updates(count: int) -> None:
        for images, labels in itertools.islice(loader, count):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()

    return make_updates


class HandWritten:
    """An update as one would write it by hand: the order, a cursor, and all else on the GPU.

    Args:
        samples: images and labels, on the device.
        config: the network, the batch size and the precision.
        graph: whether the optimizer is to be recorded in a CUDA graph.
    """

    def __init__(
        self,
        samples: TensorDataset,
        config: TrainConfig,
        *,
        graph: bool,
    ) -> None:
        self.images, self.labels = samples.tensors
        device = self.images.device
        self.device_type = device.type
        self.size = config.batch_size
        self.is_bf16 = config.mixed_precision == "bf16"
        self.network = networks.build(config.model).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.lr,
            fused=True,
            capturable=graph,
        )
        self.order = torch.randperm(len(self.labels)).to(device)
        self.places = torch.arange(self.size, device=device)
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)

    def update(self) -> Tensor:
        """Make an update, and return its loss."""
        index = self.order[(self.places + self.cursor) % len(self.order)]
        with torch.autocast(
            self.device_type,
            torch.bfloat16,
            enabled=self.is_bf16,
            cache_enabled=False,  # what a graph has cached would be gone when it is replayed
        ):
            logits = self.network(self.images[index])
        loss = F.cross_entropy(logits.float(), self.labels[index])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.cursor.add_(self.size)
        return loss

    def make_updates(self, count: int) -> None:
        """Make so many updates, one operation after the other."""
        for _ in range(count):
            self.update()

    def record(self) -> MakeUpdates:
        """Record an update as a CUDA graph, and return what launches it so many times."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self.make_updates(3)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.update()

        def make_updates(count: int) -> None:
            for _ in range(count):
                graph.replay()

        return make_updates


def hand_written(asked: Asked, config: TrainConfig) -> MakeUpdates:
    """A hand-written loop; on a GPU one CUDA graph an update."""
    device = "cpu" if asked.cpu else "cuda"
    samples = random_digits(samples_of(asked, config), device)
    loop = HandWritten(samples, config, graph=not asked.cpu)
    if asked.cpu:
        return loop.make_updates
    made = loop.record()
    synchronize(asked)
    return made
