"""Scripts of the kinds that Accelerate's examples are: each is the same training on any number of processes."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.tracking import GeneralTracker
from accelerate.utils import find_executable_batch_size
from small_training import (
    BATCH,
    SAMPLES,
    Script,
    Weights,
    classifier,
    data,
    loader,
    make,
    prepare,
    step,
    weights,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from mnist_dist.core import MeanLoss

# A sample in the second batch of an epoch, in a share that is not the last.
STOPS = 11
STOPPED_AT = 2
VOCABULARY = 7
NONE = -100


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
