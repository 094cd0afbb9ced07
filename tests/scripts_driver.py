"""Scripts of the kinds that Accelerate's examples are, on several processes; see test_scripts.py.

    python tests/scripts_driver.py FOLDER scripts|layers W ...

runs each script, or a training for each layer of layer_cases.py, on W processes, without and with virtual processes,
for each W, and writes what it ends with, or what it is refused with, to FOLDER/W.pt.
"""

import gc
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.local_sgd import LocalSGD
from accelerate.tracking import GeneralTracker
from accelerate.utils import find_executable_batch_size
from forked import each_in_turn
from layer_cases import train_all
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from mnist_dist.core import ExactAccelerator, MeanLoss, UserError

SAMPLES = 23  # with batches of 6 the last one has five
BATCH = 6
SHARES = 4
STOPS, STOPPED_AT = (
    11,
    2,
)  # a sample in the second batch of an epoch, in a share that is not the last
VOCABULARY = 7
NONE = -100
OPTIONS: dict[str, dict[str, Any]] = {"alone": {}, "virtual": {"virtual_processes": SHARES}}

Weights = dict[str, Tensor]
Script = Callable[[dict[str, Any], Path], Any]


def numbers(*shape: int) -> Tensor:
    """Standard normal float64 numbers, always the same ones for a shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def data(samples: int = SAMPLES) -> TensorDataset:
    """Rows of three classes, with their numbers."""
    return TensorDataset(numbers(samples, 5), torch.arange(samples) % 3, torch.arange(samples))


def classifier() -> nn.Module:
    """(n, 5) to (n, 3), float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def make(options: dict[str, Any], **more: Any) -> ExactAccelerator:
    """An accelerator on the CPU."""
    return ExactAccelerator(cpu=True, **options, **more)


def prepare(accelerator: ExactAccelerator, model: nn.Module, *loaders: DataLoader) -> Any:
    """The model with its optimizer, and loaders."""
    return accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.02), *loaders)


def loader(batch_size: int = BATCH) -> DataLoader:
    """Of all rows, in an order of their own in each epoch."""
    return DataLoader(data(), batch_size, shuffle=True)


def weights(model: nn.Module) -> Weights:
    """A copy."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def step(accelerator: ExactAccelerator, model: Any, optimizer: Any, batch: list[Tensor]) -> Tensor:
    """One micro-batch; its loss."""
    loss = F.cross_entropy(model(batch[0]), batch[1])
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def early_stopping(options: dict[str, Any], _: Path) -> Weights:
    """Stop when the mean loss has not fallen."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    mean_loss = MeanLoss(accelerator)
    lowest = float("inf")
    for _epoch in range(20):
        for batch in train:
            mean_loss.update(step(accelerator, model, optimizer, batch))
            if accelerator.sync_gradients:
                found = mean_loss.compute_recent()
                if found > lowest:
                    accelerator.set_trigger()
                lowest = min(lowest, found)
            if accelerator.check_trigger():
                return weights(model) | {"updates": torch.tensor(accelerator.updates)}
    raise AssertionError("the loss has never risen")


def stopped_by_one_row(options: dict[str, Any], _: Path) -> Weights:
    """Stop after the batch with a certain sample, which only one process has, perhaps in its first share."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for batch in train:
        step(accelerator, model, optimizer, batch)
        if STOPS in batch[2].tolist():
            accelerator.set_trigger()
        if accelerator.check_trigger():
            break
    return weights(model) | {"updates": torch.tensor(accelerator.updates)}


def cross_validation(options: dict[str, Any], _: Path) -> Weights:
    """Two folds, each with a model and loaders of its own, after which all memory is freed."""
    accelerator = make(options)
    result = {}
    for fold in range(2):
        rows = data()
        train = DataLoader(Subset(rows, range(fold, SAMPLES, 2)), BATCH, shuffle=True)
        test = DataLoader(Subset(rows, range(1 - fold, SAMPLES, 2)), BATCH)
        model, optimizer, train, test = prepare(accelerator, classifier(), train, test)
        for batch in train:
            step(accelerator, model, optimizer, batch)
        for inputs, _labels, which in test:
            with torch.no_grad():
                scores, which = accelerator.gather_for_metrics((model(inputs), which))
            for number, row in zip(which.tolist(), scores, strict=True):
                result[f"{fold}: {number}"] = row
        result |= {f"{fold}: {name}": tensor for name, tensor in weights(model).items()}
        model, optimizer = accelerator.free_memory(model, optimizer)
    return result


def memory(options: dict[str, Any], _: Path) -> Weights:
    """The batch size is halved until it fits, and batches are accumulated instead."""
    accelerator = make(options)

    @find_executable_batch_size(starting_batch_size=BATCH + 1)
    def train_with(batch_size: int) -> Weights:
        accelerator.free_memory()
        accelerator.gradient_accumulation_steps = 2
        model, optimizer, train = prepare(accelerator, classifier(), loader(batch_size))
        if batch_size > BATCH:
            raise RuntimeError("CUDA out of memory.")
        for batch in train:
            with accelerator.accumulate(model):
                step(accelerator, model, optimizer, batch)
        return weights(model) | {"updates": torch.tensor(accelerator.updates)}

    return train_with()


def metrics(options: dict[str, Any], _: Path) -> Weights:
    """`gather`, where processes have different numbers of rows."""
    accelerator = make(options)
    model, _optimizer, test = prepare(accelerator, classifier(), loader())
    found: list[tuple[int, int]] = []
    for inputs, _labels, which in test:
        with torch.no_grad():
            guesses = model(inputs).argmax(dim=1)
        answers = accelerator.gather({"which": which, "guesses": guesses})
        found += zip(answers["which"].tolist(), answers["guesses"].tolist(), strict=True)
    return {"answers": torch.tensor(sorted(found))}


class Lines(GeneralTracker):
    """Keeps what is logged."""

    name = "lines"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> Any:
        return self.lines

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.lines.append((None, values))

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self.lines.append((step, values))


def tracking(options: dict[str, Any], _: Path) -> Weights:
    """A line an epoch."""
    tracker = Lines()
    accelerator = make(options, log_with=[tracker])
    accelerator.init_trackers("project", {"lr": 0.02})
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    mean_loss = MeanLoss(accelerator)
    for epoch in range(2):
        mean_loss.reset()
        for batch in train:
            mean_loss.update(step(accelerator, model, optimizer, batch))
        accelerator.log({"loss": mean_loss.compute()}, step=epoch)
    logged = [values["loss"] for number, values in tracker.lines if number is not None]
    return weights(model) | ({"logged": torch.tensor(logged)} if logged else {})


class Speaker(nn.Module):
    """(n, T) tokens to (n, T, VOCABULARY) scores; fails without rows, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.double()

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        heads = self.embed(tokens).cumsum(dim=1).view(*tokens.shape, -1, 4)
        return {"scores": self.head(heads.tanh().flatten(2))}


def texts() -> DataLoader:
    """Of sequences of different lengths; the last batch has one."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (19, 8), generator=generator)
    lengths = torch.randint(1, 8, (19, 1), generator=generator)
    targets = tokens[:, 1:].masked_fill(torch.arange(7) >= lengths, NONE)
    return DataLoader(TensorDataset(tokens[:, :-1], targets), BATCH, shuffle=True)


def autoregressive(options: dict[str, Any], _: Path) -> Weights:
    """The iterator is driven by hand, and the loss is a mean over tokens."""
    torch.manual_seed(0)
    accelerator = make(options, gradient_accumulation_steps=2)
    model, optimizer, train = prepare(accelerator, Speaker(), texts())
    for _epoch in range(2):
        iterator = iter(train)
        while (batch := next(iterator, None)) is not None:
            inputs, targets = batch
            scores = model(inputs)["scores"].transpose(1, 2)
            loss = F.cross_entropy(scores, targets, ignore_index=NONE)
            accelerator.backward(loss, terms=(targets != NONE).sum())
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    found = []
    with torch.no_grad():
        for inputs, _targets in train:
            found.append(accelerator.gather_for_metrics(model(inputs)["scores"]))
    return weights(model) | {"highest score": torch.cat(found).max()}


def checkpointing(options: dict[str, Any], folder: Path) -> Weights:
    """Saved in the second epoch, and gone on from there by `load_state` and `skip_first_batches`."""
    shutil.rmtree(folder / "state", ignore_errors=True)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for _epoch in range(2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
            if accelerator.sync_gradients and accelerator.updates == 6:
                accelerator.save_state(folder / "state")
    whole = weights(model)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    accelerator.load_state(folder / "state")
    batches = train
    if not accelerator.several_micro_batches:  # otherwise that is refused, see below
        batches = accelerator.skip_first_batches(train, 6 - len(train))
    for batch in batches:
        step(accelerator, model, optimizer, batch)
    resumed = weights(model)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    return resumed


def profiled(options: dict[str, Any], _: Path) -> Weights:
    """Profiled, epoch by epoch, and then not."""
    accelerator = make(options)
    torch.manual_seed(0)
    big = nn.Sequential(nn.Linear(5, 500), nn.Tanh(), nn.Linear(500, 3)).double()
    model, optimizer, train = prepare(accelerator, big, loader())
    for _epoch in range(2):
        with accelerator.profile():
            for batch in train:
                step(accelerator, model, optimizer, batch)
    for batch in train:
        step(accelerator, model, optimizer, batch)
    return weights(model)


SCRIPTS: dict[str, Script] = {
    "early stopping": early_stopping,
    "stopped by one row": stopped_by_one_row,
    "cross validation": cross_validation,
    "memory": memory,
    "metrics": metrics,
    "tracking": tracking,
    "autoregressive": autoregressive,
    "checkpointing": checkpointing,
    "profiled": profiled,
}


def batches_before_backward(options: dict[str, Any], _: Path) -> None:
    """All batches of an update are fetched before the first one is used."""
    accelerator = make(options, gradient_accumulation_steps=2)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    iterator = iter(train)
    for batch in [next(iterator), next(iterator)]:
        step(accelerator, model, optimizer, batch)


def accumulation_by_counting(options: dict[str, Any], _: Path) -> None:
    """Steps are made where a number of batches has been counted."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for number, (inputs, labels, _numbers) in enumerate(train):
        accelerator.backward(F.cross_entropy(model(inputs), labels) / 3)
        if number % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()


def micro_batches_skipped(options: dict[str, Any], folder: Path) -> None:
    """What was counted in the loop is skipped behind `load_state`."""
    shutil.rmtree(folder / "counted", ignore_errors=True)
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for number, batch in enumerate(train):
        step(accelerator, model, optimizer, batch)
        if number == 2:
            accelerator.save_state(folder / "counted")
            break
    accelerator.load_state(folder / "counted")
    accelerator.skip_first_batches(train, 3)


def update_declared_complete(options: dict[str, Any], _: Path) -> None:
    """The loop says when gradients are complete, as transformers' Trainer does."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    for batch in train:
        accelerator.gradient_state._set_sync_gradients(True)
        step(accelerator, model, optimizer, batch)


def local_sgd(options: dict[str, Any], _: Path) -> None:
    """Processes that train by themselves for some steps."""
    accelerator = make(options)
    model, optimizer, train = prepare(accelerator, classifier(), loader())
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=2) as averaging:
        for batch in train:
            step(accelerator, model, optimizer, batch)
            averaging.step()


def shapes_that_differ(options: dict[str, Any], _: Path) -> None:
    """Each process gathers tensors of a width of its own."""
    accelerator = make(options)
    for _batch in accelerator.prepare(loader()):
        accelerator.gather(torch.zeros(2, 1 + accelerator.process_index))


QUESTIONABLE: dict[str, Script] = {
    "batches before backward": batches_before_backward,
    "accumulation by counting": accumulation_by_counting,
    "micro-batches skipped": micro_batches_skipped,
    "update declared complete": update_declared_complete,
    "local SGD": local_sgd,
    "shapes that differ": shapes_that_differ,
}


def answer(script: Script, options: dict[str, Any], folder: Path) -> str:
    """What it is refused with; empty if it is not."""
    try:
        script(options, folder)
    except UserError as error:
        return str(error)
    return ""


def run_all(what: str, folder: Path, processes: int) -> None:
    """Run all scripts, or all layers, on the processes that there are."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for kind, options in OPTIONS.items():
        if what == "layers":
            results |= {f"{kind}: {name}": found for name, found in train_all(options).items()}
            continue
        for name, script in SCRIPTS.items():
            results[f"{kind}: {name}"] = script(options, folder)
        for name, script in QUESTIONABLE.items():
            results[f"{kind}: {name}"] = answer(script, options, folder)
    if ExactAccelerator(cpu=True).is_main_process:
        torch.save(results, folder / f"{processes}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def main(folder: Path, what: str, counts: list[int]) -> None:
    """One set of processes after the other, so that everything is imported once."""
    gc.freeze()  # `free_memory` collects garbage, and need not look through all that is imported
    stages = [(processes, processes) for processes in counts]
    each_in_turn(stages, lambda processes: run_all(what, folder, processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]])
