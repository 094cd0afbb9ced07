"""The page of a run: what it says, what it may not do, and what a real browser makes of it."""

import base64
import hashlib
import json
import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import Opened, chromium, strokes_of
from conftest import PYTHON, call
from PIL import Image
from torch import nn

from mnist_dist.core import UserError
from mnist_dist.digits.config import TrainConfig
from mnist_dist.report import about, at_end, document, network, run_page, thumbnails
from mnist_dist.report.curves import MOST, curves
from mnist_dist.run.command_line import as_json
from mnist_dist.run.weights import load_weights
from mnist_dist.task import networks
from mnist_dist.task.data import DataSplits, load
from mnist_dist.task.datasets import SOURCES
from mnist_dist.task.evaluation import Evaluation
from mnist_dist.task.layouts import layout_of
from mnist_dist.tools import report
from mnist_dist.tools.pictures.digits import read_picture
from mnist_dist.usage import UsageError

HOSTILE = "<script>window.harmed=1<"
HOSTILE_TEXT = '</script><script>window.harmed=1</script><img src=x onerror="window.harmed=1">'


@pytest.fixture(scope="module")
def samples() -> DataSplits:
    """The embedded digits."""
    return load("mnist-5k", Path("data"))


def evaluation(model: nn.Module, samples: DataSplits) -> Evaluation:
    """What a model says of the test samples, in plain PyTorch."""
    with torch.no_grad():
        return Evaluation(model(samples.test.images).double(), samples.test.labels)


def made_up_run(
    folder: Path, classifier: nn.Module, samples: DataSplits, **settings: Any
) -> Evaluation:
    """Leave the files of a finished run with these weights; what the model says of the test samples."""
    folder.mkdir(parents=True, exist_ok=True)
    test = evaluation(classifier, samples)
    line = {"epoch": 1, "global_step": 63, "train_loss": 2.0, "learning_rate": 0.001}
    line |= test.metrics("test")
    config = as_json(TrainConfig(epochs=1)) | {
        "dataset": samples.name,
        "normalization": {"mean": samples.mean, "std": samples.std},
        "data_digest": samples.digest,
        "versions": {"torch": "2.14.1"},
        "wandb_id": "12345678",
        "num_processes": 1,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    summary = line | {"num_processes": 1, "train_seconds": 3.2}
    (folder / "summary.json").write_text(json.dumps(summary))
    torch.save(classifier.state_dict(), folder / "mnist_model.pth")
    return test


def data_of(page: Path) -> dict[str, Any]:
    """What a page is to show."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page(samples, tmp_path_factory) -> Path:
    """The page of a made-up run of hostile names."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hostile") / HOSTILE
    test = made_up_run(
        folder, networks.MNISTNet(), samples, command=HOSTILE_TEXT, set_up="{{script}}"
    )
    run_page.write(folder / "report.html", folder, test, samples, [])
    return folder / "report.html"


def test_a_page_says_what_the_evaluation_says(page, samples):
    test = evaluation(
        networks.from_state_dict(load_weights(page.parent / "mnist_model.pth")), samples
    )
    data = data_of(page)
    assert (data["correct"], data["total"]) == (test.correct, test.total)
    share = test.accuracy
    assert data["error"] == pytest.approx(math.sqrt(share * (1 - share) / test.total))
    assert data["confusion"] == test.confusion.tolist()
    assert data["calibration_error"] == test.calibration_error
    shown = data["thumbnails"]
    assert [shown["numbers"][place] for place in shown["mistakes"]] == (
        test.mistakes()[: thumbnails.MISTAKES].tolist()
    )
    for name, places in shown["cells"].items():
        label, prediction = map(int, name.split(","))
        assert {shown["labels"][place] for place in places} == {label}
        assert {shown["predictions"][place] for place in places} == {prediction}


def test_the_images_in_a_page_are_the_pixels_of_the_data_set(page, samples):
    shown = data_of(page)["thumbnails"]
    (page.parent / "sprite.png").write_bytes(base64.b64decode(shown["png"]))
    sprite = np.asarray(Image.open(page.parent / "sprite.png"))
    for place in (0, 31, 32, len(shown["numbers"]) - 1):
        top, left = 28 * (place // shown["columns"]), 28 * (place % shown["columns"])
        pixels = torch.tensor(sprite[top : top + 28, left : left + 28].copy()) / 255
        expected = samples.pixels(samples.test.images[shown["numbers"][place], 0])
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_a_page_may_run_its_own_script_and_load_nothing(page):
    text = page.read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|\beval\(", text)


def test_what_a_run_is_called_stays_text(page):
    text = page.read_text()
    assert text.count("<script") == 2 and "<img" not in text
    assert data_of(page)["name"] == HOSTILE and data_of(page)["called"] == HOSTILE_TEXT
    assert "<title>&lt;script&gt;window" in text
    assert ["Processes", "{{script}}"] in data_of(page)["facts"]


@pytest.mark.parametrize(
    ("hidden", "precision"), [((128, 64), "float32"), ((500,), "float16"), ((900,), None)]
)
def test_weights_come_in_the_best_precision_for_which_there_is_room(
    hidden, precision, samples, tmp_path
):
    model = networks.MNISTNet(hidden)
    test = made_up_run(tmp_path, model, samples, hidden=list(hidden))
    path = tmp_path / "report.html"
    run_page.write(path, tmp_path, test, samples, [])
    assert path.stat().st_size < document.LARGEST == 2_000_000
    data = data_of(path)
    if precision is None:
        assert data["network"] is None and "do not fit into a page" in data["remark"]
        return
    assert data["network"]["precision"] == precision
    assert (data["remark"] is None) == (precision == "float32")
    size = network.PRECISIONS[precision]
    values = np.frombuffer(base64.b64decode(data["network"]["data"]), f"<f{size}")
    weights = torch.cat([tensor.flatten() for tensor in model.state_dict().values()])
    torch.testing.assert_close(
        torch.tensor(values.astype("f4")), weights, atol=0 if size == 4 else 1e-4, rtol=0
    )


def test_the_suite_s_largest_network_can_be_tried_with_all_its_bits(samples, tmp_path):
    """That of the recipe best-cnn."""
    model = networks.ConvNet((24, 48, 96, 96), (128,))
    test = made_up_run(
        tmp_path, model, samples, model="cnn", channels=[24, 48, 96, 96], hidden=[128]
    )
    run_page.write(tmp_path / "report.html", tmp_path, test, samples, [])
    assert data_of(tmp_path / "report.html")["network"]["precision"] == "float32"
    assert (tmp_path / "report.html").stat().st_size < document.LARGEST


def test_images_that_do_not_compress_are_fewer(samples):
    """Noise in place of digits, a thousand mistakes: the picture stays within its bound."""
    noise = torch.rand(len(samples.test), 1, 28, 28)
    noisy = replace(
        samples, test=replace(samples.test, images=(noise - samples.mean) / samples.std)
    )
    logits = torch.randn(len(noisy.test), 10).double()
    found = thumbnails.thumbnails(Evaluation(logits, noisy.test.labels), noisy)
    assert found["in_a_cell"] < thumbnails.IN_A_CELL[0]
    assert len(base64.b64decode(found["png"])) <= thumbnails.LARGEST


def test_a_model_that_is_always_right_has_a_page(samples, tmp_path):
    folder = tmp_path / "run"
    made_up_run(folder, networks.MNISTNet(()), samples)
    perfect = Evaluation(
        20.0 * nn.functional.one_hot(samples.test.labels, 10).double(), samples.test.labels
    )
    run_page.write(folder / "report.html", folder, perfect, samples, [])
    assert data_of(folder / "report.html")["thumbnails"]["mistakes"] == []
    assert "was evaluated again" in " ".join(data_of(folder / "report.html")["notes"])


def test_curves_have_the_points_between_epochs_and_not_too_many():
    epochs = [{"epoch": 1, "global_step": 5000, "train_loss": 0.5, "test_loss": 0.4}]
    history = [
        {"global_step": step, "train/loss": 1 / step, "train/learning_rate": 0.1}
        for step in range(1, 5001)
    ]
    found = curves(epochs, history)
    assert len(found["loss"]) <= MOST + 1
    assert found["loss"][0] == [0.0002, 1.0] and found["loss"][-1] == [1.0, 1 / 5000]
    assert found["test_loss"] == [[1, 0.4]] and "val_loss" not in found
    assert curves([], []) == {}


@pytest.mark.parametrize(
    ("settings", "processes", "expected"),
    [
        ({}, 1, "python train.py"),
        (
            {"hidden": [64], "output_dir": "x", "resume": True, "recipe": "fast", "plots": False},
            1,
            "python train.py --hidden 64 --no-plots",
        ),
        (
            {"seed": 3, "data_dir": "my data", "mixed_precision": "no"},
            4,
            "torchrun --nproc-per-node 4 train.py --data-dir 'my data' --seed 3",
        ),
    ],
)
def test_the_command_does_the_whole_run_again(settings, processes, expected):
    assert about.command_again(as_json(TrainConfig()) | settings, processes) == expected


def spoil(folder: Path, harm: str) -> None:
    """Do to a run's folder what a test is about."""
    if harm == "no folder":
        shutil.rmtree(folder)
    elif harm == "no model":
        (folder / "mnist_model.pth").unlink()
    elif harm == "other data":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"data_digest": "0"}))
    elif harm in ("stopped", "killed"):
        (folder / "summary.json").unlink()
        if harm == "stopped":
            ended = {"state": "stopped", "reason": "SIGTERM"}
            (folder / "ended.json").write_text(json.dumps(ended))
    else:
        (folder / harm).write_text("{")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("no folder", "there is not a folder .*run: name a run's folder"),
        (
            "config.json",
            "run cannot be read: its config.json is damaged; restore the file, or name",
        ),
        ("summary.json", "run cannot be read: its summary.json is damaged"),
        ("stopped", r"run is not finished, but stopped \(SIGTERM\): resume it with --output-dir"),
        ("killed", "run is not finished, but failed: resume it with --output-dir"),
        ("no model", "there is no model at .*mnist_model.pth"),
        ("mnist_model.pth", "the model file .* is damaged"),
        ("other data", "are not those that the run in .* was trained with"),
    ],
)
def test_a_damaged_or_unfinished_run_is_refused_in_one_sentence(harm, sentence, samples, tmp_path):
    folder = tmp_path / "run"
    made_up_run(folder, networks.MNISTNet(()), samples)
    spoil(folder, harm)
    with pytest.raises(UserError, match=sentence) as refusal:
        report.main(report.Config(runs=(folder,), cpu=True))
    assert refusal.value.status == 1 and "\n" not in str(refusal.value)
    assert not (folder / "report.html").exists()


def test_without_any_run_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^there is no finished run in runs/: .*, or name its folder$"
    ):
        report.main(report.Config())


def test_an_output_that_is_no_page_is_refused():
    with pytest.raises(UsageError, match=r"^--output page.pdf is not possible: give an .html file"):
        report.Config(output=Path("page.pdf")).check()


def test_a_model_whose_loss_is_not_finite_is_refused(samples, tmp_path):
    model = networks.MNISTNet(())
    made_up_run(tmp_path, model, samples)
    weights = {name: torch.full_like(tensor, 3e38) for name, tensor in model.state_dict().items()}
    torch.save(weights, tmp_path / "mnist_model.pth")
    with pytest.raises(UserError, match="the loss on the test samples is nan"):
        report.main(report.Config(runs=(tmp_path,), cpu=True))


def test_a_comparison_lies_in_the_folder_of_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report.folder_of([{"run": "runs/one"}, {"run": f"{tmp_path}/runs/two"}]) == Path("runs")
    with pytest.raises(UserError, match="no folder in common: name the page by --output"):
        report.folder_of([{"run": "/here/one"}, {"run": "/there/two"}])


def record(folder: Path, is_main_process: bool = True) -> Any:
    """What `at_end` needs of a tracker."""
    accelerator = SimpleNamespace(is_main_process=is_main_process)
    return SimpleNamespace(accelerator=accelerator, folder=folder, history=[])


def test_at_the_end_of_a_training_the_main_process_writes_it(samples, tmp_path):
    test = made_up_run(tmp_path, networks.MNISTNet(()), samples)
    (tmp_path / "summary.json").unlink()  # it is written last
    at_end(record(tmp_path, is_main_process=False), test, samples, 75)
    assert not (tmp_path / "report.html").exists()
    at_end(record(tmp_path), test, samples, 75)
    (training,) = [
        text for name, text in data_of(tmp_path / "report.html")["facts"] if name == "Training"
    ]
    assert training == "1 epoch, 64 digits per update, learning rate 0.001, seed 0, 1 min 15 s"


def test_a_page_that_cannot_be_written_costs_one_warning_and_leaves_no_old_one(
    samples, tmp_path, capsys
):
    test = made_up_run(tmp_path, networks.MNISTNet(()), samples)
    (tmp_path / "report.html").write_text("from before")
    (tmp_path / "mnist_model.pth").write_text("damaged")
    at_end(record(tmp_path), test, samples, 1)
    assert not (tmp_path / "report.html").exists()
    errors = capsys.readouterr().err
    assert errors.startswith("warning: the run's report could not be written (the model file ")
    assert errors.count("\n") == 1


@pytest.fixture(scope="module")
def three_runs(samples, tmp_path_factory) -> Path:
    """A folder with two runs that differ in the seed, and one with another rate that was stopped."""
    root = tmp_path_factory.mktemp("several") / "runs"
    runs: dict[str, dict[str, Any]] = {
        "one": {"seed": 1},
        "two": {"seed": 2},
        HOSTILE: {"lr": 0.01},
    }
    for number, (name, settings) in enumerate(runs.items()):
        torch.manual_seed(number)
        made_up_run(root / name, networks.MNISTNet(()), samples, **settings)
    (root / HOSTILE / "summary.json").unlink()
    return root


def test_several_runs_are_compared_with_seeds_as_a_band(three_runs, capsys):
    report.main(report.Config(runs=(three_runs,)))
    path = three_runs / "report.html"
    assert capsys.readouterr().out == f"report: {path}\n"
    data = data_of(path)
    assert [(run["name"], run["state"]) for run in data["runs"]] == [
        (HOSTILE, "failed"), ("one", "done"), ("two", "done")
    ]  # fmt: skip
    assert data["columns"] == ["lr", "seed"]
    assert [(group["label"], group["runs"]) for group in data["groups"]] == [
        ("lr 0.01", 1),
        ("lr 0.001", 2),
    ]
    accuracies = [run["test_accuracy"] for run in data["runs"][1:]]
    ((epoch, mean, least, most),) = data["groups"][1]["curves"]["test_accuracy"]
    assert (epoch, least, most) == (1, min(accuracies), max(accuracies))
    assert mean == pytest.approx(sum(accuracies) / 2) == data["groups"][1]["accuracy"]
    assert data["groups"][0]["accuracy"] is None
    assert path.read_text().count("<script") == 2


# What only a browser can show.


@dataclass
class Pages:
    """Pages of real trainings, by name, and a browser to open them with."""

    browser: Any
    paths: dict[str, Path]

    def open(self, name: str, width: int = 1280, **options: Any) -> Opened:
        return Opened(self.browser, self.paths[name], width, **options)


@pytest.fixture(scope="module")
def pages(page, samples, three_runs, mnist, tmp_path_factory):
    """Those of a resumed run on MNIST, a CNN of one epoch, made-up garments, the hostile run, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    quick = ("--cpu", "--wandb", "disabled", "--output-dir")
    whole = ("--data-dir", mnist, *quick, root / "mlp")
    small = ("--dataset", "mnist-5k", *quick, root / "cnn")
    for flags in (
        (*whole, "--epochs", "1"),
        (*whole, "--epochs", "3", "--resume"),
        (*small, "--model", "cnn", "--epochs", "1", "--batch-size", "16", "--val-size", "500"),
    ):
        done = call(PYTHON, "train.py", *flags, "--no-plots")
        assert done.returncode == 0 and not done.stderr, done.stderr
    assert f"report:   {root / 'cnn' / 'report.html'}\n" in done.stdout
    garments = replace(samples, name="fashion-mnist", classes=SOURCES["fashion-mnist"].classes)
    shutil.copytree(root / "cnn", root / "garments")
    model = networks.from_state_dict(load_weights(root / "cnn" / "mnist_model.pth"))
    run_page.write(
        root / "garments" / "report.html",
        root / "garments",
        evaluation(model, samples),
        garments,
        [],
    )
    report.main(report.Config(runs=(three_runs,)))
    paths = {name: root / name / "report.html" for name in ("mlp", "cnn", "garments")}
    paths |= {"hostile": page, "several": three_runs / "report.html"}
    with chromium() as browser:
        yield Pages(browser, paths)


ALL = ("mlp", "cnn", "garments", "hostile", "several")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_page_asks_for_nothing_and_fits_phones_and_desks(name, pages):
    for width, scheme in ((360, "light"), (360, "dark"), (1280, "dark"), (1280, "light")):
        opened = pages.open(name, width, color_scheme=scheme)
        assert not opened.scrolls_sideways(), (width, scheme)
        assert not opened.errors and not opened.requests
        assert opened.page.evaluate("window.harmed === undefined")
        opened.context.close()


@pytest.mark.slow
def test_a_page_says_how_well_the_run_did(pages):
    opened = pages.open("mlp")
    summary = json.loads((pages.paths["mlp"].parent / "summary.json").read_text())
    assert opened.text("#accuracy") == f"{100 * summary['test_accuracy']:.2f}"
    assert f"{summary['test_correct']:,} of 10,000 test digits right" in opened.text("#correct")
    assert "mlp 784-128-64-10, 109,386 parameters" in opened.text("#facts")
    assert opened.text("#command").endswith("--epochs 3 --cpu --wandb disabled --no-plots")
    assert "--resume" in opened.text("#called") and "--resume" not in opened.text("#command")
    assert opened.page.locator("#charts svg.plot").count() == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_network_in_the_page_is_that_of_the_run(name, pages, samples, mnist):
    """Logits of all images in the page, as PyTorch has them."""
    if name == "mlp":
        samples = load("mnist", mnist)
    opened = pages.open(name)
    found = opened.page.evaluate(
        """async () => {
            const thumbnails = await loadThumbnails();
            const weights = decodedWeights(DATA.network);
            const logits = thumbnails.numbers.map((_, index) =>
                [...logitsOf(weights, thumbnails.pixels(index), DATA.normalization)]);
            return { numbers: thumbnails.numbers, logits };
        }"""
    )
    folder = pages.paths[name].parent
    model = networks.from_state_dict(load_weights(folder / "mnist_model.pth"))
    logits = evaluation(model, samples).logits[found["numbers"]]
    assert len(logits) > 150 and logits.abs().max() > 5
    torch.testing.assert_close(torch.tensor(found["logits"]).double(), logits, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("mlp", 9), ("cnn", 9)])
def test_a_digit_that_is_drawn_gets_its_class(name, least, pages, samples):
    """A test digit of each class, its strokes drawn again with the mouse."""
    opened = pages.open(name, color_scheme="dark")
    right = 0
    for label in range(10):
        number = torch.nonzero(samples.test.labels == label)[0]
        grey = (255 * samples.pixels(samples.test.images[int(number), 0])).byte().numpy()
        right += opened.draw(strokes_of(grey)).split()[0] == str(label)
    assert right >= least
    opened.page.click("#clear")
    opened.page.wait_for_timeout(100)
    assert opened.text("#verdict") == "Draw, and it answers."
    assert not opened.errors


@pytest.mark.slow
def test_a_drawing_is_laid_out_as_mnist_s_digits_are(pages):
    """Anywhere on the pad and of any size: 20 pixels on the longer side, the centre of mass at (14, 14)."""
    opened = pages.open("mlp")
    seven = [[(0.0, 0.0), (0.6, 0.0), (0.2, 1.0)]]
    seen = []
    for scale, x, y in ((0.7, 0.1, 0.1), (0.3, 0.6, 0.05)):
        strokes = [[[x + scale * a, y + scale * b] for a, b in stroke] for stroke in seven]
        pixels = opened.page.evaluate(
            "(strokes) => [...pictureOfStrokes(strokes, PEN, LAYOUTS.digits)]", strokes
        )
        field = np.array(pixels).reshape(28, 28)
        rows, columns = np.nonzero(field > 0.05)
        assert np.ptp(rows) + 1 == 20 and np.ptp(columns) + 1 < 20
        mass = (
            (field * np.arange(28)[:, None]).sum() / field.sum(),
            (field * np.arange(28)).sum() / field.sum(),
        )
        assert max(abs(mass[0] - 14), abs(mass[1] - 14)) <= 0.5 and field.max() == 1
        seen.append(field)
    assert np.abs(seen[0] - seen[1]).mean() < 0.08


@pytest.mark.slow
def test_it_says_where_it_doubts_and_what_that_was_worth_in_the_test(pages):
    opened = pages.open("mlp")
    opened.page.evaluate("sayVerdict([0.6, 0.4, 0, 0, 0, 0, 0, 0, 0, 0], null)")
    assert opened.text("#verdict").split() == "0 60.0% in doubt: or 1?".split()
    assert re.search(
        r"Of the [\d,]+ test digits? of which it was about as sure \(\d+%\)", opened.text("#doubt")
    )
    opened.page.evaluate("sayVerdict([0.95, 0.05, 0, 0, 0, 0, 0, 0, 0, 0], null)")
    assert opened.text("#verdict").split() == "0 95.0%".split()


@pytest.mark.slow
def test_the_bars_move_while_one_draws(pages):
    opened = pages.open("mlp")
    opened.page.locator("#pad").scroll_into_view_if_needed()
    box = opened.page.locator("#pad").bounding_box()
    opened.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"])
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    opened.page.wait_for_timeout(100)
    values = [
        float(text.strip("<>%")) for text in opened.page.locator("#bars .value").all_inner_texts()
    ]
    assert len(values) == 10 and max(values) > 50
    assert opened.text("#bars .best .class-name") == "1"
    opened.page.mouse.up()


@pytest.mark.slow
def test_a_digit_can_be_drawn_by_keys(pages):
    opened = pages.open("mlp")
    opened.page.focus("#pad")
    opened.page.keyboard.press("Space")
    for _ in range(24):
        opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Space")
    opened.page.wait_for_timeout(100)
    assert opened.text("#verdict").split()[0] == "1"
    opened.page.keyboard.press("Escape")
    opened.page.wait_for_timeout(100)
    assert opened.text("#verdict") == "Draw, and it answers."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "several"])
def test_curves_tell_their_values_to_pointer_and_keys(name, pages):
    opened = pages.open(name)
    chart = opened.page.locator("#charts .chart", has_text="ccuracy").first
    plot, tip = chart.locator("svg.plot"), chart.locator(".tip")
    plot.scroll_into_view_if_needed()
    assert tip.is_hidden()
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] - 15, "y": 60})
    data = data_of(pages.paths[name])
    curve = data["curves"] if name == "mlp" else data["groups"][1]["curves"]
    epoch, accuracy = curve["test_accuracy"][-1][:2]
    assert f"epoch {epoch}" in tip.inner_text() and f"{100 * accuracy:.2f}%" in tip.inner_text()
    opened.page.mouse.move(0, 0)
    assert tip.is_hidden()
    opened.page.keyboard.press("Tab")
    plot.focus()
    plot.press("Home")
    assert "epoch 1" in tip.inner_text()


@pytest.mark.slow
def test_a_cell_shows_the_digits_behind_it(pages):
    opened = pages.open("mlp")
    data = data_of(pages.paths["mlp"])
    opened.page.click('#matrix button[aria-label^="4 taken for 9"]')
    count = data["confusion"][4][9]
    assert opened.text("#cell h3") == "4, taken for 9"
    shown = min(count, data["thumbnails"]["in_a_cell"])
    assert opened.page.locator("#cell .card canvas").count() == shown > 0
    opened.page.keyboard.press("ArrowLeft")
    assert opened.text("#cell h3") == "4, taken for 8"
    # An image that is chosen is shown to the network.
    opened.page.locator("#gallery .card").first.click()
    opened.page.wait_for_timeout(100)
    place = data["thumbnails"]["mistakes"][0]
    assert opened.text("#verdict").split()[0] == str(data["thumbnails"]["predictions"][place])
    assert f"it is {data['thumbnails']['labels'][place]}" in opened.text("#verdict")


@pytest.mark.slow
def test_garments_are_opened_and_not_drawn(pages, samples, tmp_path):
    opened = pages.open("garments")
    assert opened.page.locator("#pad").count() == 0
    grey = (255 * (1 - samples.pixels(samples.test.images[0, 0]))).byte().numpy()
    picture = Image.fromarray(grey).resize((280, 280), Image.Resampling.NEAREST)
    picture.save(tmp_path / "boot.png")
    (tmp_path / "no.png").write_text("no picture")
    opened.page.set_input_files("#file", tmp_path / "boot.png")
    opened.page.locator("#seen-caption", has_text="boot.png").wait_for()
    words = opened.text("#verdict").split()
    assert words[0] in SOURCES["fashion-mnist"].classes and words[1].endswith("%")
    seen = opened.page.evaluate(
        "[...byId('seen').getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 == 0)"
    )
    # Page and command make the same of a picture.
    command = read_picture(tmp_path / "boot.png", layout_of("fashion-mnist")).numpy()
    assert np.abs(np.array(seen).reshape(28, 28) / 255 - command).mean() < 0.02
    assert command.any(axis=0).all() or command.any(axis=1).all()  # it fills the picture
    opened.page.set_input_files("#file", tmp_path / "no.png")
    opened.page.locator("#verdict", has_text="cannot be read").wait_for()
    assert not opened.errors and not opened.requests


@pytest.mark.slow
def test_the_command_writes_the_same_page_as_the_training(pages, mnist):
    path = pages.paths["mlp"]
    before = data_of(path)
    done = call(PYTHON, "-m", "mnist_dist", "report", path.parent, "--data-dir", mnist, "--cpu")
    assert (done.returncode, done.stdout) == (0, f"report: {path}\n"), done.stderr
    assert data_of(path) == before
    done = call(PYTHON, "-m", "mnist_dist", "report", path.parent / "nowhere")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
