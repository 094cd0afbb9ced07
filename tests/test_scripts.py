"""Scripts of the kinds that Accelerate's examples are: each is the same training, or is refused in a sentence."""

import pytest
import torch
from conftest import PYTHON, REPOSITORY, call
from scripts_driver import OPTIONS, QUESTIONABLE, SAMPLES, SCRIPTS

SENTENCES = {  # by the number of processes and the kind; the others are not refused
    "batches before backward": {
        "1 alone": "before the loader gave another one",
        "3 alone": "before the loader gave another one",
        "1 virtual": "before the loader gave another one",
        "3 virtual": "before the loader gave another one",
    },
    "accumulation by counting": {
        "1 virtual": "give ExactAccelerator gradient_accumulation_steps",
        "3 virtual": "give ExactAccelerator gradient_accumulation_steps",
    },
    "micro-batches skipped": {
        "1 virtual": "asked to skip 3 batches after load_state, which by itself goes on behind",
        "3 virtual": "asked to skip 3 batches after load_state, which by itself goes on behind",
    },
    "local SGD": {
        "3 alone": "model.no_sync, which LocalSGD uses too",
        "3 virtual": "model.no_sync, which LocalSGD uses too",
    },
    "shapes that differ": {
        "3 alone": "gather was given tensors of the shapes [(2, 1)] on process 0 and [(2, 2)]",
        "3 virtual": "gather was given tensors of the shapes [(2, 1)] on process 0 and [(2, 2)]",
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What scripts_driver.py wrote on 1 and on 3 processes."""
    folder = tmp_path_factory.mktemp("scripts")
    done = call(PYTHON, REPOSITORY / "tests" / "scripts_driver.py", folder, "1", "3", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        processes: torch.load(folder / f"{processes}.pt", weights_only=True) for processes in (1, 3)
    }


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_the_same_training_on_three_processes(results, name, kind):
    one, three = (results[processes][f"{kind}: {name}"] for processes in (1, 3))
    assert one.keys() == three.keys()
    tolerance = 0.0 if kind == "virtual" else 1e-12
    for key, tensor in one.items():
        assert torch.allclose(tensor, three[key], rtol=0.0, atol=tolerance), key


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_early_stop_is_no_end_of_an_epoch(results, kind):
    updates = int(results[1][f"{kind}: early stopping"]["updates"])
    assert updates % 4 or updates < 20 * 4
    assert 0 < int(results[1][f"{kind}: stopped by one row"]["updates"]) < 4


@pytest.mark.parametrize("processes", [1, 3])
def test_gather_gives_every_row_once_where_processes_have_different_numbers(results, processes):
    for kind in OPTIONS:
        found = results[processes][f"{kind}: metrics"]["answers"]
        assert found[:, 0].tolist() == list(range(SAMPLES))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", QUESTIONABLE)
def test_what_would_be_another_training_is_refused_in_a_sentence(results, name, kind, processes):
    said = results[processes][f"{kind}: {name}"]
    wanted = SENTENCES[name].get(f"{processes} {kind}", "")
    assert wanted in said and "\n" not in said
    assert bool(said) == bool(wanted)
