"""Train a small transformer on the characters of a text, the same on any number of processes.

python examples/characters.py                             Python's own help texts
python examples/characters.py --text FILE                 a text of yours, in UTF-8
torchrun --nproc-per-node 2 examples/characters.py --cpu --dropout 0.1 --virtual-processes 8

It is the loop of Accelerate's documentation. A sample is a line. Lines differ in length, so the
loss is the mean over the characters of a global batch, however many of them a process has:
`accelerator.backward` is told how many.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a clone that is not installed

from mnist_dist.core import (
    Checkpoints,
    ExactAccelerator,
    ExactDataLoader,
    MeanLoss,
    all_or_none,
    announce,
    as_stored,
    check_same_across_processes,
    generator_for,
)
from mnist_dist.run import command_line, folder, launch, settings
from mnist_dist.run.progress import progress_bar
from mnist_dist.run.stopwatch import Stopwatch
from mnist_dist.run.tracking import Tracker
from mnist_dist.run.weights import fingerprint, save_weights

LONGEST = 64  # characters, after which a line is cut
NONE = -1  # padding after the end of a line, ignored by the loss
HELP_LINES = 4000  # of Python's help texts
HELD_OUT = 6  # one of so many lines is held out, to test on

# The transformer.
LAYERS = 2
HEADS = 4
WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Config(settings.ScriptConfig):
    """Train a character-level language model, the same on any number of processes."""

    text: Path | None = None
    """A text; default: 4,000 lines of Python's help."""
    dropout: float = 0.0
    """Dropout probability; requires --virtual-processes."""

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        possible = 0 <= self.dropout < 1
        settings.require(possible, "--dropout", self.dropout, "a share from 0 to below 1")
        if self.dropout and not self.virtual_processes:
            raise settings.UsageError(
                f"--dropout {self.dropout} draws random numbers for each process's own lines, so "
                "the trained model would depend on the number of processes: add "
                "--virtual-processes 8, or leave it out"
            )


# The data.


def read(path: Path | None) -> tuple[Tensor, str]:
    """Read the different lines of a text.

    Args:
        path: the text; None for Python's help.

    Returns:
        The lines (N, LONGEST + 2), int64, each a 0, its characters' numbers, a 0, and NONE from
        there on; and the alphabet, whose character 0 ends a line.

    Raises:
        UsageError: it is not in UTF-8, or too short.
    """
    lines = pieces_of_lines(text_of(path))
    different_lines = list(dict.fromkeys(lines))
    enough = len(different_lines) >= HELD_OUT
    settings.require(enough, "--text", path, "a text of 6 different lines, or more")
    characters = set("".join(different_lines))
    alphabet = "\n" + "".join(sorted(characters))
    numbers = {character: number for number, character in enumerate(alphabet)}
    rows = torch.full((len(different_lines), LONGEST + 2), NONE)
    for row, line in zip(rows, different_lines, strict=True):
        characters_of_line = [numbers[character] for character in line]
        row[: len(line) + 2] = torch.tensor([0, *characters_of_line, 0])
    return rows, alphabet


def text_of(path: Path | None) -> str:
    """The text in a file, or Python's help."""
    if path is None:
        help_lines = "\n".join(topics.values()).splitlines()
        return "\n".join(help_lines[:HELP_LINES])
    if path.exists() and not path.is_file():
        raise settings.UsageError(f"--text {path} is not a file: give a text in UTF-8")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        problem = f"--text {path} cannot be read ({error})"
        raise settings.UsageError(f"{problem}: give a text in UTF-8") from error


def pieces_of_lines(text: str) -> list[str]:
    """The lines of a text that are not blank, cut in pieces of at most LONGEST characters."""
    pieces = []
    for line in text.splitlines():
        line = line.strip()
        pieces += [line[start : start + LONGEST] for start in range(0, len(line), LONGEST)]
    return pieces


# The model.


class Transformer(nn.Module):
    """A causal language model: predicts the character that follows each character of a line.

    Args:
        characters: how many different ones there are.
        dropout: share of what the layers compute that is dropped in training.
    """

    def __init__(self, characters: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, WIDTH)
        self.place = nn.Embedding(LONGEST + 1, WIDTH)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            HEADS,
            dim_feedforward=4 * WIDTH,
            dropout=dropout,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, lines: Tensor) -> Tensor:
        """Predict the next characters.

        Args:
            lines: (N, T), the numbers of characters; NONE for none.

        Returns:
            (N, T, characters), logits of what follows each of them.
        """
        length = lines.shape[1]
        x = self.character(lines.clamp(min=0)) + self.place.weight[:length]
        x = self.dropout(x)
        after = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(diagonal=1)
        x = self.layers(x, mask=after, is_causal=True)
        return self.head(x)


def evaluate(
    accelerator: ExactAccelerator,
    network: nn.Module,
    loader: ExactDataLoader,
) -> dict[str, Any]:
    """The mean loss on the characters of the lines held out, and how many are guessed right."""
    losses: list[float] = []
    correct = 0
    total = 0
    with as_stored(network):
        for (lines,) in loader:
            logits = network(lines[:, :-1])
            wanted = lines[:, 1:]
            loss_of_each = F.cross_entropy(
                logits.transpose(1, 2),
                wanted,
                reduction="none",
                ignore_index=NONE,
            )
            loss_of_line = loss_of_each.sum(dim=1)
            right_in_line = (logits.argmax(dim=2) == wanted).sum(dim=1)
            characters_in_line = (wanted != NONE).sum(dim=1)
            of_all_lines = accelerator.gather_for_metrics(
                (loss_of_line, right_in_line, characters_in_line),
            )
            loss_of_line, right_in_line, characters_in_line = of_all_lines
            losses += loss_of_line.tolist()
            correct += int(right_in_line.sum())
            total += int(characters_in_line.sum())
    return {
        "test_loss": math.fsum(losses) / total,  # fsum's result does not depend on the order
        "test_accuracy": correct / total,
        "test_correct": correct,
        "test_total": total,
    }


def main() -> None:
    """Train, evaluate after every epoch, and leave the weights and the figures."""
    # The settings, the processes, and the text, on which all processes must agree.
    config: Config = command_line.parse(Config)
    dtype = getattr(torch, config.dtype)
    accelerator = launch.start(
        config.cpu,
        dtype=dtype,
        virtual_processes=config.virtual_processes,
        seed=config.seed,
    )
    with all_or_none():
        lines, alphabet = read(config.text)
    about = command_line.as_json(config) | {
        "alphabet": alphabet,
        "digest": fingerprint({"lines": lines}),
    }
    check_same_across_processes("the settings or texts", about)

    # A part of the lines is held out. The batch size is that of all processes together.
    order = torch.randperm(len(lines), generator=generator_for("held out", config.seed))
    lines = lines[order].to(accelerator.device)
    held_out = len(lines) // HELD_OUT
    train = TensorDataset(lines[held_out:])
    test = TensorDataset(lines[:held_out])
    train_loader = DataLoader(train, batch_size=config.batch_size, shuffle=True)
    test_loader = DataLoader(test, batch_size=100)

    # The model and its optimizer. The rate rises at first and then stays, so that a run may be
    # given more epochs later.
    torch.manual_seed(config.seed)
    network = Transformer(len(alphabet), config.dropout).to(accelerator.device, dtype)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        network,
        optimizer,
        train_loader,
        test_loader,
        scheduler,
    )

    # Open the run's folder, set up its tracker and checkpoints, and resume if asked to.
    run = folder.open_run(config.output_dir, "characters", config.resume, weights="model.pth")
    tracker = Tracker(accelerator, run, about)
    train_loss = MeanLoss(accelerator)
    stopwatch = Stopwatch()
    accelerator.register_for_checkpointing(tracker, train_loss, stopwatch)
    names = ["batch_size", "virtual_processes", "seed", "dtype", "dropout", "digest"]
    fixed = {name: about[name] for name in names} | accelerator.bits
    checkpoints = Checkpoints(accelerator, run.folder, fixed, config.checkpoint_every)
    folder.restore_run(run, checkpoints, train_loader, config.epochs)

    with tracker:
        for epoch in range(train_loader.next_epoch, config.epochs):
            stopwatch.start_epoch()
            model.train()
            title = f"epoch {epoch + 1}/{config.epochs}"
            for (batch,) in progress_bar(accelerator, train_loader, title):
                logits = model(batch[:, :-1])
                wanted = batch[:, 1:]
                # The mean over the characters, because lines differ in length.
                loss = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=NONE)
                characters = (wanted != NONE).sum()
                train_loss.update(loss, terms=characters)
                accelerator.backward(loss, terms=characters)
                learning_rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                checkpoints.after_update()

            line = {
                "epoch": epoch + 1,
                "global_step": accelerator.updates,
                "train_loss": train_loss.compute(),
                "learning_rate": learning_rate,
                "samples_per_second": len(train_loader.dataset) / stopwatch.end_epoch(),
            }
            train_loss.reset()
            line |= evaluate(accelerator, network, test_loader)
            tracker.log_epoch(line)
            announce(
                f"epoch {epoch + 1}/{config.epochs}  loss {line['train_loss']:.4f}  "
                f"held out: {line['test_loss']:.4f} nats a character, "
                f"{line['test_correct']} of {line['test_total']} right"
            )
            checkpoints.save(last=epoch + 1 == config.epochs)
        save_weights(run.folder / "model.pth", network)


if __name__ == "__main__":
    launch.run(main, "characters.py")
