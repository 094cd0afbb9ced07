"""The core alone, for any data, model and loss: against plain PyTorch, and copied out of the package."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import PYTHON, REPOSITORY, call, clean_environment
from core_driver import (
    ACCEPTED,
    CASES,
    FAULTS,
    OUTPUTS,
    REFUSED,
    answer,
    evaluations,
    mlp,
    numbers,
    plain,
    stop_and_resume,
    thawed,
    train,
)
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from mnist_dist.core import Checkpoints, GlobalBatches, Training, UserError, evaluate, processes

CORE = REPOSITORY / "mnist_dist" / "core"
LIBRARIES = {"torch", "accelerate", "tqdm"}

SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from exact import Checkpoints, GlobalBatches, Training, evaluate

accelerator, run, resume = Accelerator(cpu=True), Path(sys.argv[1]), len(sys.argv) > 2
torch.manual_seed(0)
inputs, labels = torch.randn(101, 5, dtype=torch.float64), torch.randint(3, (101,))
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)


def loss(model, batch):
    kept = batch.rand("dropout", 5) >= 0.2
    return F.cross_entropy(model(batch.data[0] * kept), batch.data[1], reduction="sum")


training = Training(accelerator, model, optimizer, loss)
checkpoints = Checkpoints(run, training, {}, {"seed": 0}, every=4)
if resume:
    assert checkpoints.resume() and training.progress.step > 0
while training.progress.epoch < 2:
    for batch in training.epoch(GlobalBatches((inputs, labels), 10, accelerator, seed=0)):
        training.update(batch, pieces=2)
        checkpoints.after_update()
scores = evaluate(accelerator, model, GlobalBatches(inputs, 10, accelerator), lambda model, batch: model(batch.data))
assert "mnist_dist" not in sys.modules
if accelerator.is_main_process:
    right = int((scores.argmax(dim=1) == labels).sum())
    torch.save({"weights": model.state_dict(), "scores": scores, "right": right}, run / "result.pt")
accelerator.end_training()
"""


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_same(one: dict, other: dict) -> None:
    """Weights, mean loss, rate and every sample's output agree."""
    assert difference(one["weights"], other["weights"]) <= 1e-9
    for figure in ("train_loss", "learning_rate"):
        assert one[figure] == pytest.approx(other[figure], abs=1e-9), figure
    torch.testing.assert_close(one["outputs"], other["outputs"], atol=1e-9, rtol=0)


def same_bits(one: object, other: object) -> bool:
    """Whether two structures of tensors and plain values are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


@pytest.fixture(autouse=True)
def handlers():
    """What this process does on signals, which `Checkpoints` changes."""
    before = {number: signal.getsignal(number) for number in processes.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def expected():
    """Every case in plain PyTorch."""
    return {name: plain(case()) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What core_driver.py wrote on so many processes."""
    found: dict[int, dict] = {}

    def on(processes: int) -> dict:
        if processes not in found:
            folder = tmp_path_factory.mktemp(str(processes))
            done = call(PYTHON, REPOSITORY / "tests" / "core_driver.py", folder, str(processes))
            assert done.returncode == 0, done.stderr
            found[processes] = torch.load(folder / "results.pt", weights_only=True)
        return found[processes]

    return on


slow = pytest.mark.slow
several = pytest.mark.parametrize("processes", [pytest.param(2, marks=slow), 3, pytest.param(7, marks=slow)])


# The folder.
def test_it_imports_nothing_but_torch_accelerate_and_tqdm():
    for path in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and (CORE / f"{node.module}.py").is_file(), f"{path.name}, line {node.lineno}"
                continue
            else:
                continue
            for module in modules:
                assert module.split(".")[0] in sys.stdlib_module_names | LIBRARIES, f"{path.name}, line {node.lineno}"


def test_it_has_at_most_700_lines():
    assert sum(path.read_text().count("\n") for path in CORE.rglob("*.py")) <= 700


@pytest.mark.slow
def test_copied_alone_into_another_project_it_is_the_same_training_and_resumes(tmp_path):
    shutil.copytree(CORE, tmp_path / "exact", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "train.py").write_text(SCRIPT)

    def go(processes: int, run: str, *words: str) -> dict:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [PYTHON, *(launcher if processes > 1 else []), "train.py", run, *words]
        environment = clean_environment(PYTHONPATH="")
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / run / "result.pt", weights_only=True)

    alone, three = go(1, "alone"), go(3, "three")
    shutil.rmtree(max((tmp_path / "three" / "checkpoints").glob("step-*")))
    for other in (three, go(1, "three", "resume")):  # of three processes, resumed by one
        assert difference(alone["weights"], other["weights"]) <= 1e-9
        torch.testing.assert_close(alone["scores"], other["scores"], atol=1e-9, rtol=0)
        assert alone["right"] == other["right"]


# The same training.
@pytest.mark.parametrize("name", CASES)
def test_one_process_trains_as_plain_pytorch_does(name, accelerator, expected):
    assert_same(train(accelerator, CASES[name]()), expected[name])


@several
def test_several_processes_train_as_plain_pytorch_does(processes, results, expected):
    for name in CASES:
        assert_same(results(processes)["cases"][name], expected[name])


def test_pieces_change_nothing_and_clipping_does(expected):
    """Of the plain loops, so that the cases above show something."""
    whole, pieces, clipped = (expected[f"sentences{way}"]["weights"] for way in ("", "-in-pieces", "-clipped"))
    assert difference(whole, pieces) == 0.0 and difference(whole, clipped) > 1e-3


@several
def test_a_planted_fault_shows_in_the_weights_and_the_loss_is_refused_if_it_can_be(processes, results, expected):
    found = results(processes)
    for fault, (name, words) in FAULTS.items():
        with pytest.raises(AssertionError):
            assert_same(found["faults"][fault.__name__], expected[name])
        assert difference(found["faults"][fault.__name__]["weights"], expected[name]["weights"]) > 1e-9
        said = found["faults seen"][fault.__name__]
        assert words in said if words else not said


@several
def test_layers_that_begin_to_train_later_are_summed_too(processes, results, accelerator):
    assert difference(results(processes)["thawed"], thawed(accelerator)) <= 1e-9


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("lengths", [None, torch.arange(20) % 3])
def test_a_loss_may_set_the_terms_of_its_batch(pieces, lengths, accelerator):
    """It is asked once more at first, and once for each piece, none of which sees what another has set."""

    def trained(scale) -> torch.Tensor:
        torch.manual_seed(0)
        model = mlp(6, 5, 1)

        def loss(model, batch):
            scale(batch)
            return model(batch.data).square().sum()

        training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
        for batch in GlobalBatches(numbers(20, 6), 7, accelerator, seed=0, terms=lengths).epoch():
            training.update(batch, pieces=pieces)
        return nn.utils.parameters_to_vector(model.parameters())

    def once(batch):
        batch.terms = 3 * (batch.size if lengths is None else lengths[order[batch.words[2]]].sum())

    def in_place(batch):
        batch.terms *= 3

    order = GlobalBatches(numbers(20, 6), 7, seed=0).order(0).split(7)
    assert torch.equal(trained(once), trained(in_place))


def test_a_penalty_that_does_not_come_from_samples_is_refused(accelerator):
    model = mlp(6, 5, 1)

    def loss(model, batch):
        return model(batch.data).square().sum() + 0.001 * sum(weight.square().sum() for weight in model.parameters())

    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
    with pytest.raises(UserError, match="the loss is no sum over samples"):
        training.update(next(GlobalBatches(numbers(20, 6), 7, accelerator).epoch()))


@pytest.mark.parametrize("options", [{"virtual": 3}, {"pieces": 3}, {"clip_norm": 0.01}], ids=repr)
def test_parameters_that_autograd_gives_the_same_gradient_are_each_changed_once(options, accelerator):
    """Such as embeddings of a token's place and kind. Plain PyTorch clips and accumulates such a gradient twice."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Parameter(numbers(6)), nn.Parameter(numbers(6))

        def forward(self, rows):
            return rows * (self.one[None] + self.other[None])

    def loss(model, batch):
        return model(batch.data).sum()

    def change(virtual=0, **options):
        training = Training(accelerator, model := Sum(), torch.optim.SGD(model.parameters(), lr=0.1), loss)
        begun = nn.utils.parameters_to_vector(model.parameters()).detach()
        training.update(next(GlobalBatches(numbers(20, 6), 20, accelerator, virtual=virtual).epoch()), **options)
        return nn.utils.parameters_to_vector(model.parameters()).detach() - begun

    expected = change()
    if "clip_norm" in options:
        expected *= 0.1 * options["clip_norm"] / expected.norm()
    assert (change(**options) - expected).abs().max() < 1e-6


def test_layers_that_freeze_and_thaw_again_and_again_make_two_sums_not_one_an_update(accelerator):
    """On several processes each has connections of its own."""
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(accelerator, model, optimizer, lambda model, batch: model(batch.data).sum())
    for number, batch in enumerate(GlobalBatches(numbers(20, 6), 2, accelerator).epoch()):
        model[0].requires_grad_(number % 2 == 0)
        training.update(batch)
    assert len(training.known) == 2


def test_a_batch_without_terms_changes_nothing(accelerator):
    model, targets = mlp(6, 5, 1), numbers(20, 1).masked_fill(torch.arange(20)[:, None] < 7, torch.nan)

    def loss(model, batch):
        inputs, targets = batch.data
        return ((model(inputs) - targets.nan_to_num()) * ~targets.isnan()).square().sum()

    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
    terms = (~targets.isnan()).sum(dim=1)
    first, *others = GlobalBatches((numbers(20, 6), targets), 7, accelerator, terms=terms).epoch()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    training.update(first)
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
    assert training.recent_loss() == 0.0
    for batch in others:
        training.update(batch)
    assert training.recent_loss() > 0.0 and training.progress.terms == 13


def test_terms_need_not_be_whole_numbers(accelerator):
    """Weights of samples: the mean is theirs, also where they sum up to less than 1."""
    weights, model = torch.arange(20) / 1000, mlp(6, 5, 1)

    def loss(model, batch):
        inputs, weights = batch.data
        return (weights * model(inputs).square().sum(dim=1)).sum()

    inputs, before = numbers(20, 6), [each.detach().clone() for each in model.parameters()]
    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=1.0), loss)
    mean = (weights * model(inputs).square().sum(dim=1)).sum() / weights.sum()
    expected = torch.autograd.grad(mean, list(model.parameters()))
    for batch in training.epoch(GlobalBatches((inputs, weights), 20, accelerator, terms=weights)):
        training.update(batch)
    assert abs(training.figures["train_loss"] - mean.item()) < 1e-6
    for one, other, gradient in zip(before, model.parameters(), expected, strict=True):
        assert (one - other - gradient).abs().max() < 1e-6


def test_a_layer_that_begins_to_drop_is_refused_with_the_next_epoch(accelerator):
    model = nn.Sequential(mlp(6, 5, 1), nn.Dropout(0.0))
    training = Training(
        accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), lambda model, batch: model(batch.data).sum()
    )
    batches = GlobalBatches(numbers(20, 6), 7, accelerator)
    for batch in training.epoch(batches):
        training.update(batch)
    model[1].p = 0.5
    with pytest.raises(UserError, match="Dropout 1 draws for a process's samples alone"):
        next(training.epoch(batches))


def test_a_loss_may_ask_for_gradients(accelerator):
    """Such as of a physical equation that its inputs are to obey."""
    model = mlp(6, 5, 1)

    def loss(model, batch):
        inputs = batch.data.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return slope.square().sum()

    training = Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
    for batch in training.epoch(GlobalBatches(numbers(20, 6), 7, accelerator)):
        training.update(batch)
    assert training.figures["train_loss"] > 0


@pytest.mark.parametrize("other", [[1, 2, 3, 4], np.zeros(4), "four"])
def test_only_tensors_are_dealt_out(other):
    with pytest.raises(UserError, match=r"the data hold (int|ndarray|str): give a tensor, or a tuple or dict"):
        GlobalBatches({"inputs": torch.zeros(4), "others": other}, 2)


def test_each_group_of_parameters_keeps_its_own_rate(accelerator):
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.3}], lr=2)
    training = Training(accelerator, model, optimizer, lambda model, batch: model(batch.data).sum())
    for factor in (0.5, 0.0, 1.0):
        training.set_rate(factor)
        assert [group["lr"] for group in optimizer.param_groups] == [2 * factor, 0.3 * factor]
        assert training.rate == 2 * factor


# What is refused.
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_depend_on_the_sharing_is_refused_in_a_sentence_before_the_first_update(name, accelerator):
    ask, words = REFUSED[name]
    said = answer(ask, accelerator)
    assert words in said and "\n" not in said


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_does_not_depend_on_the_sharing_is_accepted(name, accelerator):
    assert answer(ACCEPTED[name], accelerator) == ""


@several
def test_several_processes_refuse_together_and_none_hangs(processes, results):
    found = results(processes)
    for name, said in found["refused"].items():
        own = {
            "few samples": f"{processes} processes are more than the {processes - 1}",
            "buffers": "same seed, differ",
            "data": "in the same order, differ between processes 0 and 1",
            "order": "by their numbers in the model, differ between processes 0 and 1 ([0, 1, 2, 3] against",
            "parted": "processes no longer have the same weights after update 3; the last good checkpoint is none",
        }
        words = own[name] if name in own else REFUSED[name][1]
        assert len(said) == processes and len(set(said)) == 1 and words in said[0], name
    assert {*REFUSED, *own} == found["refused"].keys()
    assert all(said == [""] * processes for said in found["accepted"].values())


# Evaluation.
def assert_answers(answers: dict, model: nn.Module, inputs: torch.Tensor) -> None:
    """The rows of every form are those of the model asked about all inputs at once."""
    for name, form in OUTPUTS.items():
        wanted = form(model(inputs)).detach()
        assert answers[name].shape == wanted.shape and answers[name].dtype == wanted.dtype, name
        torch.testing.assert_close(answers[name], wanted, atol=1e-2 if wanted.dtype == torch.bfloat16 else 1e-6, rtol=0)


def test_evaluation_gives_every_row_in_the_order_of_the_data_whatever_its_dtype_and_shape(accelerator):
    model, inputs, answers = evaluations(accelerator)
    assert_answers(answers, model, inputs)


@several
def test_several_processes_evaluate_every_sample_once_and_all_in_order(processes, accelerator, results):
    model, inputs, _ = evaluations(accelerator)
    assert_answers(results(processes)["evaluations"], model, inputs)


def test_evaluation_leaves_every_layer_in_its_mode_and_no_gradient(accelerator):
    model, modes = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)), []
    model.train()
    model[0].eval()

    def output(model, batch):
        modes.append([layer.training for layer in model.modules()])
        return model(batch.data)

    found = evaluate(accelerator, model, GlobalBatches(torch.randn(7, 4), 3, accelerator), output)
    assert not found.requires_grad and modes == [[False] * 4] * 3
    assert [layer.training for layer in model.modules()] == [True, False, True, True]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_forward_of_ones_own_is_evaluated_too(precision):
    """Accelerate puts its mixed precision where that is; the core takes no more away than that."""
    code = """if True:
        import torch
        from accelerate import Accelerator
        from mnist_dist.core import GlobalBatches, Training, evaluate
        accelerator, model = Accelerator(cpu=True, mixed_precision=PRECISION), torch.nn.Linear(4, 2)
        bare, inputs = model.forward, torch.randn(7, 4)
        model.forward = lambda rows: bare(rows) + 1000.125
        def output(model, batch): return model(batch.data)
        def loss(model, batch): return output(model, batch).sum()
        Training(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
        in_training = model.forward
        found = evaluate(accelerator, model, GlobalBatches(inputs, 3, accelerator), output)
        assert torch.equal(found, (bare(inputs) + 1000.125).detach()) and model.forward == in_training
    """
    subprocess.run([PYTHON, "-c", code.replace("PRECISION", repr(precision))], cwd=REPOSITORY, check=True)


def test_the_order_in_which_samples_are_evaluated_does_not_matter(accelerator):
    inputs = numbers(7, 4)
    shuffled = GlobalBatches(inputs, 3, accelerator, seed=1)
    assert torch.equal(evaluate(accelerator, nn.Identity(), shuffled, lambda model, batch: model(batch.data)), inputs)


# Checkpoints.
def assert_resumed_to_the_bit(found: dict, processes: int) -> None:
    """Stopped on all processes after the same update, resumed within an epoch, and the end is the same."""
    assert len(found["stopped_at"]) == processes and len(set(found["stopped_at"])) == 1 and found["stopped_at"][0] >= 5
    assert found["within"] > 0 and 0 < found["resumed_at"] < 44
    assert {"weights", "values", "schedule", "average"} == found["whole"].keys()
    assert same_bits(found["whole"], found["resumed"])
    assert len(found["whole"]["values"]["seen"]) == 44 and len(found["whole"]["values"]["losses"]) == 4


def test_stopped_in_mid_epoch_and_resumed_all_parts_end_with_the_same_bits(accelerator, tmp_path):
    assert_resumed_to_the_bit(stop_and_resume(accelerator, tmp_path), 1)


@several
def test_several_processes_stop_after_the_same_update_and_resume_to_the_bit(processes, results):
    assert_resumed_to_the_bit(results(processes)["resumed"], processes)


def checkpoints_with(accelerator, run, fixed=None, **parts) -> Checkpoints:
    """Those of a small training, with its schedule as a part unless others are named."""
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(accelerator, model, optimizer, lambda model, batch: model(batch.data).sum())
    return Checkpoints(run, training, parts or {"schedule": ExponentialLR(optimizer, 0.9)}, fixed or {})


@pytest.mark.parametrize(
    ("then", "now", "sentence"),
    [
        ({"--seed": 1}, {"--seed": 2}, "--seed is 2, but the run in {run} was trained with 1"),
        ({"--seed": 1, "--lr": 0.1}, {"--seed": 1}, "--lr is None, but the run in {run} was trained with 0.1"),
        ({}, {"the digest": "abc"}, "the digest is abc, but the run in {run} was trained with None"),
        (
            {"--widths": [6, 5]},
            {"--widths": [6, 4]},
            "--widths is [6, 4], but the run in {run} was trained with [6, 5]",
        ),
        ({"--seed": 1, "--lr": None}, {"--seed": 1, "--lr": None}, None),
    ],
)
def test_what_is_fixed_and_differs_is_refused_by_name(then, now, sentence, accelerator, tmp_path):
    checkpoints_with(accelerator, tmp_path, then).save()
    resumed = checkpoints_with(accelerator, tmp_path, now)
    before = {name: tensor.clone() for name, tensor in resumed.training.bare.state_dict().items()}
    with pytest.raises(UserError) if sentence else nullcontext() as refusal:
        assert resumed.resume()
    if sentence:
        assert sentence.format(run=tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)
        assert same_bits(before, dict(resumed.training.bare.state_dict()))  # refused before anything is loaded


def test_an_optimizer_whose_parameters_have_another_order_is_refused(accelerator, tmp_path):
    """It would give each the state of another."""
    for parameters in (list, reversed):
        model = mlp(6, 6, 6)
        optimizer = torch.optim.Adam(parameters([*model.parameters()]))
        training = Training(accelerator, model, optimizer, lambda model, batch: model(batch.data).sum())
        checkpoints = Checkpoints(tmp_path, training, {}, {})
        if parameters is list:
            checkpoints.save()
    with pytest.raises(UserError, match=r"parameter order is \[3, 2, 1, 0\], but .* was trained with \[0, 1, 2, 3\]"):
        checkpoints.resume()


@pytest.mark.parametrize("parts", [("one",), ("one", "two", "three")])
def test_a_checkpoint_with_other_parts_is_refused(parts, accelerator, tmp_path):
    checkpoints_with(accelerator, tmp_path, one=nn.Linear(1, 1), two=nn.Linear(2, 2)).save()
    others = checkpoints_with(accelerator, tmp_path, **{name: nn.Linear(n, n) for n, name in enumerate(parts, 1)})
    with pytest.raises(UserError, match=r"the newest checkpoint in .* \(KeyError\)"):
        others.resume()


def test_plain_values_come_back(accelerator, tmp_path):
    first, second = (checkpoints_with(accelerator, tmp_path) for _ in range(2))
    first.values |= {"best": 0.25, "name": "é", "at": torch.arange(3), "lines": [{"epoch": 1}, {"epoch": 2, "x": None}]}
    first.save()
    assert second.resume() and same_bits(first.values, second.values)


def test_what_could_not_be_read_back_is_not_written(accelerator, tmp_path):
    checkpoints = checkpoints_with(accelerator, tmp_path)
    checkpoints.values["best"] = np.float64(0.25)
    with pytest.raises(UserError, match=r"no checkpoint can be read back that holds numpy.*: give plain values"):
        checkpoints.save()
    assert not list(tmp_path.rglob("*.pt"))


def test_without_a_checkpoint_it_starts_from_scratch_and_says_so(accelerator, tmp_path, capsys):
    assert not checkpoints_with(accelerator, tmp_path).resume()
    assert f"no checkpoint in {tmp_path / 'checkpoints'}: starting from scratch" in capsys.readouterr().out


def test_a_signal_is_noted_and_answered_after_the_update(accelerator, tmp_path):
    checkpoints = checkpoints_with(accelerator, tmp_path)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(UserError, match="stopped on request at update 0") as stop:
        checkpoints.after_update()
    checkpoints = checkpoints_with(accelerator, tmp_path)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(UserError, match="stopped on request at update 0"):
        checkpoints.save()  # though nobody asked after the updates
    assert stop.value.status == 75 and stop.value.run == tmp_path and list((tmp_path / "checkpoints").glob("step-*"))
