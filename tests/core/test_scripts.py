"""Scripts of the kinds that Accelerate's examples are: each is the same training, or is refused in a sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PYTHON, REPOSITORY, call
from layer_cases import TABLE, cases, train
from script_cases import SCRIPTS, STOPPED_AT
from script_refusals import QUESTIONABLE
from script_surprises import QUESTIONABLE_SURPRISES, SURPRISES
from scripts_driver import OPTIONS
from small_training import SAMPLES

SENTENCES = {  # by the number of processes and the kind; the others are not refused
    "batches before backward": {
        "1 alone": "before the loader moved on to the next",
        "3 alone": "before the loader moved on to the next",
        "1 virtual": "before the loader moved on to the next",
        "3 virtual": "before the loader moved on to the next",
    },
    "accumulation by counting": {
        "1 virtual": "pass gradient_accumulation_steps to ExactAccelerator",
        "3 virtual": "pass gradient_accumulation_steps to ExactAccelerator",
    },
    "micro-batches skipped": {
        "1 virtual": "asked to skip 3 batches, but load_state has already set the loader to",
        "3 virtual": "asked to skip 3 batches, but load_state has already set the loader to",
    },
    "update declared complete": {
        "1 virtual": "sync_gradients was set to True before an update's last micro-batch",
        "3 virtual": "sync_gradients was set to True before an update's last micro-batch",
    },
    "local SGD": {
        "3 alone": "model.no_sync (which LocalSGD also uses)",
        "3 virtual": "model.no_sync (which LocalSGD also uses)",
    },
    "statistics anew": {
        "1 virtual": "was changed in a loop without accelerator.backward, as in update_bn",
        "3 virtual": "was changed in a loop without accelerator.backward, as in update_bn",
    },
    "a head in training mode": {
        "1 alone": "Dropout 1 draws random numbers for each process's own samples",
        "3 alone": "Dropout 1 draws random numbers for each process's own samples",
    },
    "weights of classes in eval mode": {
        "1 alone": "the loss weights classes",
        "3 alone": "the loss weights classes",
    },
    "names beside tensors": {
        "1 alone": "was given tensors together with str",
        "3 alone": "was given tensors together with str",
        "1 virtual": "was given tensors together with str",
        "3 virtual": "was given tensors together with str",
    },
    "one's own backward": {
        "1 alone": "accelerator.backward was not called for this batch",
        "3 alone": "accelerator.backward was not called for this batch",
        "1 virtual": "accelerator.backward was not called for this batch",
        "3 virtual": "accelerator.backward was not called for this batch",
    },
    "steps within the backward pass": {
        "1 alone": "has a hook (register_post_accumulate_grad_hook)",
        "3 alone": "has a hook (register_post_accumulate_grad_hook)",
        "1 virtual": "has a hook (register_post_accumulate_grad_hook)",
        "3 virtual": "has a hook (register_post_accumulate_grad_hook)",
    },
    "shapes that differ": {
        "3 alone": "gather was given tensors of shapes [(2, 1)] on process 0 and [(2, 2)]",
        "3 virtual": "gather was given tensors of shapes [(2, 1)] on process 0 and [(2, 2)]",
    },
}


def run(what: str, folder: Path) -> dict[int, dict[str, Any]]:
    """What scripts_driver.py writes on 1 and on 3 processes."""
    done = call(
        PYTHON, Path(__file__).with_name("scripts_driver.py"), folder, what, "1", "3", timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        processes: torch.load(folder / f"{processes}.pt", weights_only=True) for processes in (1, 3)
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run("scripts", tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    return run("layers", tmp_path_factory.mktemp("layers"))


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", SCRIPTS | SURPRISES)
def test_it_is_the_same_training_on_three_processes(results, name, kind):
    one, three = (results[processes][f"{kind}: {name}"] for processes in (1, 3))
    assert one.keys() == three.keys()
    tolerance = 0.0 if kind == "virtual" else 1e-12
    for key, tensor in one.items():
        assert torch.allclose(tensor, three[key], rtol=0.0, atol=tolerance), key


@pytest.mark.parametrize("processes", [1, 3])
def test_a_loop_that_a_share_stops_ends_after_the_update_of_its_batch(results, processes):
    for kind in OPTIONS:
        assert int(results[processes][f"{kind}: stopped by one row"]["updates"]) == STOPPED_AT


@pytest.mark.parametrize("processes", [1, 3])
def test_gather_gives_every_row_once_where_processes_have_different_numbers(results, processes):
    for kind in OPTIONS:
        found = results[processes][f"{kind}: metrics"]["answers"]
        assert found[:, 0].tolist() == list(range(SAMPLES))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", QUESTIONABLE | QUESTIONABLE_SURPRISES)
def test_what_would_be_another_training_is_refused_in_a_sentence(results, name, kind, processes):
    said = results[processes][f"{kind}: {name}"]
    wanted = SENTENCES[name].get(f"{processes} {kind}", "")
    assert wanted in said and "\n" not in said
    assert bool(said) == bool(wanted)


# The table of layers in docs/accelerator.md.
def rows_of_the_table() -> dict[str, tuple[str, str]]:
    """What the cells of each row begin with, by what the row is about."""
    text = (REPOSITORY / "docs" / "accelerator.md").read_text()
    (table,) = re.findall(r"\| in training \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    rows = [line.strip("|").split(" | ") for line in table.splitlines()]
    return {
        name.strip(): (first_word(without), first_word(virtual)) for name, without, virtual in rows
    }


def first_word(cell: str) -> str:
    """Without punctuation."""
    return re.findall(r"\w+", cell)[0]


def test_each_row_of_the_table_of_layers_has_a_training_and_says_what_comes_of_it():
    assert rows_of_the_table() == {name: (row.without, row.virtual) for name, row in TABLE.items()}


def cell_of(name: str, kind: str) -> str:
    """What the table says of a row without or with virtual processes."""
    return TABLE[name].virtual if kind == "virtual" else TABLE[name].without


@pytest.mark.parametrize(
    ("name", "model", "loss", "kind"),
    [(*case, kind) for case in cases() for kind in OPTIONS if cell_of(case[0], kind) == "refused"],
)
def test_a_layer_that_is_said_to_be_refused_is_refused_in_a_sentence(name, model, loss, kind):
    said = train(TABLE[name].models[model], TABLE[name].losses[loss], OPTIONS[kind])
    assert isinstance(said, str) and "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("name", "model", "loss"), cases())
def test_a_layer_is_the_same_on_three_processes_or_is_refused(layers, name, model, loss, kind):
    one, three = (layers[processes][f"{kind}: {name}: {model}, {loss}"] for processes in (1, 3))
    if cell_of(name, kind) == "refused":
        assert isinstance(one, str) and one == three and "\n" not in one
        return
    assert isinstance(one, dict), one
    assert isinstance(three, dict), three
    tolerance = 0.0 if kind == "virtual" else 1e-12
    for key, tensor in one.items():
        assert torch.allclose(tensor, three[key], rtol=0.0, atol=tolerance), key
