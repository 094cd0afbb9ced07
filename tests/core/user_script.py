"""A script as Accelerate's documentation writes them; nothing in it knows of exactness but the class and its options.

    torchrun --nproc-per-node W tests/core/user_script.py RESULT.pt [--exact] [flags, see `settings`]

trains on pictures or on texts, evaluates, and writes what came out to RESULT.pt.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mnist_dist.core import ExactAccelerator

SAMPLES = 111
VOCABULARY = 13
NONE = -100


def settings(words: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--virtual-processes", type=int, default=0)
    parser.add_argument("--ddp", action="store_true")
    parser.add_argument("--task", choices=("pictures", "texts"), default="pictures")
    parser.add_argument("--normed", action="store_true", help="batch normalisation and dropout")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--batch-size", type=int, default=11, help="of all processes together")
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--max-grad-norm", type=float, default=0.0)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--in-order", action="store_true")
    parser.add_argument("--project-dir", type=Path)
    parser.add_argument("--checkpoint-every", type=int, default=0)
    parser.add_argument(
        "--stop-after", type=int, default=0, help="updates after which it is killed"
    )
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-every", type=int, default=0, help="updates")
    parser.add_argument("--skip", type=int, default=0, help="batches of the first epoch")
    return parser.parse_args(words)


class Pictures(Dataset):
    """Pictures of four kinds, (3, 8, 8), which are moved, turned and made noisy at random."""

    def __init__(self, dtype: torch.dtype, *, distorted: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.arange(SAMPLES) % 4
        self.pictures = torch.rand(SAMPLES, 3, 8, 8, generator=generator, dtype=torch.float64).to(
            dtype
        )
        self.pictures[:, 0, :4] += self.labels[:, None, None].to(dtype) / 2
        self.distorted = distorted

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        picture = self.pictures[number]
        if self.distorted:
            picture = picture.roll(int(torch.randint(3, ())), dims=2)
            if random.random() < 0.5:
                picture = picture.flip(2)
            picture = picture + 0.1 * float(np.random.normal())
        return picture, self.labels[number], number


class Texts(Dataset):
    """Texts of 1 to 9 tokens."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        lengths = torch.randint(2, 11, (SAMPLES,), generator=generator).tolist()
        self.texts = [
            torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths
        ]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.texts[number], number


def pad(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A dict of a batch of texts, padded to the longest."""
    texts = [text for text, _ in samples]
    inputs = nn.utils.rnn.pad_sequence([text[:-1] for text in texts], batch_first=True)
    targets = nn.utils.rnn.pad_sequence(
        [text[1:] for text in texts], batch_first=True, padding_value=NONE
    )
    return {
        "inputs": inputs,
        "targets": targets,
        "numbers": torch.tensor([number for _, number in samples]),
    }


class Reader(nn.Module):
    """(n, T) tokens to (n, VOCABULARY, T) scores of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        read = self.embed(tokens).cumsum(dim=1)
        return self.head(self.hidden(read).tanh()).transpose(1, 2)


def network(chosen: argparse.Namespace) -> nn.Module:
    """The one for the task."""
    if chosen.task == "texts":
        return Reader()
    norm: nn.Module = nn.BatchNorm2d(4) if chosen.normed else nn.GroupNorm(2, 4)
    dropout = [nn.Dropout(0.2)] if chosen.normed else []
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), *dropout, nn.Linear(4 * 36, 4)
    )


class Metrics:
    """What is to survive a stop beside what `prepare` was given."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"epoch": 0, "updates": 0, "seen": [], "predictions": {}}

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


def make_accelerator(chosen: argparse.Namespace) -> Accelerator:
    """The one word that differs."""
    options: dict[str, Any] = {
        "cpu": True,
        "mixed_precision": chosen.mixed_precision,
        "gradient_accumulation_steps": chosen.gradient_accumulation_steps,
    }
    if chosen.project_dir:
        options["project_config"] = ProjectConfiguration(
            project_dir=str(chosen.project_dir), automatic_checkpoint_naming=True, total_limit=2
        )
    if not chosen.exact:
        return Accelerator(**options)
    return ExactAccelerator(
        virtual_processes=chosen.virtual_processes, ddp=chosen.ddp, seed=3, **options
    )


def train(chosen: argparse.Namespace) -> None:
    """The whole of it."""
    accelerator = make_accelerator(chosen)
    dtype = getattr(torch, chosen.dtype)
    # Accelerate's batch size is that of a process.
    batch_size = (
        chosen.batch_size if chosen.exact else chosen.batch_size // accelerator.num_processes
    )
    texts = chosen.task == "texts"
    train_set: Dataset = Texts() if texts else Pictures(dtype, distorted=True)
    test_set: Dataset = Texts() if texts else Pictures(dtype, distorted=False)
    collate: dict[str, Any] = {"collate_fn": pad} if texts else {}
    train_loader = DataLoader(
        train_set,
        batch_size=batch_size,
        shuffle=not chosen.in_order,
        num_workers=chosen.num_workers,
        **collate,
    )
    test_loader = DataLoader(
        test_set, batch_size=batch_size, num_workers=chosen.num_workers, **collate
    )

    set_seed(4)
    model = network(chosen).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (1 + 0.1 * update))
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, test_loader, scheduler
    )
    metrics = Metrics()
    accelerator.register_for_checkpointing(metrics)
    if chosen.resume:
        accelerator.load_state()
    values = metrics.values

    while values["epoch"] < chosen.epochs:
        model.train()
        batches = train_loader
        if chosen.skip and values["epoch"] == 0:
            batches = accelerator.skip_first_batches(train_loader, chosen.skip)
        for batch in batches:
            with accelerator.accumulate(model):
                if texts:
                    loss = F.cross_entropy(
                        model(batch["inputs"]), batch["targets"], ignore_index=NONE
                    )
                    tokens = {"terms": (batch["targets"] != NONE).sum()} if chosen.exact else {}
                    accelerator.backward(loss, **tokens)
                    numbers = batch["numbers"]
                else:
                    pictures, labels, numbers = batch
                    loss = F.cross_entropy(model(pictures), labels)
                    accelerator.backward(loss)
                if chosen.max_grad_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), chosen.max_grad_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            values["seen"].append(accelerator.gather_for_metrics(numbers).tolist())
            if accelerator.sync_gradients:
                values["updates"] += 1
                if chosen.checkpoint_every and values["updates"] % chosen.checkpoint_every == 0:
                    accelerator.save_state()
                if chosen.evaluate_every and values["updates"] % chosen.evaluate_every == 0:
                    evaluate(accelerator, model, test_loader, texts)
                    model.train()
                if values["updates"] == chosen.stop_after:
                    return
        values["epoch"] += 1
        values["predictions"] = evaluate(accelerator, model, test_loader, texts)

    bare = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        result = {
            "weights": {name: tensor.clone() for name, tensor in bare.state_dict().items()},
            "learning_rate": scheduler.get_last_lr()[0],
            **values,
        }
        torch.save(result, chosen.result)


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader, texts: bool
) -> dict[int, Any]:
    """What the network says of every sample, by its number, in the order in which the samples come."""
    model.eval()
    found = {}
    for batch in loader:
        if texts:
            scores = model(batch["inputs"])
            guesses = scores[:, :, 0].argmax(dim=1)
            answers = accelerator.gather_for_metrics({"guess": guesses, "number": batch["numbers"]})
            guesses, numbers = answers["guess"], answers["number"]
        else:
            pictures, _, numbers = batch
            guesses, numbers = accelerator.gather_for_metrics(
                (model(pictures).argmax(dim=1), numbers)
            )
        for number, guess in zip(numbers.tolist(), guesses.tolist(), strict=True):
            assert number not in found, f"sample {number} was counted twice"
            found[number] = guess
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(settings(sys.argv[1:]))
