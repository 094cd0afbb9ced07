"""Train a small transformer on the characters of a text, the same on any number of processes.

python examples/characters.py                   Python's own help texts
python examples/characters.py --text FILE       a text of yours, in UTF-8
torchrun --nproc-per-node 2 examples/characters.py --cpu --dropout 0.1

A sample is a line. Lines differ in length, so the loss is the mean over the characters of a global batch, however many
of them a process has.
"""

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist import core
from mnist_dist.run import command_line, folder, launch, settings, tracking, weights

LONGEST, LAYERS, HEADS, WIDTH = 64, 2, 4, 64  # characters of a line, after which it is cut; the transformer
NONE = -1  # what follows a line's end


@dataclass(frozen=True, kw_only=True)
class Config(settings.OwnConfig):
    text: Path | None = None  # default: 4,000 lines of Python's help
    dropout: float = 0.0  # share of what the layers take and give that is dropped

    def check(self) -> None:
        super().check()
        settings.require(0 <= self.dropout < 1, "--dropout", self.dropout, "a share from 0 to below 1")


def read(path: Path | None) -> tuple[Tensor, Tensor, str]:
    """The different lines (N, LONGEST + 2), int64, each a 0, its characters' numbers, a 0, and NONE from there on; how
    many characters there are to guess in each (N,); and the alphabet, whose character 0 ends a line."""
    try:
        text = path.read_text("utf-8") if path else "\n".join("\n".join(topics.values()).splitlines()[:4000])
    except UnicodeDecodeError as error:
        raise settings.UsageError(f"--text {path} cannot be read ({error}): give a text in UTF-8") from error
    lines = [line.strip()[i : i + LONGEST] for line in text.splitlines() for i in range(0, len(line), LONGEST)]
    lines = list(dict.fromkeys(filter(None, lines)))
    settings.require(len(lines) >= 6, "--text", path, "a text of 6 different lines, or more")
    alphabet = "\n" + "".join(sorted(set("".join(lines))))
    numbers = {character: number for number, character in enumerate(alphabet)}
    rows = torch.full((len(lines), LONGEST + 2), NONE)
    for row, line in zip(rows, lines, strict=True):
        row[: len(line) + 2] = torch.tensor([0, *(numbers[character] for character in line), 0])
    return rows, torch.tensor([len(line) + 1 for line in lines]), alphabet


class Transformer(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(LONGEST + 1, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, lines: Tensor, kept: Tensor) -> Tensor:
        """Logits (N, T - 1, characters) of what follows each character of the lines (N, T); what the layers take and
        give is multiplied by `kept` (N, 2, T - 1, WIDTH)."""
        x = self.character(lines[:, :-1].clamp(min=0)) + self.place.weight[: lines.shape[1] - 1]
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        x = self.layers(x * kept[:, 0], mask=causal, is_causal=True)
        return self.head(x * kept[:, 1])


def main() -> None:
    # The settings, the processes, and the text, of which a sixth of the lines is held out.
    config: Config = command_line.parse(Config)
    dtype, virtual = getattr(torch, config.dtype), config.virtual_processes
    accelerator, bits = launch.start(config.cpu, dtype=dtype), launch.fix_bits(virtual)
    with core.all_or_none():
        lines, lengths, alphabet = read(config.text)
    about = command_line.as_json(config) | {"alphabet": alphabet, "digest": weights.fingerprint({"lines": lines})}
    core.same_everywhere("the settings or texts", about)
    order, held = torch.randperm(len(lines), generator=core.stream("held out", config.seed)), len(lines) // 6
    lines, lengths = lines[order].to(accelerator.device), lengths[order].to(accelerator.device)
    options = {"seed": config.seed, "terms": lengths[held:], "virtual": virtual}
    train = core.GlobalBatches(lines[held:], config.batch_size, accelerator, **options)
    test = core.GlobalBatches(lines[:held], 100, accelerator, virtual=virtual)

    # The model, and its loss: the sum over the characters that a process has.
    torch.manual_seed(config.seed)
    model = Transformer(len(alphabet)).to(accelerator.device, dtype)
    whole = torch.ones(1, 2, 1, 1, dtype=dtype, device=accelerator.device)

    def loss(model: nn.Module, batch: core.Batch) -> Tensor:
        kept = whole
        if config.dropout:
            drawn = batch.rand("dropout", 2, LONGEST + 1, WIDTH)
            kept = (drawn >= config.dropout).to(dtype) / (1 - config.dropout)
        logits, wanted = model(batch.data, kept).flatten(0, 1), batch.data[:, 1:].flatten()
        return F.cross_entropy(logits, wanted, reduction="sum", ignore_index=NONE)

    def score(model: nn.Module, batch: core.Batch) -> Tensor:
        """(n, 2): the loss of each line, summed over its characters, and how many of them are guessed right."""
        logits, wanted = model(batch.data, whole).flatten(0, 1), batch.data[:, 1:].flatten()
        losses = F.cross_entropy(logits, wanted, reduction="none", ignore_index=NONE)
        right = (logits.argmax(dim=1) == wanted).to(losses)
        return torch.stack([losses, right], dim=1).unflatten(0, (-1, LONGEST + 1)).sum(dim=1)

    training = core.Training(accelerator, model, torch.optim.AdamW(model.parameters(), lr=0.003), loss)

    # The run's folder, and where a stopped run left off.
    run = folder.open_run(config.output_dir, "characters", config.resume, weights="model.pth")
    tracker = tracking.Tracker(accelerator, run, about)
    names = "batch_size", "virtual_processes", "seed", "dtype", "dropout", "digest"
    fixed = {name: about[name] for name in names} | bits
    checkpoints = core.Checkpoints(run.folder, training, {"tracker": tracker}, fixed, config.checkpoint_every)
    at, total = folder.go_on(run, checkpoints, config.epochs), int(lengths[:held].sum())
    with tracker:
        while at.epoch < config.epochs:
            for batch in training.epoch(train, f"epoch {at.epoch + 1}/{config.epochs}"):
                training.update(batch)
                checkpoints.after_update()
            nats, right = core.evaluate(accelerator, model, test, score).double().sum(dim=0).tolist()
            line = {"epoch": at.epoch, "global_step": at.global_step} | training.figures | {"test_loss": nats / total}
            tracker.epoch(line | {"test_accuracy": right / total, "test_correct": int(right), "test_total": total})
            result = f"{nats / total:.4f} nats a character, {right:.0f} of {total} right"
            core.announce(f"epoch {at.epoch}/{config.epochs}  loss {line['train_loss']:.4f}  held out: {result}")
            checkpoints.save(last=at.epoch == config.epochs)
        weights.save_weights(run.folder / "model.pth", model)


if __name__ == "__main__":
    launch.run(main, "characters.py")
