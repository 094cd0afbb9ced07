"""The examples hold the promises, on data of their own kind. Run by a launcher, this file is the driver of its tests.

    torchrun --nproc-per-node W tests/test_examples.py '[{"example": "pictures", "flags": [...]}, ...]'

Each run may also have `fault`, one of `FAULTS`; `stop`, the update after which the last process gets SIGTERM; and
`refused`, a file for what each process said instead of training. The batches that each process had go to seen.json.
"""

import importlib
import json
import os
import signal
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from conftest import REPOSITORY, read_lines, torchrun
from PIL import Image

from mnist_dist.core import Batch, Checkpoints, GlobalBatches, Stopped, Training, UserError, stream
from mnist_dist.core.processes import explain
from mnist_dist.run import launch, locks

sys.path.insert(0, str(REPOSITORY / "examples"))
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LINES = {"pictures": 90, "characters": 130}  # at most


# The driver.
def token_mean_of_each_share():
    """The mean over each process's share, averaged over the processes."""
    deal = GlobalBatches.epoch

    def shares(self, *which, **first):
        for batch in deal(self, *which, **first):
            own = len(batch.index) if self.terms is None else int(self.terms[batch.index].sum())
            batch.terms = max(1, own) * WORLD
            yield batch

    return patch.object(GlobalBatches, "epoch", shares)


def dropout_drawn_by_every_process():
    """As `torch.nn.Dropout` does; without the check of the loss, which sees it."""

    def own(self, purpose, *shape):
        return torch.rand(len(self.index), *shape, generator=stream(purpose, *self.words))

    both = ExitStack()
    both.enter_context(patch.object(Batch, "rand", own))
    both.enter_context(patch.object(Training, "check_data_and_loss", lambda *_: None))
    return both


def padding_counted():
    """Shares padded to equal length, and all of them counted."""
    deal = GlobalBatches.epoch

    def padded(self, *which, **first):
        for batch in deal(self, *which, **first):
            if self.seed is None and len(batch.index) < -(-batch.size // WORLD):
                batch.index = batch.positions = torch.zeros(1, dtype=torch.int64)
                batch.lengths = [1]
            yield batch

    return patch.object(GlobalBatches, "epoch", padded)


FAULTS = {
    fault.__name__: fault for fault in (token_mean_of_each_share, dropout_drawn_by_every_process, padding_counted)
}


def drive(run: dict) -> None:
    """One run, to its end, its stop or its refusal."""
    after_update, update, seen = Checkpoints.after_update, Training.update, []

    def stopped(self):
        if self.training.progress.global_step == run.get("stop") and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        after_update(self)

    def watched(self, batch, **options):
        seen.append((self.progress.epoch, batch.index.tolist()))
        update(self, batch, **options)

    sys.argv = [f"{run['example']}.py", *run["flags"]]
    said = None
    with (
        FAULTS[run["fault"]]() if run.get("fault") else nullcontext(),
        patch.object(Checkpoints, "after_update", stopped),
        patch.object(Training, "update", watched),
        patch("mnist_dist.core.stopping.MOST_SECONDS", 0),  # ask after every update
        patch.object(locks, "lock", lambda _: None),  # which lasts as long as the process
    ):
        try:
            importlib.import_module(run["example"]).main()
        except Stopped:
            if not run.get("stop"):
                raise
        except (UserError, OSError, RuntimeError) as error:
            if not run.get("refused") or (isinstance(error, RuntimeError) and not run.get("fault")):
                raise
            said = explain(error)
    answers = gather_object([said if run.get("refused") else seen])
    if RANK == 0:
        place = run["refused"] if run.get("refused") else Path(run["flags"][-1]) / "seen.json"
        Path(place).write_text(json.dumps(answers))


if __name__ == "__main__":
    launch.run(lambda: [drive(run) for run in json.loads(sys.argv[1])] and None, "test_examples.py")


# The data: not divided by anything.
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder and a .npz of pictures in three classes, and a text."""
    place, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    modes = ("RGB", "L", "RGBA", "P", "1")
    for number in range(61):
        path = place / "pictures" / f"class {number % 3}" / f"{number}.{'png' if number % 2 else 'bmp'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (5 + number, 70 - number, 3), dtype=np.uint8)
        pixels[..., number % 3] //= 4
        image = Image.fromarray(pixels).convert(modes[number % 5] if number % 2 else modes[number % 2])
        image.save(path)
    (place / "pictures" / "class 0" / "notes.txt").write_text("no picture")
    images = random.integers(0, 256, (50, 9, 13), dtype=np.uint8)
    np.savez(place / "grey.npz", images=images, labels=np.arange(50) % 4 * 3)
    colours = np.stack([images, images // 2, 255 - images], axis=3)
    np.savez(place / "colour.npz", images=colours, labels=np.array(["cat", "dog"])[np.arange(50) % 2])
    letters = np.array(list("abcdefgh éß."))
    lines = ["".join(random.choice(letters, 1 + 3 * number)) for number in range(40)]  # some are cut, some blank
    (place / "text.txt").write_text("\n\n".join([*lines, lines[-1], "x"]), "utf-8")
    return place


VARIANTS = {
    "pictures": ["--data", "pictures", "--batch-size", "10"],  # of 51: the last batch has one sample
    "characters": ["--text", "text.txt", "--batch-size", "10"],
    "dropout": ["--text", "text.txt", "--batch-size", "8", "--dropout", "0.3"],
}
TRAPS = {
    "token_mean_of_each_share": ("pictures", "characters"),
    "dropout_drawn_by_every_process": ("dropout",),
}
COMMON = "--epochs 2 --dtype float64 --cpu --checkpoint-every 3 --wandb disabled".split()
STOPS = {3: 4, 2: 8, 1: None}  # the update at which so many processes stop what the next ones go on with
several = pytest.mark.parametrize("processes", [2, 3])


def planned(variant: str, place: Path, run: Path, *more: str, **rest) -> dict:
    """A run of a variant into a folder."""
    name, value, *flags = VARIANTS[variant]
    example = "pictures" if variant == "pictures" else "characters"
    return {
        "example": example,
        "flags": [name, str(place / value), *flags, *COMMON, *more, "--output-dir", str(run)],
        **rest,
    }


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """Every variant on 3, 2 and 1 processes: whole; stopped and resumed; and handed on by three to two to one."""
    place = tmp_path_factory.mktemp("runs")
    for processes in STOPS:
        own, plan = place / str(processes), []
        for variant in VARIANTS:
            plan.append(planned(variant, data, own / variant))
            plan.append(planned(variant, data, own / f"{variant}-stopped", stop=8))
            plan.append(planned(variant, data, own / f"{variant}-stopped", "--resume"))
            resume = () if processes == 3 else ("--resume",)
            plan.append(planned(variant, data, place / f"{variant}-handed-on", *resume, stop=STOPS[processes]))
        if processes == 3:
            for fault, variants in TRAPS.items():
                plan += [planned(variant, data, own / f"{variant}-{fault}", fault=fault) for variant in variants]
            trap = {"fault": "padding_counted", "refused": str(own / "padded.json")}
            plan.append(planned("pictures", data, own / "padded", **trap))
        own.mkdir()
        done = torchrun(processes, REPOSITORY / "tests" / "test_examples.py", json.dumps(plan))
        assert done.returncode == 0, done.stderr
    return place


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model.pth", weights_only=True)


def figures_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl but for the speed."""
    lines = read_lines(run / "metrics.jsonl")
    assert all(line.pop("samples_per_second") > 0 for line in lines)
    return lines


def difference(run: Path, other: Path) -> float:
    """The largest absolute difference between the weights of two runs."""
    one, two = weights_of(run), weights_of(other)
    assert one.keys() == two.keys() and all(tensor.dtype == torch.float64 for tensor in one.values())
    return max((one[name] - two[name]).abs().max().item() for name in one)


def assert_same(run: Path, other: Path, tolerance: float = 1e-9) -> None:
    """Weights and figures agree."""
    assert difference(run, other) <= tolerance
    for line, wanted in zip(figures_of(run), figures_of(other), strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            near = pytest.approx(value, abs=tolerance, rel=0) if isinstance(value, float) else value
            assert line[name] == near, name


@pytest.mark.parametrize("example", LINES)
def test_it_is_short(example):
    assert (REPOSITORY / "examples" / f"{example}.py").read_text().count("\n") <= LINES[example]


# Promise 1.
@several
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_figures_are_those_of_one_process(processes, variant, runs):
    assert_same(runs / str(processes) / variant, runs / "1" / variant)


@pytest.mark.parametrize(("fault", "variant"), [(fault, name) for fault, names in TRAPS.items() for name in names])
def test_a_planted_fault_shows(fault, variant, runs):
    with pytest.raises(AssertionError):
        assert_same(runs / "3" / f"{variant}-{fault}", runs / "1" / variant)
    assert difference(runs / "3" / f"{variant}-{fault}", runs / "1" / variant) > 1e-6
    assert figures_of(runs / "3" / f"{variant}-{fault}")[-1]["epoch"] == 2  # nothing else went wrong


def test_dropout_does_something(runs):
    assert difference(runs / "1" / "dropout", runs / "1" / "characters") > 1e-3


# Promise 2.
@several
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_training_sample_once_an_epoch_in_the_batches_of_one_process(processes, variant, runs):
    def updates(processes: int) -> list[tuple[int, list[int]]]:
        shares = json.loads((runs / str(processes) / variant / "seen.json").read_text())
        return [(batch[0][0], sorted(sum((index for _, index in batch), []))) for batch in zip(*shares, strict=True)]

    assert updates(processes) == updates(1)
    samples = sum(len(batch) for epoch, batch in updates(1) if epoch == 0)
    for epoch in (0, 1):
        assert sorted(sum((batch for at, batch in updates(1) if at == epoch), [])) == list(range(samples))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_held_out_picture_is_counted_once(processes, runs, data):
    pictures = importlib.import_module("pictures")
    images, labels = pictures.read(data / "pictures")
    held = torch.randperm(61, generator=stream("held out", 0))[:10]
    w = weights_of(runs / str(processes) / "pictures")
    losses, right = [], 0
    for image, label in zip(images[held].double() / 255, labels[held], strict=True):
        x = F.max_pool2d(F.relu(F.conv2d(image[None], w["0.weight"], w["0.bias"])), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, w["3.weight"], w["3.bias"])), 2)
        scores = F.linear(x.flatten(1), w["7.weight"], w["7.bias"])
        losses.append(F.cross_entropy(scores, label[None]).item())
        right += int(scores.argmax() == label)
    line = figures_of(runs / str(processes) / "pictures")[-1]
    assert (line["test_total"], line["test_correct"]) == (10, right)
    assert line["test_accuracy"] == right / 10 and line["test_loss"] == pytest.approx(sum(losses) / 10, abs=1e-9)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_held_out_character_is_counted_once(processes, runs, data):
    """By the model asked about one line at a time, from the text itself, without padding."""
    characters = importlib.import_module("characters")
    _, _, alphabet = characters.read(data / "text.txt")
    lines = (line.strip() for line in (data / "text.txt").read_text("utf-8").splitlines())
    lines = list(dict.fromkeys(line[at : at + 64] for line in lines for at in range(0, len(line), 64)))
    assert set(alphabet) == {"\n", *"".join(lines)} and any(len(line) == 64 for line in lines)
    held = [lines[i] for i in torch.randperm(len(lines), generator=stream("held out", 0))[: len(lines) // 6]]
    assert len({len(line) for line in held}) > 3
    run = runs / str(processes) / "dropout"
    assert json.loads((run / "config.json").read_text())["alphabet"] == alphabet
    model = characters.Transformer(len(alphabet)).double()
    model.load_state_dict(weights_of(run))
    nats, right, total = 0.0, 0, 0
    for line in held:
        text = torch.tensor([[alphabet.index(character) for character in f"\n{line}\n"]])
        scores = model(text, torch.ones(1, 2, 1, 1, dtype=torch.float64))[0]
        nats += F.cross_entropy(scores, text[0, 1:], reduction="sum").item()
        right += int((scores.argmax(dim=1) == text[0, 1:]).sum())
        total += len(line) + 1
    found = figures_of(run)[-1]
    assert (found["test_total"], found["test_correct"]) == (total, right)
    assert found["test_accuracy"] == right / total and found["test_loss"] == pytest.approx(nats / total, abs=1e-9)


def test_padding_counted_comes_to_no_result(runs):
    said = json.loads((runs / "3" / "padded.json").read_text())
    assert len(said) == 3 and all("were not counted exactly once" in sentence for sentence in said)
    assert not (runs / "3" / "padded" / "model.pth").exists()


# Promise 3.
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_in_mid_epoch_and_resumed_it_ends_with_the_same_bits(processes, variant, runs):
    whole, resumed = runs / str(processes) / variant, runs / str(processes) / f"{variant}-stopped"
    assert_same(resumed, whole, tolerance=0.0)
    updates = [len(json.loads((run / "seen.json").read_text())[0]) for run in (whole, resumed)]
    each, left = updates[0] // 2, updates[1]
    assert 0 < left < updates[0] and left % each  # it had been stopped, and within an epoch


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_processes_stop_two_go_on_and_stop_and_one_ends_it(variant, runs):
    assert_same(runs / f"{variant}-handed-on", runs / "1" / variant)
    seen = json.loads((runs / f"{variant}-handed-on" / "seen.json").read_text())
    assert len(seen) == 1 and 0 < len(seen[0]) < len(json.loads((runs / "1" / variant / "seen.json").read_text())[0])
