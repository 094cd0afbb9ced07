"""Parts of a training, each on one or several processes: evaluations, layers that thaw, what differs, checkpoints."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from exact_cases import BATCH, SAMPLES, SEED, VOCABULARY, Rows, mlp, numbers, tokens
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import ExactAccelerator, MeanLoss, Stopped
from mnist_dist.core.checkpointing import Checkpoints


def accelerator(**options: Any) -> ExactAccelerator:
    """One on the CPU."""
    return ExactAccelerator(cpu=True, seed=SEED, **options)


# Evaluations: any dtype and trailing shape, and structures and objects.
class Answer(NamedTuple):
    """What a network says of some rows."""

    scores: Tensor
    best: Tensor


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda scores: scores,
    "float32": lambda scores: scores.float(),
    "bfloat16": lambda scores: scores.bfloat16(),
    "bool": lambda scores: scores[:, 0] > scores[:, 1],
    "int64": lambda scores: scores.argmax(dim=1),
    "uint8": lambda scores: (scores > 0).to(torch.uint8),
    "deep": lambda scores: torch.stack([scores, -scores], dim=1)[:, None],
    "not contiguous": lambda scores: scores.t().contiguous().t(),
    "dict": lambda scores: {"scores": scores, "best": {"class": scores.argmax(dim=1)}},
    "tuple": lambda scores: (scores, scores.argmax(dim=1)),
    "named tuple": lambda scores: Answer(scores, scores.argmax(dim=1)),
    "objects": lambda scores: [f"class {best}" for best in scores.argmax(dim=1).tolist()],
    "objects that hold tensors": lambda scores: [{"best": best} for best in scores.argmax(dim=1)],
}


def joined(parts: list[Any]) -> Any:
    """The rows of several batches, in the structure of each, but plain."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return [joined(list(those)) for those in zip(*parts, strict=True)]
    return [row for part in parts for row in part]


def evaluations() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """The answers of a network in all these forms, with the network and its inputs.

    The last batch has one row, so that all processes but one have none.
    """
    torch.manual_seed(SEED)
    model = tokens().network()
    inputs = numbers(SAMPLES, 4, below=VOCABULARY)
    exact = accelerator()
    prepared, loader = exact.prepare(model, DataLoader(Rows(inputs), BATCH))
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        parts = []
        with torch.no_grad():
            for rows in loader:
                rows_of_all = exact.gather_for_metrics(
                    form(prepared(rows)), use_gather_object="hold" in name
                )
                parts.append(rows_of_all)
        found[name] = joined(parts)
    return model, inputs, found


# What begins to train later.
def thawed(**options: Any) -> dict[str, Tensor]:
    """A layer that is frozen when training begins, and then is not; and one that is added to the optimizer later."""
    torch.manual_seed(SEED)
    case = tokens()
    exact = accelerator(**options)
    model = case.network()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    prepared, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(TensorDataset(*case.data), BATCH)
    )
    for epoch in range(3):
        if epoch == 1:
            model[2].weight.requires_grad_()
        if epoch == 2:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.2})
        for inputs, labels in loader:
            exact.backward(F.cross_entropy(prepared(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Two networks, each with an optimizer of its own.
def adversaries(exact: ExactAccelerator | None) -> dict[str, Tensor]:
    """One makes rows, and the other tells them from real ones; without an accelerator in plain PyTorch."""
    torch.manual_seed(SEED)
    maker, judge = mlp(3, 5, 6), mlp(6, 5, 1)
    of_maker = torch.optim.SGD(maker.parameters(), lr=0.1, momentum=0.9)
    of_judge = torch.optim.SGD(judge.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(numbers(SAMPLES, 6), numbers(SAMPLES, 3)), BATCH)
    networks = maker, judge
    backward = torch.Tensor.backward
    if exact:
        backward = exact.backward
        maker, judge, of_maker, of_judge, loader = exact.prepare(
            maker, judge, of_maker, of_judge, loader
        )
    for real, noise in loader:
        made = maker(noise)
        of_judge.zero_grad()
        backward(F.softplus(judge(made.detach())).mean() + F.softplus(-judge(real)).mean())
        of_judge.step()
        of_maker.zero_grad()
        backward(F.softplus(-judge(made)).mean())
        of_maker.step()
    weights = networks[0].state_dict() | {
        f"judge {name}": each for name, each in networks[1].state_dict().items()
    }
    return {name: tensor.clone() for name, tensor in weights.items()}


class Sum(nn.Module):
    """Adds two parameters, such as embeddings of a token's place and kind: autograd gives them one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(numbers(6))
        self.other = nn.Parameter(numbers(6))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * (self.one[None] + self.other[None])


def change_of_shared_gradients(clip_norm: float = 0.0, **options: Any) -> Tensor:
    """What one update changes its two parameters by."""
    exact = accelerator(**options)
    model = Sum()
    begun = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(Rows(numbers(20, 6)), 20)
    )
    for rows in loader:
        exact.backward(prepared(rows).sum(dim=1).mean())
        if clip_norm:
            exact.clip_grad_norm_(prepared.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach() - begun


SHARED = {
    "plain": {},
    "virtual processes": {"virtual_processes": 7},
    "micro-batches": {"micro_batches": 3},
    "clipped": {"clip_norm": 0.01},
    "ddp": {"ddp": True},
}


def shared_gradients() -> dict[str, Tensor]:
    """The change of an update in all these ways."""
    return {name: change_of_shared_gradients(**options) for name, options in SHARED.items()}


# What differs between processes.
def other_data() -> None:
    """The same files, listed in another order."""
    exact = accelerator()
    data = numbers(SAMPLES, 6).roll(exact.process_index, 0)
    for _ in exact.prepare(DataLoader(TensorDataset(data), BATCH)):
        pass


def other_buffers() -> None:
    """A projection of each process's own."""
    exact = accelerator()
    model = mlp(6, 8, 3)
    model.register_buffer("projection", torch.full((3,), float(exact.process_index)))
    exact.prepare(model)


def other_weights() -> None:
    """Nobody has called `set_seed`."""
    exact = accelerator()
    torch.manual_seed(exact.process_index)
    exact.prepare(mlp(6, 8, 3))


def other_order() -> None:
    """Parameters as a set, whose order depends on where they are in memory, gives them to the optimizer."""
    exact = accelerator()
    model = mlp(6, 5, 1)
    turned = [*model.parameters()][:: -1 if exact.process_index else 1]
    exact.prepare(model, torch.optim.SGD(turned, lr=0.1))


def weights_that_part() -> None:
    """Something changes the weights by itself on each process."""
    exact = accelerator()
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(Rows(numbers(20, 6)), 7))
    for rows in loader:
        exact.backward(model(rows).mean())
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model[0].weight[0, 0] += 0.01 * exact.process_index


def rows_of_two_shapes() -> None:
    """What one process gathers has another width."""
    exact = accelerator()
    for (rows,) in exact.prepare(DataLoader(TensorDataset(numbers(20, 6)), 14)):
        exact.gather_for_metrics(torch.zeros(len(rows), 1 + exact.process_index))


def rows_of_one_process_are_too_few() -> None:
    """One process has left some out."""
    exact = accelerator()
    for (rows,) in exact.prepare(DataLoader(TensorDataset(numbers(20, 6)), 14)):
        exact.gather_for_metrics(rows[exact.process_index :])


PARTED: dict[str, Callable[[], None]] = {
    "data": other_data,
    "buffers": other_buffers,
    "weights": other_weights,
    "order": other_order,
    "parted": weights_that_part,
    "shapes": rows_of_two_shapes,
    "rows": rows_of_one_process_are_too_few,
}
SAID = {
    "data": "in the same order) differ between processes 0 and 1",
    "buffers": "was built?) differ",
    "weights": "was built?) differ",
    "order": "(as indices into the model's) differ between processes 0 and 1 ([[0, 1, 2, 3]] against",
    "parted": "processes no longer have the same weights after update 3; the last good checkpoint is none",
    "shapes": "pad them to one shape",
    "rows": "pass one row for each sample",
}


# Checkpoints: asked to stop, and gone on from a checkpoint within an epoch.
class Notes:
    """Plain values that survive a stop."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"epoch": 0, "seen": [], "losses": []}

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


class Run:
    """A float32 training with dropout, a schedule, an average of its weights and checkpoints."""

    EPOCHS = 4
    EVERY = 3

    def __init__(self, run: Path) -> None:
        torch.manual_seed(SEED)
        self.accelerator = accelerator(micro_batches=2)
        self.model = mlp(6, 8, 3).float()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        scheduler = ExponentialLR(optimizer, 0.95)
        loader = DataLoader(
            TensorDataset(numbers(SAMPLES, 6).float(), numbers(SAMPLES, below=3)), 4, shuffle=True
        )
        prepared = self.accelerator.prepare(self.model, optimizer, loader, scheduler)
        self.prepared, self.optimizer, self.loader, self.scheduler = prepared
        self.average = AveragedModel(self.model)
        self.mean_loss = MeanLoss(self.accelerator)
        self.notes = Notes()
        self.accelerator.register_for_checkpointing(self.average, self.mean_loss, self.notes)
        self.checkpoints = Checkpoints(self.accelerator, run, {"--seed": SEED}, self.EVERY)

    def restore_run(self, signal_at: int = 0) -> None:
        """Train to the end, or until one process is sent a signal."""
        values = self.notes.values
        while values["epoch"] < self.EPOCHS:
            for inputs, labels in self.loader:
                micro_batch = self.accelerator.micro_batch
                kept = micro_batch.rand("dropout", 6) >= 0.25
                loss = F.cross_entropy(self.prepared(inputs * kept), labels)
                self.accelerator.backward(loss)
                self.mean_loss.update(loss)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                values["seen"].append(micro_batch.index.tolist())
                if micro_batch.closes_update:
                    self.average.update_parameters(self.model)
                    if (
                        self.accelerator.updates == signal_at
                        and self.accelerator.process_index == 0
                    ):
                        os.kill(os.getpid(), signal.SIGTERM)
                self.checkpoints.after_update()
            values["losses"].append(self.mean_loss.compute())
            values["epoch"] += 1
            self.mean_loss.reset()
            self.checkpoints.save(last=values["epoch"] == self.EPOCHS)

    def state(self) -> dict[str, Any]:
        """All that it has come to."""
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.scheduler.last_epoch,
            "average": self.average.state_dict(),
            "notes": self.notes.values,
        }


def stop_and_resume(folder: Path) -> dict[str, Any]:
    """A run that is never stopped, and the same stopped by a signal to one process, killed, and resumed."""
    whole = Run(folder / "whole")
    whole.restore_run()
    first = Run(folder / "stopped")
    stopped_at = 0
    try:
        with patch("mnist_dist.core.stopping.MOST_SECONDS", 0):  # ask after every update
            first.restore_run(signal_at=5)
    except Stopped:
        stopped_at = first.accelerator.updates
    if (
        whole.accelerator.is_main_process
    ):  # as if it had been killed: back to the checkpoint before, within an epoch
        shutil.rmtree(max((folder / "stopped" / "checkpoints").glob("step-*")))
    whole.accelerator.wait_for_everyone()
    second = Run(folder / "stopped")
    assert second.checkpoints.resume()
    resumed_at = second.accelerator.updates
    within = second.loader.state_dict()["batch"]
    second.restore_run()
    return {
        "whole": whole.state(),
        "resumed": second.state(),
        "stopped_at": gather_object([stopped_at]),
        "resumed_at": resumed_at,
        "within": within,
    }
