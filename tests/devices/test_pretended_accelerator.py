"""What a GPU is asked to do, on one that does not exist: see pretended.py. No GPU is needed, and none is measured."""

import json
from functools import partial
from pathlib import Path

import pytest
from conftest import PYTHON, call, torchrun

SMALL = "--dataset mnist-5k --wandb disabled --val-size 3399 --batch-size 150 --epochs 1"
# That makes 4 updates, and 1 of 1 sample.
EVERY = (
    "--model cnn --ema 0.9 --clip-norm 0.5 --gradient-accumulation-steps 2 --affine 0.5 --elastic 0.5 --dropout 0.1 "
    "--weight-decay 0.01 --label-smoothing 0.1 --schedule one-cycle"
)
SHARES = "--virtual-processes 3"  # two of them are empty in the last update
# Where the host may wait, and why. No other place may.
PLACES = {
    "train.py:main": "the model goes to the device, once",
    "mnist_dist/task/data.py:to": "so do the data",
    "mnist_dist/task/distortions.py:fields": "and what distortions are made of",
    "mnist_dist/core/digests.py:digest": "what processes must share is compared, once",
    "mnist_dist/core/kernels.py:__init__": "the numbers that compare kernels go to the device, once",
    "mnist_dist/core/row_means.py:examine_cross_entropy": "the loss is looked at, once an epoch",
    "mnist_dist/core/microbatches.py:epoch": "an epoch's order is drawn on the CPU",
    "mnist_dist/core/losses.py:sum_over_shares": "a point of the loss curve",
    "mnist_dist/core/accelerator.py:check_weights": "weights are compared, after an epoch",
    "mnist_dist/task/evaluation.py:evaluation_of": "an evaluation gives its answers, and counts its samples",
    "mnist_dist/core/files.py:as_bytes": "a checkpoint is written",
    "mnist_dist/core/state.py:restore": "and read",
    "mnist_dist/run/weights.py:save_weights": "the weights are written",
    "mnist_dist/plots/classification.py:draw_mistakes": "pictures are drawn",
    "mnist_dist/plots/classification.py:digits": "pictures are drawn",
    "mnist_dist/report/thumbnails.py:picture": "and shown in the run's page",
    "evaluate.py:main": "the weights go to the device",
}
OF_FP16 = {
    "mnist_dist/core/state.py:collect": "the scale is in a checkpoint",
    "mnist_dist/task/objective.py:follow": "a skipped update does not move the average: the only wait in an update",
}
OF_SEVERAL = {
    "mnist_dist/core/gathering.py:numbers_of_processes": "an evaluation sees that all have rows of one form",
    "mnist_dist/core/gathering.py:gather_tensor": "and puts them in order",
    "mnist_dist/core/row_means.py:scalar_operand": "so is what multiplies it (without virtual processes)",
}
# The most operations of an update after the first, on one process; a kernel each, or a few of them.
# The last update of "every" has empty shares, for which the forward pass is tried before it is made.
CEILINGS = {"mlp": 25, "resumed": 25, "cnn": 44, "scaler": 38, "every": 770}


def training_in(folder, name, flags="", **rules):
    return {
        "program": "train",
        "flags": f"{SMALL} --output-dir {folder / name} {flags}".split(),
        **rules,
    }


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By name: what a run did on the device; and the folder with the runs."""
    folder = tmp_path_factory.mktemp("pretended")
    training = partial(training_in, folder)

    runs = {
        "mlp": training("mlp"),
        "resumed": training("mlp", "--epochs 2 --resume"),
        "cnn": training("cnn", "--model cnn"),
        "every": training("every", f"{EVERY} {SHARES}"),
        "scaler": training("scaler", "--ema 0.9", scaler=True),
        "evaluated": {
            "program": "evaluate",
            "flags": f"{folder / 'every'} --shifts --distortions 1".split(),
        },
        "double": training("double", "--dtype float64"),
        "moved": training("every", f"{EVERY} {SHARES} --cpu --resume"),
        "cpu": training("cpu", f"{EVERY} {SHARES} --cpu"),
    }
    done = call(
        PYTHON,
        Path(__file__).with_name("pretended.py"),
        json.dumps(list(runs.values())),
        folder / "found",
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(runs, json.loads((folder / "found-0.json").read_text()), strict=True)), folder


def test_no_tensor_is_on_the_wrong_device_and_none_is_float64_unless_asked_for(found):
    errors = {name: run["error"] for name, run in found[0].items() if run["error"]}
    assert list(errors) == ["double", "moved"], errors
    assert (
        "which the device has not" in errors["double"]
        and "GPU is not set here, but the run in" in errors["moved"]
    )


def test_the_host_waits_in_these_places_and_in_no_update(found):
    places = {name: {place for place, _, _ in run["waits"]} for name, run in found[0].items()}
    assert places.pop("scaler") - PLACES.keys() == OF_FP16.keys()
    assert set().union(*places.values()) == PLACES.keys()
    for name in ("mlp", "resumed", "cnn", "every"):
        assert not any(waits for waits, _ in found[0][name]["updates"][1:]), name


def test_an_update_gives_the_device_no_more_work_than_this(found):
    most = {name: max(work for _, work in found[0][name]["updates"][1:]) for name in CEILINGS}
    over = {name: work for name, work in most.items() if work > CEILINGS[name]}
    assert not over


def test_a_run_on_a_device_has_the_bits_of_one_on_the_cpu(found):
    assert same_weights(found[1]) and not found[0]["cpu"]["waits"]


def same_weights(folder):
    one, other = ((folder / run / "mnist_model.pth").read_bytes() for run in ("every", "cpu"))
    return one == other


def test_nor_do_several_processes_wait_and_they_have_the_bits_of_as_many_on_the_cpu(tmp_path):
    runs = [training_in(tmp_path, "every", EVERY), training_in(tmp_path, "cpu", f"{EVERY} --cpu")]
    done = torchrun(
        3, Path(__file__).with_name("pretended.py"), json.dumps(runs), tmp_path / "found"
    )
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        on_device, _ = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert not on_device["error"]
        assert {place for place, _, _ in on_device["waits"]} <= PLACES.keys() | OF_SEVERAL.keys()
        assert [waits for waits, _ in on_device["updates"][1:]] == [0, 0, 0, 0]
    assert same_weights(tmp_path)
