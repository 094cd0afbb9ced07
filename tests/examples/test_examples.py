"""The examples hold the promises, on data of their own kind."""

import importlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import PYTHON, REPOSITORY, call, clean_environment, read_lines, torchrun
from PIL import Image

from mnist_dist.core import generator_for

sys.path.insert(0, str(REPOSITORY / "examples"))
DRIVER = Path(__file__).with_name("example_driver.py")


# The data: not divided by anything.
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder and two .npz files of pictures in classes, and a text."""
    place, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    modes = ("RGB", "L", "RGBA", "P", "1")
    for number in range(61):
        path = (
            place
            / "pictures"
            / f"class {number % 3}"
            / f"{number}.{'png' if number % 2 else 'bmp'}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (5 + number, 70 - number, 3), dtype=np.uint8)
        pixels[..., number % 3] //= 4
        image = Image.fromarray(pixels).convert(
            modes[number % 5] if number % 2 else modes[number % 2]
        )
        image.save(path)
    (place / "pictures" / "class 0" / "notes.txt").write_text("no picture")
    images = random.integers(0, 256, (50, 9, 13), dtype=np.uint8)
    np.savez(place / "grey.npz", images=images, labels=np.arange(50) % 4 * 3)
    colours = np.stack([images, images // 2, 255 - images], axis=3)
    np.savez(
        place / "colour.npz", images=colours, labels=np.array(["cat", "dog"])[np.arange(50) % 2]
    )
    letters = np.array(list("abcdefgh éß."))
    # Some are cut, some blank.
    lines = ["".join(random.choice(letters, 1 + 3 * number)) for number in range(40)]
    (place / "text.txt").write_text("\n\n".join([*lines, lines[-1], "x"]), "utf-8")
    return place


# Of 51 pictures to train on the last batch of 10 has one: some shares of it are empty.
FLAGS = {
    "pictures": "--data {data}/pictures --epochs 2 --batch-size 10 --dtype float64",
    "characters": "--text {data}/text.txt --epochs 2 --batch-size 10 --dtype float64",
    "resnet18": "--data {data}/grey.npz --epochs 1 --batch-size 25 --model resnet18 --dtype float64",
    "bits-pictures": "--data {data}/pictures --epochs 2 --batch-size 10 --virtual-processes 8",
    "bits-characters": "--text {data}/text.txt --epochs 2 --batch-size 8 --virtual-processes 8 --dropout 0.3",
    "bits-resnet18": "--data {data}/grey.npz --epochs 1 --batch-size 25 --virtual-processes 8 --model resnet18",
}
NEAR = ["pictures", "characters"]  # equal but for rounding
BITS = ["bits-pictures", "bits-characters"]  # equal
TRAPS = [
    ("mean_of_each_share", "pictures"),
    ("mean_of_each_share", "characters"),
    ("transforms_seeded_by_rank", "pictures"),
    ("transforms_seeded_by_rank", "bits-pictures"),
    ("generators_not_seeded_for_a_share", "bits-characters"),
    ("buffers_not_put_back", "bits-resnet18"),
]
# The update at which each number of processes stops; the next one goes on from there.
STOPS = {3: 4, 2: 8, 1: None}
WORKERS = {1: 2, 2: 0, 3: 1, 8: 0}  # that read pictures for each process
several = pytest.mark.parametrize("processes", [2, 3])


def planned(variant: str, place: Path, processes: int, run: Path, *more: str, **rest) -> dict:
    """A run of a variant into a folder."""
    flags = FLAGS[variant].format(data=place).split()
    example = "characters" if "characters" in variant else "pictures"
    if example == "pictures":
        workers = WORKERS[processes] if variant == "bits-pictures" else 0
        flags += ["--workers", str(workers)]
    flags += "--cpu --checkpoint-every 3 --wandb disabled".split()
    return {"example": example, "flags": [*flags, *more, "--output-dir", str(run)], **rest}


def start(processes: int, plan: list[dict]) -> None:
    """Run a plan to its end."""
    done = torchrun(processes, DRIVER, json.dumps(plan), timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """Every variant on 3, 2 and 1 processes: whole; stopped and resumed; and handed on by three to two to one."""
    place = tmp_path_factory.mktemp("runs")
    for processes in STOPS:
        own = place / str(processes)
        own.mkdir()
        plan = [planned(variant, data, processes, own / variant) for variant in FLAGS]
        for variant in NEAR:
            plan.append(planned(variant, data, processes, own / f"{variant}-stopped", stop=8))
            plan.append(planned(variant, data, processes, own / f"{variant}-stopped", "--resume"))
        for variant in NEAR + BITS:
            resume = [] if processes == 3 else ["--resume"]
            handed_on = place / f"{variant}-handed-on"
            plan.append(
                planned(variant, data, processes, handed_on, *resume, stop=STOPS[processes])
            )
        if processes == 3:
            plan += planted(data, own)
        if processes == 1:
            plan += unchecked(data, own)
        start(processes, plan)
    return place


def planted(data: Path, own: Path) -> list[dict]:
    """A run with each fault, on three processes."""
    plan = [
        planned(variant, data, 3, own / f"{variant}-{fault}", fault=fault)
        for fault, variant in TRAPS
    ]
    padded = {"fault": "padding_counted", "refused": str(own / "padded.json")}
    plan.append(planned("pictures", data, 3, own / "padded", **padded))
    return plan


def unchecked(data: Path, own: Path) -> list[dict]:
    """What the core refuses without virtual processes, in examples that do not look themselves."""
    rest = {"unchecked": True, "refused": str(own / "refused.json")}
    return [
        planned("bits-characters", data, 1, own / "unchecked", "--virtual-processes", "0", **rest)
    ]


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
    assert one.keys() == two.keys() and all(one[name].dtype == two[name].dtype for name in one)
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)


def assert_same(run: Path, other: Path, tolerance: float = 1e-9) -> None:
    """Weights and figures agree."""
    assert difference(run, other) <= tolerance
    for line, wanted in zip(figures_of(run), figures_of(other), strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            near = pytest.approx(value, abs=tolerance, rel=0) if isinstance(value, float) else value
            assert line[name] == near, name


def tolerance_of(variant: str) -> float:
    return 1e-9 if variant in NEAR else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["pictures", "bits-characters"])
def test_two_processes_end_with_the_weights_of_one(variant, data, tmp_path):
    for processes in (1, 2):
        plan = planned(variant, data, processes, tmp_path / str(processes), "--epochs", "1")
        start(processes, [plan])
    assert_same(tmp_path / "2", tmp_path / "1", tolerance_of(variant))


# Promise 1.
@pytest.mark.slow
@several
@pytest.mark.parametrize("variant", [*NEAR, "resnet18"])
def test_weights_and_figures_are_those_of_one_process(processes, variant, runs):
    weights = weights_of(runs / "1" / variant).values()
    assert {each.dtype for each in weights if each.is_floating_point()} == {torch.float64}
    assert_same(runs / str(processes) / variant, runs / "1" / variant)


@pytest.mark.slow
@several
@pytest.mark.parametrize("variant", [*BITS, "bits-resnet18"])
def test_with_virtual_processes_they_are_so_to_the_bit(processes, variant, runs):
    assert_same(runs / str(processes) / variant, runs / "1" / variant, tolerance=0.0)


@pytest.mark.slow
def test_eight_processes_have_the_same_bits(runs, data, tmp_path):
    variants = [*BITS, "bits-resnet18"]
    start(8, [planned(variant, data, 8, tmp_path / variant) for variant in variants])
    for variant in variants:
        assert_same(tmp_path / variant, runs / "1" / variant, tolerance=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "variant"), TRAPS)
def test_a_planted_fault_shows(fault, variant, runs):
    wrong, right = runs / "3" / f"{variant}-{fault}", runs / "1" / variant
    with pytest.raises(AssertionError):
        assert_same(wrong, right, tolerance_of(variant))
    assert difference(wrong, right) > 1e-6
    # Nothing else went wrong.
    assert figures_of(wrong)[-1]["epoch"] == figures_of(right)[-1]["epoch"]


@pytest.mark.slow
def test_dropout_and_random_transforms_do_something(data, runs, tmp_path):
    plain = planned("bits-pictures", data, 1, tmp_path / "plain", "--plain")
    without = planned("bits-characters", data, 1, tmp_path / "without", "--dropout", "0")
    start(1, [plain, without])
    assert difference(tmp_path / "plain", runs / "1" / "bits-pictures") > 1e-3
    assert difference(tmp_path / "without", runs / "1" / "bits-characters") > 1e-3


# Promise 2.
def batches_seen(run: Path) -> dict[tuple[int, int], list[int]]:
    """The samples of every global batch, by epoch and batch, of all processes together."""
    batches: dict[tuple[int, int], list[int]] = {}
    for of_process in json.loads((run / "seen.json").read_text()):
        for epoch, batch, samples in of_process:
            batches.setdefault((epoch, batch), []).extend(samples)
    return {place: sorted(samples) for place, samples in batches.items()}


@pytest.mark.slow
@several
@pytest.mark.parametrize("variant", NEAR + BITS)
def test_every_training_sample_once_an_epoch_in_the_batches_of_one_process(
    processes, variant, runs
):
    batches = batches_seen(runs / "1" / variant)
    assert batches_seen(runs / str(processes) / variant) == batches
    for epoch in (0, 1):
        samples = sorted(sum((batch for (at, _), batch in batches.items() if at == epoch), []))
        assert samples == list(range(len(samples))) and len(samples) > 30


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_held_out_picture_is_counted_once(processes, runs, data):
    paths = sorted((data / "pictures").glob("class */*"))
    paths = [path for path in paths if path.suffix != ".txt"]
    held_out = torch.randperm(61, generator=generator_for("held out", 0))[:10]
    w = weights_of(runs / str(processes) / "pictures")
    losses, right = [], 0
    for path in [paths[number] for number in held_out]:
        image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        label = torch.tensor(int(path.parent.name.removeprefix("class ")))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255
        x = F.max_pool2d(F.relu(F.conv2d(x[None], w["0.weight"], w["0.bias"])), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, w["3.weight"], w["3.bias"])), 2)
        scores = F.linear(x.flatten(1), w["7.weight"], w["7.bias"])
        losses.append(F.cross_entropy(scores, label[None]).item())
        right += int(scores.argmax() == label)
    line = figures_of(runs / str(processes) / "pictures")[-1]
    assert (line["test_total"], line["test_correct"]) == (10, right)
    assert line["test_accuracy"] == right / 10 and line["test_loss"] == pytest.approx(
        sum(losses) / 10, abs=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_held_out_character_is_counted_once(processes, runs, data):
    """By the model asked about one line at a time, from the text itself, without padding."""
    characters = importlib.import_module("characters")
    stripped = (line.strip() for line in (data / "text.txt").read_text("utf-8").splitlines())
    lines = list(
        dict.fromkeys(line[at : at + 64] for line in stripped for at in range(0, len(line), 64))
    )
    run = runs / str(processes) / "characters"
    alphabet = json.loads((run / "config.json").read_text())["alphabet"]
    assert set(alphabet) == {"\n", *"".join(lines)} and any(len(line) == 64 for line in lines)
    held = [
        lines[i]
        for i in torch.randperm(len(lines), generator=generator_for("held out", 0))[
            : len(lines) // 6
        ]
    ]
    assert len({len(line) for line in held}) > 3
    model = characters.Transformer(len(alphabet)).double().eval()
    model.load_state_dict(weights_of(run))
    nats, right, total = 0.0, 0, 0
    for line in held:
        text = torch.tensor([[alphabet.index(character) for character in f"\n{line}\n"]])
        scores = model(text[:, :-1])[0]
        nats += F.cross_entropy(scores, text[0, 1:], reduction="sum").item()
        right += int((scores.argmax(dim=1) == text[0, 1:]).sum())
        total += len(line) + 1
    found = figures_of(run)[-1]
    assert (found["test_total"], found["test_correct"]) == (total, right)
    assert found["test_accuracy"] == right / total and found["test_loss"] == pytest.approx(
        nats / total, abs=1e-9
    )


@pytest.mark.slow
def test_padding_counted_comes_to_no_result(runs):
    said = json.loads((runs / "3" / "padded.json").read_text())
    assert len(said) == 3 and all("one row for each sample" in sentence for sentence in said)
    assert not (runs / "3" / "padded" / "model.pth").exists()


# Promise 3.
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("variant", NEAR)
def test_stopped_in_mid_epoch_and_resumed_it_ends_with_the_same_bits(processes, variant, runs):
    whole, resumed = runs / str(processes) / variant, runs / str(processes) / f"{variant}-stopped"
    assert_same(resumed, whole, tolerance=0.0)
    updates = [len(batches_seen(run)) for run in (whole, resumed)]
    each, left = updates[0] // 2, updates[1]
    assert 0 < left < updates[0] and left % each  # it had been stopped, and within an epoch


@pytest.mark.slow
@pytest.mark.parametrize("variant", NEAR + BITS)
def test_three_processes_stop_two_go_on_and_stop_and_one_ends_it(variant, runs):
    handed_on, whole = runs / f"{variant}-handed-on", runs / "1" / variant
    assert_same(handed_on, whole, tolerance_of(variant))
    seen = json.loads((handed_on / "seen.json").read_text())
    assert len(seen) == 1 and 0 < len(batches_seen(handed_on)) < len(batches_seen(whole))


@pytest.mark.slow
def test_resnet18_stopped_on_three_processes_goes_on_on_two_to_the_same_bits(data, tmp_path):
    def resnet18(processes: int, run: str, *more: str, **rest) -> dict:
        return planned(
            "bits-resnet18", data, processes, tmp_path / run, "--epochs", "2", *more, **rest
        )

    start(1, [resnet18(1, "whole")])
    start(3, [resnet18(3, "stopped", stop=2)])
    assert not (tmp_path / "stopped" / "model.pth").exists()
    start(2, [resnet18(2, "stopped", "--resume")])
    assert_same(tmp_path / "stopped", tmp_path / "whole", tolerance=0.0)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux",
    reason="workers ask signal.sigwaitinfo who has sent a signal, which macOS and Windows lack",
)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_request_to_stop_that_reaches_its_workers_too_is_answered_with_a_checkpoint(
    name, tmp_path
):
    """As Ctrl-C, torchrun and Slurm send it: to the whole group of processes."""
    run = tmp_path / "run"
    command = [
        PYTHON,
        "examples/pictures.py",
        "--cpu",
        "--epochs",
        "1000",
        "--wandb",
        "disabled",
        "--output-dir",
        run,
    ]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith("epoch 1/1000")
        os.killpg(process.pid, signal.Signals[name])
        said = process.stderr.read()
        assert process.wait(timeout=60) == 75, said
    assert "stopped on request" in said and "Traceback" not in said
    assert list((run / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_no_worker_outlives_its_training(data, tmp_path):
    """Under a launcher: alone, a process leaves as Python does."""
    run = tmp_path / "run"
    launcher = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = FLAGS["pictures"].format(data=data).split()
    command = [*launcher, "examples/pictures.py", *flags, "--workers", "1", "--cpu"]
    with (tmp_path / "output").open("w") as output:  # not a pipe: its end would come with theirs
        subprocess.run(
            [*command, "--wandb", "disabled", "--output-dir", run],
            cwd=REPOSITORY,
            env=clean_environment(),
            stdout=output,
            stderr=output,
            check=True,
            timeout=300,
        )

    def is_left() -> bool:
        command_lines = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
        return any(str(run) in words for words in command_lines)

    deadline = time.monotonic() + 2  # they would stay for 5
    while is_left():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Promise 6.
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("characters.py --dropout 0.1", "draws random numbers"),
    ],
)
def test_what_needs_virtual_processes_is_refused_with_the_way_out(flags, words, tmp_path):
    program, *rest = flags.split()
    done = call(
        PYTHON, REPOSITORY / "examples" / program, *rest, "--cpu", "--output-dir", tmp_path / "run"
    )
    assert (
        done.returncode == 2 and words in done.stderr and "add --virtual-processes 8" in done.stderr
    ), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_core_refuses_it_too(runs):
    (said,) = json.loads((runs / "1" / "refused.json").read_text())
    assert "Dropout dropout" in said and "virtual_processes" in said
    assert not (runs / "1" / "unchecked" / "model.pth").exists()


@pytest.mark.slow
def test_a_picture_that_one_process_cannot_read_is_named(tmp_path):
    """Cut off in the middle, among others: only the process that reads it can say so, and all leave."""
    random = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "data" / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    flags = [
        "--data",
        tmp_path / "data",
        "--epochs",
        "1",
        "--cpu",
        "--wandb",
        "disabled",
        "--workers",
        "1",
    ]
    done = torchrun(
        2, REPOSITORY / "examples" / "pictures.py", *flags, "--output-dir", tmp_path / "run"
    )
    assert done.returncode == 1
    assert f"the picture {path} cannot be read" in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "run" / "model.pth").exists()


# They run from a clone, after `pip install -r requirements.txt` alone.
@pytest.mark.parametrize(
    "example", ["pictures", pytest.param("characters", marks=pytest.mark.slow)]
)
def test_they_need_no_installation_of_the_package(example, tmp_path):
    packages = sysconfig.get_path("purelib")
    environment = clean_environment(PYTHONPATH=packages)
    # -S: what an editable installation adds to the path is not there. What remains of it is a folder with the copies
    # of train.py and evaluate.py, so we look for a module that is not among them.
    absent = subprocess.run(
        [PYTHON, "-S", "-c", "import mnist_dist.core"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    assert b"ModuleNotFoundError" in absent.stderr
    program = REPOSITORY / "examples" / f"{example}.py"
    done = subprocess.run(
        [PYTHON, "-S", program, "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--virtual-processes" in done.stdout, done.stderr
