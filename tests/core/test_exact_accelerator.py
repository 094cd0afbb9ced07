"""The core alone, for any data, model and loss: against plain PyTorch, and copied out of the package."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PYTHON, REPOSITORY, clean_environment, results_of
from exact_accepted import ACCEPTED
from exact_asking import answer
from exact_cases import CASES, OF_THE_WHOLE_BATCH, tokens
from exact_data import BATCH, SAMPLES, Rows, accelerator, mlp, numbers
from exact_differences import PARTED, SAID
from exact_evaluations import FORMS, evaluations
from exact_faults import IN_CASES
from exact_refused_models import REFUSED_MODELS
from exact_refused_uses import REFUSED_USES, SEVERAL_ONLY
from exact_resumed import stop_and_resume
from exact_training import plain, train
from exact_unusual import SHARED, adversaries, change_of_shared_gradients, thawed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_dist.core import MeanLoss, UserError, as_stored

CORE = REPOSITORY / "mnist_dist" / "core"
LIBRARIES = {"torch", "accelerate", "numpy"}
REFUSED = REFUSED_MODELS | REFUSED_USES
CLOSE = 1e-12

SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from exact import ExactAccelerator
from exact.checkpointing import Checkpoints
from torch.utils.data import DataLoader, TensorDataset

accelerator = ExactAccelerator(cpu=True, micro_batches=2)
run, resume = Path(sys.argv[1]), len(sys.argv) > 2
torch.manual_seed(0)
dataset = TensorDataset(torch.randn(101, 5, dtype=torch.float64), torch.randint(3, (101,)))
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
train, test = DataLoader(dataset, batch_size=10, shuffle=True), DataLoader(dataset, batch_size=10)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
checkpoints = Checkpoints(accelerator, run, {"seed": 0}, every=4)
if resume:
    assert checkpoints.resume() and train.state_dict()["batch"] > 0
while train.state_dict()["epoch"] < 2:
    for inputs, labels in train:
        kept = accelerator.micro_batch.rand("dropout", 5) >= 0.2
        accelerator.backward(F.cross_entropy(model(inputs * kept), labels))
        optimizer.step()
        optimizer.zero_grad()
        checkpoints.after_update()
with torch.no_grad():
    scores = torch.cat([accelerator.gather_for_metrics(model(inputs)) for inputs, _ in test])
assert "mnist_dist" not in sys.modules
if accelerator.is_main_process:
    weights = accelerator.unwrap_model(model).state_dict()
    torch.save({"weights": weights, "scores": scores}, run / "result.pt")
accelerator.end_training()
"""


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_same(one: dict, other: dict) -> None:
    """Weights, mean loss, rate and every sample's output agree."""
    assert difference(one["weights"], other["weights"]) <= CLOSE
    for figure in ("train_loss", "learning_rate"):
        assert one[figure] == pytest.approx(other[figure], abs=CLOSE), figure
    torch.testing.assert_close(one["outputs"], other["outputs"], atol=CLOSE, rtol=0)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two structures of tensors and plain values are equal to the bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As virtual processes compute; what comes after computes as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected():
    """Every case in plain PyTorch."""
    return {name: plain(case()) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What exact_driver.py wrote on so many processes."""
    found: dict[int, dict] = {}
    launched: set[int] = set()

    def on(processes: int) -> dict:
        if processes not in launched:
            launched.add(processes)
            folder = tmp_path_factory.mktemp(str(processes))
            driver = Path(__file__).with_name("exact_driver.py")
            found[processes] = results_of(driver, folder, processes)
        assert processes in found, "exact_driver.py has failed before"
        return found[processes]

    return on


slow = pytest.mark.slow
several = pytest.mark.parametrize(
    "processes", [pytest.param(2, marks=slow), 3, pytest.param(7, marks=slow)]
)


# The folder.
def test_it_imports_nothing_but_torch_accelerate_and_numpy():
    for path in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module] if node.module else [alias.name for alias in node.names]
                where = f"{path.name}, line {node.lineno}"
                assert node.level == 1 and all((CORE / f"{name}.py").is_file() for name in names), (
                    where
                )
                continue
            else:
                continue
            for module in modules:
                assert module.split(".")[0] in sys.stdlib_module_names | LIBRARIES, (
                    f"{path.name}, line {node.lineno}"
                )


@pytest.mark.slow
def test_copied_alone_into_another_project_it_is_the_same_training_and_resumes(tmp_path):
    shutil.copytree(CORE, tmp_path / "exact", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "train.py").write_text(SCRIPT)

    def go(processes: int, run: str, *words: str) -> dict:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [PYTHON, *(launcher if processes > 1 else []), "train.py", run, *words]
        environment = clean_environment(PYTHONPATH="")
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / run / "result.pt", weights_only=True)

    (tmp_path / "alone").mkdir()
    alone, three = go(1, "alone"), go(3, "three")
    shutil.rmtree(max((tmp_path / "three" / "checkpoints").glob("step-*")))
    resumed = go(1, "three", "resume")  # of three processes, by one
    for other in (three, resumed):
        assert difference(alone["weights"], other["weights"]) <= CLOSE
        torch.testing.assert_close(alone["scores"], other["scores"], atol=CLOSE, rtol=0)


# The same training.
@pytest.mark.parametrize("name", CASES)
def test_one_process_trains_as_plain_pytorch_does(name, expected):
    assert_same(train(CASES[name]()), expected[name])


@several
@pytest.mark.parametrize("way", ["cases", "ddp", "virtual"])
def test_several_processes_train_as_plain_pytorch_does(way, processes, results, expected):
    """Their gradients summed after the backward pass, or by `DistributedDataParallel`, or along the tree."""
    assert results(processes)[way].keys() | OF_THE_WHOLE_BATCH == CASES.keys()
    for name in results(processes)[way]:
        if way == "virtual":  # whose outputs come in the order of the shares
            assert (
                difference(results(processes)[way][name]["weights"], expected[name]["weights"])
                <= CLOSE
            ), name
        else:
            assert_same(results(processes)[way][name], expected[name])


@several
def test_with_virtual_processes_the_bits_are_the_same(processes, results):
    for name, case in CASES.items():
        if name in ("tokens", "sentences-accumulated", "masked", "dropout"):
            alone = train(case(), virtual_processes=7)
            found = results(processes)["virtual"][name]
            assert same_bits(alone["weights"], found["weights"]), name
            assert alone["train_loss"] == found["train_loss"], name


def test_micro_batches_change_nothing_and_clipping_and_accumulation_do(expected):
    """Of the plain loops, so that the cases above show something."""
    whole, pieces, clipped, accumulated = (
        expected[f"sentences{way}"]["weights"]
        for way in ("", "-in-micro-batches", "-clipped", "-accumulated")
    )
    assert difference(whole, pieces) == 0.0
    assert difference(whole, clipped) > 1e-3
    assert difference(whole, accumulated) > 1e-3


@several
def test_a_planted_fault_shows_in_the_weights(processes, results, expected):
    found = results(processes)
    for fault, (name, _) in IN_CASES.items():
        with pytest.raises(AssertionError):
            assert_same(found["faults"][fault], expected[name])
        assert difference(found["faults"][fault]["weights"], expected[name]["weights"]) > 1e-9, (
            fault
        )
    assert all("draws random numbers" in said for said in found["refused"]["a fault"])


@several
def test_layers_that_begin_to_train_later_are_summed_too(processes, results):
    assert difference(results(processes)["thawed"], thawed()) <= CLOSE


@several
def test_layers_that_begin_to_train_later_are_summed_too_beside_ddp(processes, results):
    assert difference(results(processes)["thawed, ddp"], thawed()) <= CLOSE


def test_two_networks_with_optimizers_of_their_own_train_as_in_plain_pytorch():
    """A loss of one leaves gradients in the other, which are forgotten later."""
    assert difference(adversaries(accelerator()), adversaries(None)) <= CLOSE


@several
@pytest.mark.parametrize("way", ["adversaries", "adversaries, virtual"])
def test_several_processes_train_two_networks_as_one_does(way, processes, results):
    assert difference(results(processes)[way], adversaries(None)) <= CLOSE


@pytest.mark.parametrize("way", [way for way in SHARED if way != "ddp"])
def test_parameters_that_autograd_gives_the_same_gradient_are_each_changed_once(way):
    """Plain PyTorch clips and accumulates such a gradient twice."""
    assert_changed_once(way, change_of_shared_gradients(**SHARED[way]))


@several
def test_several_processes_change_them_once_too(processes, results):
    for way, change in results(processes)["shared gradients"].items():
        assert_changed_once(way, change)


def assert_changed_once(way: str, change: Tensor) -> None:
    """The change is that of one update of both parameters."""
    expected = -0.1 * numbers(20, 6).mean(dim=0).repeat(2)
    if way == "clipped":
        expected *= 0.1 * SHARED[way]["clip_norm"] / expected.norm()
    assert (change - expected).abs().max() < 1e-6


def classifier(*layers: nn.Module, **options: Any) -> tuple[Any, ...]:
    """An accelerator with a small network, its optimizer and a loader of 20 samples in batches of 7, prepared."""
    exact = accelerator(**options)
    model = nn.Sequential(mlp(6, 5, 1), *layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return exact, *exact.prepare(model, optimizer, DataLoader(Rows(numbers(20, 6)), 7))


def test_layers_that_freeze_and_thaw_again_and_again_make_two_sums_not_one_an_update():
    """On several processes each has connections of its own."""
    exact, model, optimizer, loader = classifier()
    for number in range(4):
        for rows in loader:
            model[0].requires_grad_(number % 2 == 0)
            model[0][2].requires_grad_(True)
            exact.backward(model(rows).mean())
            optimizer.step()
            optimizer.zero_grad()
    assert len(exact._gradients.sums) == 2


def test_a_batch_without_terms_changes_nothing():
    targets = numbers(20, 1).masked_fill(torch.arange(20)[:, None] < 7, torch.nan)
    exact = accelerator()
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(numbers(20, 6), targets), 7)
    model, optimizer, loader = exact.prepare(model, optimizer, loader)
    mean_loss = MeanLoss(exact)
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    for inputs, wanted in loader:
        known = ~wanted.isnan()
        squares = (model(inputs) - wanted.nan_to_num()).square() * known
        loss = squares.sum() / known.sum()  # NaN, and so are its gradients, where nothing is known
        exact.backward(loss, terms=known.sum())
        mean_loss.update(loss, known.sum())
        optimizer.step()
        optimizer.zero_grad()
        unchanged = torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
        assert unchanged == (exact.updates == 1)
    assert mean_loss.compute() > 0.0 and mean_loss.terms == 13


@pytest.mark.parametrize("as_number", [float, torch.as_tensor])
def test_terms_need_not_be_whole_numbers(as_number):
    """Weights of samples: the mean is theirs, also where they sum up to less than 1."""
    weights = torch.arange(20, dtype=torch.float64) / 1000
    inputs = numbers(20, 6)
    exact = accelerator(micro_batches=3)
    model = mlp(6, 5, 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    mean = (weights * model(inputs).square().sum(dim=1)).sum() / weights.sum()
    gradients = torch.autograd.grad(mean, list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    prepared, optimizer, loader = exact.prepare(
        model, optimizer, DataLoader(TensorDataset(inputs, weights), 20)
    )
    mean_loss = MeanLoss(exact)
    for rows, its_weights in loader:
        loss = (its_weights * prepared(rows).square().sum(dim=1)).sum() / its_weights.sum()
        exact.backward(loss, terms=as_number(its_weights.sum()))
        mean_loss.update(loss, as_number(its_weights.sum()))
        optimizer.step()
        optimizer.zero_grad()
    assert abs(mean_loss.compute() - mean.item()) < CLOSE
    for one, other, gradient in zip(before, model.parameters(), gradients, strict=True):
        assert (one - other - gradient).abs().max() < CLOSE


def test_terms_for_some_losses_of_an_update_and_not_for_others_are_refused():
    exact, model, _, loader = classifier(gradient_accumulation_steps=2)
    batches = iter(loader)
    exact.backward(model(next(batches)).mean(), terms=7)
    with pytest.raises(
        UserError, match=r"give terms to every accelerator\.backward of an update, or to none"
    ):
        exact.backward(model(next(batches)).mean())


def test_clipping_counts_gradients_of_parameters_that_no_optimizer_has():
    """As in plain PyTorch; on several processes each would otherwise have a norm of its own."""
    exact = accelerator(virtual_processes=3)
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    inputs = numbers(7, 6)
    model(inputs).mean().backward()
    whole = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    model.zero_grad()
    prepared, optimizer, loader = exact.prepare(model, optimizer, DataLoader(Rows(inputs), 7))
    for rows in loader:
        exact.backward(prepared(rows).mean())
        norm = exact.clip_grad_norm_(prepared.parameters(), 1e9)
    assert abs(norm - whole) < CLOSE


def test_a_layer_that_begins_to_drop_is_refused_with_the_next_epoch():
    exact, model, optimizer, loader = classifier(nn.Dropout(0.0))

    def epoch() -> None:
        for rows in loader:
            exact.backward(model(rows).mean())
            optimizer.step()
            optimizer.zero_grad()

    epoch()
    model[1].p = 0.5
    with pytest.raises(
        UserError, match="Dropout 1 draws random numbers for each process's own samples"
    ):
        epoch()


def test_each_group_of_parameters_keeps_its_own_rate():
    exact = accelerator()
    model = mlp(6, 5, 1)
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "lr": 0.3},
    ]
    optimizer = torch.optim.SGD(groups, lr=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: [0.5, 0.0, 1.0, 0.25][update]
    )
    loader = DataLoader(Rows(numbers(20, 6)), 7)
    model, optimizer, loader, scheduler = exact.prepare(model, optimizer, loader, scheduler)
    rates = []
    for rows in loader:
        exact.backward(model(rows).mean())
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        scheduler.step()
        optimizer.zero_grad()
    assert rates == [[2 * factor, 0.3 * factor] for factor in (0.5, 0.0, 1.0)]
    assert scheduler.get_last_lr() == [0.5, 0.3 * 0.25]


# What is refused.
@pytest.mark.parametrize("name", [name for name in REFUSED if name not in SEVERAL_ONLY])
def test_what_would_depend_on_the_sharing_is_refused_in_a_sentence_before_the_first_update(name):
    ask, words = REFUSED[name]
    said = answer(ask)
    assert words in said and "\n" not in said


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_does_not_depend_on_the_sharing_is_accepted(name):
    assert answer(ACCEPTED[name]) == ""


@several
def test_several_processes_refuse_together_and_none_hangs(processes, results):
    found = results(processes)
    assert found["refused"].keys() == {*REFUSED, *PARTED, "a fault"}
    for name, said in found["refused"].items():
        if name == "a fault":
            continue
        words = SAID[name] if name in SAID else REFUSED[name][1]
        assert len(said) == processes, name
        assert all(words in each and "\n" not in each for each in said), (name, said)
        # These messages name numbers of each process's own.
        if name not in ("rows too many", "a loss for each", "ignored targets", "some rows only"):
            assert len(set(said)) == 1, (name, said)
    assert found["refused"]["too few samples"][0].startswith(
        f"{processes} processes cannot share {processes - 1} samples"
    )
    assert all(said == [""] * processes for said in found["accepted"].values()), found["accepted"]


# Evaluation.
def assert_answers(answers: dict, model: nn.Module, inputs: Tensor) -> None:
    """The rows of every form are those of the model asked about all inputs at once."""
    scores = model(inputs).detach()
    for name, form in FORMS.items():
        assert_rows(answers[name], form(scores), name)


def assert_rows(found: Any, wanted: Any, name: str) -> None:
    """The same values, in the same structure."""
    if isinstance(wanted, Tensor):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype, name
        close = 1e-2 if wanted.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found, wanted, atol=close, rtol=0)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), name
        for key in wanted:
            assert_rows(found[key], wanted[key], name)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), name
        for one, other in zip(found, wanted, strict=True):
            assert_rows(one, other, name)
    else:
        assert found == wanted, name


def test_an_evaluation_gives_every_row_in_the_order_of_the_data_whatever_its_form():
    model, inputs, answers = evaluations()
    assert_answers(answers, model, inputs)


@several
def test_several_processes_evaluate_every_sample_once_and_all_in_order(processes, results):
    model, inputs, _ = evaluations()
    assert_answers(results(processes)["evaluations"], model, inputs)


def test_as_stored_leaves_every_layer_in_its_mode_and_no_gradient():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.train()
    model[0].eval()
    with as_stored(model) as network:
        assert [layer.training for layer in model.modules()] == [False] * 4
        found = network(torch.randn(7, 4))
    assert not found.requires_grad
    assert [layer.training for layer in model.modules()] == [True, False, True, True]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_forward_of_ones_own_is_evaluated_as_stored_too(precision):
    """Accelerate puts its mixed precision where that is; the core takes no more away than that."""
    code = """if True:
        import torch
        from mnist_dist.core import ExactAccelerator, as_stored
        accelerator, model = ExactAccelerator(cpu=True, mixed_precision=PRECISION), torch.nn.Linear(4, 2)
        bare, inputs = model.forward, torch.randn(7, 4)
        model.forward = lambda rows: bare(rows) + 1000.125
        accelerator.prepare(model)
        in_training = model.forward
        with as_stored(model):
            found = model(inputs)
        assert torch.equal(found, (bare(inputs) + 1000.125).detach()) and model.forward == in_training
    """
    subprocess.run(
        [PYTHON, "-c", code.replace("PRECISION", repr(precision))], cwd=REPOSITORY, check=True
    )


# Checkpoints.
def assert_resumed_to_the_bit(found: dict, processes: int) -> None:
    """Stopped on all processes after the same update, resumed within an epoch, and the end is the same."""
    assert (
        len(found["stopped_at"]) == processes
        and len(set(found["stopped_at"])) == 1
        and found["stopped_at"][0] >= 5
    )
    assert found["within"] > 0 and 0 < found["resumed_at"] < 44
    assert same_bits(found["whole"], found["resumed"])
    assert (
        len(found["whole"]["notes"]["seen"]) == 2 * 44
        and len(found["whole"]["notes"]["losses"]) == 4
    )


def test_stopped_in_mid_epoch_and_resumed_all_parts_end_with_the_same_bits(tmp_path):
    assert_resumed_to_the_bit(stop_and_resume(tmp_path), 1)


@several
def test_several_processes_stop_after_the_same_update_and_resume_to_the_bit(processes, results):
    assert_resumed_to_the_bit(results(processes)["resumed"], processes)


# The loaders.
def test_what_a_loader_offers_beside_its_batches_is_that_of_the_users():
    dataset = TensorDataset(*tokens().data)
    loader = accelerator().prepare(DataLoader(dataset, BATCH, shuffle=True, drop_last=True))
    assert loader.dataset is dataset and loader.drop_last
    assert len(loader) == SAMPLES // BATCH and loader.total_dataset_length == SAMPLES
    seen = [int(number) for _ in loader for number in accelerator_numbers(loader)]
    assert len(seen) == len(set(seen)) == SAMPLES // BATCH * BATCH


def accelerator_numbers(loader: Any) -> Tensor:
    """The numbers of the samples that a loader has just given."""
    return loader.accelerator.micro_batch.index


def test_an_accelerator_of_another_precision_gives_what_the_layers_compute():
    """bf16 for layers, float32 for weights and what comes out."""
    code = """if True:
        import torch
        from mnist_dist.core import ExactAccelerator
        model = torch.nn.Linear(4, 2)
        inputs = torch.randn(3, 4)
        wanted = torch.nn.functional.linear(inputs.bfloat16(), model.weight.bfloat16(), model.bias.bfloat16()).float()
        prepared = ExactAccelerator(cpu=True, mixed_precision="bf16").prepare(model)
        assert torch.equal(prepared(inputs), wanted)
    """
    subprocess.run([PYTHON, "-c", code], cwd=REPOSITORY, check=True)


def test_a_position_within_an_update_is_that_of_its_beginning():
    """Its gradients so far are in no checkpoint, so its batches are worked through again."""
    exact, model, optimizer, loader = classifier(gradient_accumulation_steps=2)
    positions = []
    for rows in loader:
        exact.backward(model(rows).mean())
        optimizer.step()
        optimizer.zero_grad()
        positions.append(loader.state_dict())
    assert positions == [
        {"epoch": 0, "batch": 0},
        {"epoch": 0, "batch": 2},
        {"epoch": 1, "batch": 0},
    ]


def test_a_loss_of_one_batch_weighs_as_much_as_its_rows():
    """The gradients of two batches that make an update, of 7 and of 6 rows, are those of all 13."""
    exact = accelerator(gradient_accumulation_steps=2)
    model = mlp(6, 5, 1)
    inputs = numbers(13, 6)
    F.mse_loss(model(inputs), torch.zeros(13, 1, dtype=torch.float64)).backward()
    wanted = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    prepared, loader = exact.prepare(model, DataLoader(Rows(inputs), 7))
    for rows in loader:
        exact.backward(prepared(rows).square().mean())
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).abs().max() < CLOSE
