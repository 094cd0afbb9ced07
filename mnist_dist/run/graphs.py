"""Whole updates as CUDA graphs: what an update asks of the GPU is recorded, and from then on launched as one."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mnist_dist.core.batches import Batch
from mnist_dist.core.processes import UserError
from mnist_dist.core.training import Loss, Training

ALIVE: weakref.WeakSet["GraphTraining"] = weakref.WeakSet()
EAGER = 3  # updates of each kind before one is recorded: they make what libraries keep for later, such as workspaces
DEVICES = ("cuda",)


class Recorder:
    """Does work on a stream of its own, and records it there; all graphs share their memory."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Any]) -> Any:
        """The work's result, which it computes now."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            made = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return made

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What lets the GPU do the work, and the tensors that its result will be in. Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # In the mode "global" NCCL's own thread could not look after its messages meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            made = work()
        return graph.replay, made


@dataclass(eq=False)
class Kind:
    """Updates that ask the same of the GPU but for the samples, the random numbers, and the rates."""

    batch: Batch  # the latest; once there is a graph, what that reads
    eager: int = 0  # updates before there was a graph
    launch: Callable[[], None] | None = None
    made: Any = None  # by the graph: the losses of the shares (shares,), and the terms of the batch

    def record(self, recorder: Recorder, work: Callable[[Batch], Any]) -> Callable[[], None]:
        """Make the graph; returns `launch`."""
        like, drawn = self.batch, {key: numbers.clone() for key, numbers in self.batch.drawn.items()}
        index, positions = like.index.clone(), like.positions.clone()
        self.batch = replace(like, index=index, positions=positions, terms=like.terms + 0, drawn=drawn)
        self.launch, self.made = recorder.record(lambda: work(replace(self.batch)))  # whose terms a loss may set
        return self.launch

    def read(self, batch: Batch) -> None:
        """Let the graph find another batch."""
        self.batch.index.copy_(batch.index)
        self.batch.positions.copy_(batch.positions)
        if isinstance(self.batch.terms, Tensor) and isinstance(batch.terms, Tensor):
            self.batch.terms.copy_(batch.terms)
        for (purpose, shape, normal), numbers in self.batch.drawn.items():
            batch.rand(purpose, *shape, normal=normal)
            numbers.copy_(batch.drawn[purpose, shape, normal])


class GraphTraining(Training):
    """A `Training` by Adam or AdamW whose updates are CUDA graphs, after the first few of each kind: of each number of
    samples in the process's shares and in the batch, and each way to update. Several processes record together (NCCL
    asks for that), so there only batches that they share evenly become graphs.

    It has the bits of updates without graphs, if these, too, take their learning rates in float32. What the loss and
    the optimizer's hooks do in Python is done as a graph is recorded, and not again: they may count nothing there. Nor
    does a graph learn of other settings of the optimizer than the rates.

    Raises:
        UserError: the device has no graphs, or they do not suit the arithmetic.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss
    ) -> None:
        super().__init__(accelerator, model, optimizer, loss)
        if accelerator.device.type not in DEVICES:
            raise UserError("--cuda-graph is for NVIDIA GPUs: leave it out")
        if accelerator.scaler or any(each.dtype == torch.float64 for each in model.parameters()):
            raise UserError("--cuda-graph is for float32 and bf16, not for fp16 or float64: leave it out")
        self.recorder, self.kinds = Recorder(), dict[Any, Kind]()
        self.told = [math.nan for _ in self.rates]  # the rates that the device knows
        self.there = torch.zeros(len(self.rates), device=accelerator.device).unbind()
        ALIVE.add(self)

    def work(self, batch: Batch, pieces: int, clip_norm: float) -> tuple[list[Tensor], int | Tensor]:
        """As `Training.work`, by a graph if there is one for this kind of update."""
        for number, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.told[number]:
                self.told[number] = group["lr"]
                self.there[number].fill_(group["lr"])
        # With other parameters in training `gradients` is another; `kinds` holds it and the data, so no id comes again.
        lengths, terms = tuple(batch.lengths), isinstance(batch.terms, Tensor)
        kind = self.kinds.setdefault(
            (self.gradients, id(batch.source), lengths, batch.size, terms, pieces, clip_norm), Kind(batch)
        )
        uneven = batch.sharing.world > 1 and batch.size % batch.sharing.shares > 0
        if kind.eager < EAGER or uneven:
            kind.eager, kind.batch = kind.eager + 1, replace(batch)
            losses, terms = self.recorder.run(lambda: self.with_rates_there(batch, pieces, clip_norm))
            return list(losses), terms
        launch = kind.launch or kind.record(
            self.recorder, lambda static: self.with_rates_there(static, pieces, clip_norm, recorded=True)
        )
        kind.read(batch)
        launch()
        losses, terms = kind.made  # until the next launch
        return list(losses.clone()), terms.clone() if isinstance(terms, Tensor) else terms

    def with_rates_there(
        self, batch: Batch, pieces: int, clip_norm: float, recorded: bool = False
    ) -> tuple[Tensor, int | Tensor]:
        """`Training.work` with learning rates that are on the device, so a graph finds new ones there."""
        groups, rates = self.optimizer.param_groups, [group["lr"] for group in self.optimizer.param_groups]
        for group, there in zip(groups, self.there, strict=True):
            group.update(lr=there, capturable=recorded)  # without that Adam refuses to be recorded
        try:
            losses, terms = super().work(batch, pieces, clip_norm)
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group.update(lr=rate, capturable=False)
        return torch.stack(losses), terms

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Training.load_state_dict`: the optimizer has other tensors then, which no graph knows."""
        super().load_state_dict(state)
        self.recorder, self.kinds = Recorder(), {}


def forget_all() -> None:
    """Let go of all graphs: NCCL waits without end for those that hold its messages (pytorch #115388)."""
    for training in ALIVE:
        training.kinds.clear()
