"""The search for settings: shared by processes, goes on after any of them dies, judged by held-out samples alone."""

import functools
import json
import os
import random
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from conftest import PYTHON, REPOSITORY, call, clean_environment, read_lines
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mnist_dist import plots
from mnist_dist.core import Stopped, UserError
from mnist_dist.core.stopping import SIGNALS
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run.command_line import as_flags, parse
from mnist_dist.run.weights import fingerprint, load_weights
from mnist_dist.task import datasets, networks
from mnist_dist.tools.tune import command as tune
from mnist_dist.tools.tune import locks as study_locks
from mnist_dist.tools.tune import report as search_report
from mnist_dist.tools.tune import space as search_space
from mnist_dist.tools.tune import study
from mnist_dist.tools.tune import trial as search_trial
from mnist_dist.usage import UsageError

QUICK = "--dataset mnist-5k --val-size 2000 --epochs 1 --search lr weight-decay --batch-size 200 --cpu".split()
ENDLESS = [*QUICK, "--epochs", "100000"]


@pytest.fixture(scope="module", autouse=True)
def digits():
    """The data are read once for all searches in this process, which leave its signals as they were."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "read_mnist_5k", functools.cache(datasets.read_mnist_5k))
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def search(folder: Path, *flags: str, trials: int = 2) -> list[optuna.trial.FrozenTrial]:
    """Search in this process; later flags win. The study's trials."""
    tune.main(
        parse(tune.Config, [*QUICK, *flags, "--output-dir", str(folder), "--trials", str(trials)])
    )
    return trials_of(folder)


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials in a study's journal."""
    storage = JournalStorage(JournalFileBackend(str(folder / study_locks.JOURNAL)))
    return optuna.load_study(study_name="tune", storage=storage).trials


def start(folder: Path, *flags: str, trials: int = 2) -> subprocess.Popen:
    """Start a search in a process of its own."""
    return subprocess.Popen(
        [
            PYTHON,
            "-m",
            "mnist_dist",
            "tune",
            *flags,
            "--output-dir",
            folder,
            "--trials",
            str(trials),
        ],
        cwd=REPOSITORY,
        env=clean_environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(processes: Sequence[subprocess.Popen], condition: Callable[[], bool]) -> None:
    """Wait for a condition while some processes run."""
    deadline = time.monotonic() + 120
    while not condition():
        for process in processes:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def training(folder: Path) -> subprocess.Popen:
    """A search in a process of its own, in the middle of its first trial."""
    process, journal = start(folder, *ENDLESS), folder / study_locks.JOURNAL
    # Three epochs.
    until([process], lambda: journal.exists() and journal.read_text().count('"op_code":7') >= 3)
    return process


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    """What became of the trials, in order."""
    return [trial.state.name for trial in trials]


@pytest.mark.slow
def test_two_processes_share_a_study_and_each_trial_is_made_once(tmp_path):
    locks = study_locks.Locks(tmp_path)
    with locks.claiming():  # until both are there
        both = [start(tmp_path, *QUICK, "--batch-size", "20", trials=6) for _ in range(2)]
        until(
            both,
            lambda: locks.journal.exists() and locks.journal.read_text().count('"op_code":0') == 2,
        )
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [errors for _, errors in said] == ["", ""]
    trials = trials_of(tmp_path)
    assert len(trials) == 6 and all(trial.state in study.DONE for trial in trials), states(trials)
    assert len({tuple(trial.params.values()) for trial in trials}) == 6, "no two are alike"
    made = [re.findall(r"^trial (\d+): ", output, re.MULTILINE) for output, _ in said]
    assert sorted(map(int, made[0] + made[1])) == list(range(6))
    assert made[0] and made[1], "both took part"
    ends = {output[output.index("mnist-5k: 6 trials") :] for output, _ in said}
    assert len(ends) == 1, "both end with the same report"


def test_the_settings_given_are_tried_again_where_their_trial_was_lost_though_others_are_enough(
    tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(tune, "train_trial", interrupted)
        search(tmp_path)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / study_locks.JOURNAL)))
    others = optuna.load_study(study_name="tune", storage=storage)
    other = others.ask({name: search_space.SPACE[name] for name in ("lr", "weight-decay")})
    other.set_user_attr("train_seconds", 1.0)
    others.tell(other, 0.5)
    # At the worst instant: the trial is announced, and has not begun.
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(optuna.Study, "ask", interrupted)
        search(tmp_path, trials=1)
    assert states(trials_of(tmp_path)) == ["FAIL", "COMPLETE", "WAITING"]
    trials = search(tmp_path, trials=1)
    assert states(trials) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[2].params == {"lr": 0.001, "weight-decay": 0.0}


@pytest.mark.slow
def test_killed_in_mid_trial_and_started_again_the_study_goes_on(tmp_path):
    killed = training(tmp_path)
    killed.kill()
    killed.communicate()
    # A line half written.
    (tmp_path / study_locks.JOURNAL).open("a").write('{"op_code":6,"worker_id":"x","tri')
    before = trials_of(tmp_path)
    assert states(before) == ["RUNNING"] and before[0].params == {"lr": 0.001, "weight-decay": 0.0}
    # The settings must be those of before, so the same endless trials, made short.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "train_trial", lambda *_: 0.5)
        patch.setattr(tune, "report", lambda *_: None)
        trials = search(tmp_path, *ENDLESS)
    assert states(trials) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].params == before[0].params, "no study is without the settings given"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_asked_to_stop_it_says_how_to_go_on(tmp_path, number):
    stopped = training(tmp_path)
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=30)
    assert stopped.returncode == 75
    sentence = f"stopped on request: run the same command to resume the study in {tmp_path}"
    assert errors == f"mnist_dist: {sentence}\n"


@pytest.mark.slow
def test_killed_again_and_again_at_random_instants_it_ends_with_all_trials(tmp_path):
    draw, flags = random.Random(0), [*QUICK, "--batch-size", "20"]
    for _ in range(6):
        workers = [start(tmp_path, *flags, trials=30) for _ in range(2)]
        time.sleep(draw.uniform(3, 9))
        for worker in workers:
            worker.kill()
            worker.communicate()
    last = start(tmp_path, *flags, trials=30)
    output, errors = last.communicate(timeout=300)
    assert last.returncode == 0 and errors == "", errors
    trials = trials_of(tmp_path)
    assert sum(trial.state in study.DONE for trial in trials) == 30
    assert not [
        trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)
    ]
    assert (
        len(
            [trial for trial in trials if "first" in trial.user_attrs and trial.state in study.DONE]
        )
        == 1
    )
    assert "mnist-5k: 30 trials" in output


def test_a_later_call_does_what_is_left_and_one_process_repeats_itself(tmp_path, capsys):
    once = search(tmp_path / "a", trials=4)
    search(tmp_path / "b", trials=2)
    twice = search(tmp_path / "b", trials=4)
    assert [(trial.params, trial.values) for trial in once] == [
        (trial.params, trial.values) for trial in twice
    ]
    assert len({trial.params["lr"] for trial in once}) == 4
    other = search(tmp_path / "c", "--seed", "1", trials=2)
    assert other[1].params != once[1].params
    capsys.readouterr()
    journal = (tmp_path / "b" / study_locks.JOURNAL).read_text()
    again = search(tmp_path / "b", trials=4)
    assert len(again) == 4 and capsys.readouterr().out.startswith(
        "mnist-5k: 4 trials, 0 of them pruned; pictures in "
    )
    grown = (tmp_path / "b" / study_locks.JOURNAL).read_text().removeprefix(journal)
    assert grown.count("\n") == 1, "nothing but that it was opened"


def value_of(trial: optuna.trial.FrozenTrial) -> float:
    """The accuracy that a finished trial has reached."""
    assert trial.value is not None
    return trial.value


def test_the_command_printed_trains_with_the_settings_of_the_best_trial(
    tmp_path, capsys, monkeypatch
):
    """And the trial was what train.py does."""
    flags = "--search lr hidden batch-size schedule label-smoothing affine --epochs 2 --ema 0.9 --seed 3".split()
    trials = search(tmp_path / "study", *flags, trials=3)
    best = max(trials, key=value_of)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "Train with them on all training samples:"
    assert (
        f"the settings given (trial 0): {100 * value_of(trials[0]):.2f}% ({2000 * value_of(trials[0]):.0f}/2000)"
        in lines[-4]
    )
    assert (
        f"(trial {best.number}): {100 * value_of(best):.2f}% ({2000 * value_of(best):.0f}/2000)"
        in lines[-3]
    )
    program, script, *words = shlex.split(lines[-1])
    config = parse(TrainConfig, words)
    assert (program, script) == ("python", "train.py")
    expected = {name.replace("-", "_"): value for name, value in best.params.items()}
    expected["hidden"] = tuple(map(int, expected["hidden"].split()))
    assert config == TrainConfig(
        dataset="mnist-5k", epochs=2, ema=0.9, seed=3, cpu=True, **expected
    )
    run = tmp_path / "run"
    more = ["--val-size", "2000", "--wandb", "disabled", "--output-dir", str(run)]
    monkeypatch.setattr(sys, "argv", [script, *words, *more])
    runpy.run_path(str(REPOSITORY / script))["main"]()
    accuracies = [line["val_accuracy"] for line in read_lines(run / "metrics.jsonl")]
    assert accuracies == list(best.intermediate_values.values()) and accuracies[-1] == best.value


@pytest.mark.slow
def test_a_trial_has_the_bits_of_train_py_with_virtual_processes(tmp_path, monkeypatch):
    flags = [*QUICK, "--virtual-processes", "4"]
    networks_of_trials = []
    classify = search_trial.classify

    def noting(accelerator, network, loader):
        networks_of_trials.append(network)
        return classify(accelerator, network, loader)

    threads = torch.get_num_threads()
    monkeypatch.setattr(search_trial, "classify", noting)
    search(tmp_path / "study", *flags, trials=1)
    run = tmp_path / "run"
    place = flags.index("--search")
    del flags[place : place + 3]
    more = ["--no-plots", "--no-report", "--wandb", "disabled", "--output-dir", str(run)]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, *more])
    runpy.run_path(str(REPOSITORY / "train.py"))["main"]()
    torch.set_num_threads(threads)
    (network,) = networks_of_trials
    trained = load_weights(run / "mnist_model.pth")
    assert fingerprint(trained) == fingerprint(network.state_dict())


def test_trials_never_see_the_test_samples(tmp_path, monkeypatch):
    class Untouchable:
        """Fails whatever is done with it but to count it."""

        def __len__(self):
            return 1000

        def __getattr__(self, name):
            raise AssertionError(f"the test samples' {name} was looked at")

    obtain, seen = tune.data.obtain, []

    def without_test(*args):
        test: Any = Untouchable()
        seen.append(replace(obtain(*args), test=test))
        return seen[0]

    monkeypatch.setattr(tune.data, "obtain", without_test)
    search(tmp_path, trials=2)
    assert len(seen) == 1 and len(seen[0].train) == 2000
    assert seen[0].val and len(seen[0].val) == 2000


def test_trials_below_the_median_are_pruned(tmp_path):
    trials = search(tmp_path, "--epochs", "2", "--lr", "0.0001", trials=12)
    assert trials[0].state == TrialState.COMPLETE
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned and all(
        trial.user_attrs["reason"] == "below the median after epoch 1" for trial in pruned
    )
    assert all(len(trial.intermediate_values) == 1 for trial in pruned)


def test_trials_are_compared_where_they_had_come_as_far(tmp_path, monkeypatch):
    """The longer the better at the end, and the worse after one epoch: the longest may not be pruned for that."""

    def no_batches(*_):
        return iter(())

    class Result:
        def __init__(self, share, epochs):
            self.accuracy = share * (0.5 + 0.02 * epochs)

        def metrics(self, split):
            return {f"{split}_accuracy": self.accuracy}

    train_trial = tune.train_trial

    def pretended(trial, config, *samples):
        seen: list[None] = []

        def evaluate(*_):
            seen.append(None)
            return Result(len(seen) / config.epochs, config.epochs)

        monkeypatch.setattr(search_trial, "classify", evaluate)
        return train_trial(trial, config, *samples)

    monkeypatch.setattr(tune, "report", lambda *_: None)
    monkeypatch.setattr(search_trial, "progress_bar", no_batches)
    monkeypatch.setattr(tune, "train_trial", pretended)
    trials = search(tmp_path, "--search", "epochs", "--epochs", "4", trials=20)
    most = max(trial.params["epochs"] for trial in trials)
    longest = [trial for trial in trials if trial.params["epochs"] == most]
    assert longest[-1].number >= 5 and set(states(longest)) == {"COMPLETE"}, (
        "the first five are not pruned at all"
    )
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned and all(
        2 * len(trial.intermediate_values) >= trial.params["epochs"] for trial in pruned
    )


def test_the_settings_given_are_not_pruned_where_others_were_faster(tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: True)
    trials = search(tmp_path, "--epochs", "2", trials=2)
    assert states(trials) == ["COMPLETE", "PRUNED"]


def test_a_trial_whose_numbers_break_is_pruned_with_its_reason_and_the_study_goes_on(
    tmp_path, monkeypatch, capsys
):
    build, built = search_trial.networks.build, []

    def second_is_broken(*args):
        # The check of the settings only looks at shapes.
        if torch.get_default_device().type == "meta":
            return build(*args)
        built.append(build(*args))
        if len(built) == 2:
            built[-1].get_parameter("fc1.weight").data.fill_(float("nan"))
        return built[-1]

    monkeypatch.setattr(search_trial.networks, "build", second_is_broken)
    trials = search(tmp_path, trials=3)
    assert states(trials) == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert "the loss of update 1 is nan" in trials[1].user_attrs["reason"]
    assert "trial 1: the loss of update 1 is nan" in capsys.readouterr().out
    assert (tmp_path / "history.png").exists()


def test_where_no_trial_came_to_its_end_it_says_so(tmp_path, monkeypatch):
    def broken(*_):
        raise UserError("broken")

    monkeypatch.setattr(tune, "train_trial", broken)
    with pytest.raises(UserError, match=r"no trial in .* came to its end"):
        search(tmp_path, trials=2)


def test_the_pictures(tmp_path, monkeypatch):
    search(tmp_path, trials=3)
    assert search_report.ENOUGH == 20 and not (tmp_path / "importances.png").exists()  # too few
    monkeypatch.setattr(search_report, "ENOUGH", 3)
    search(tmp_path, trials=3)
    for name in ("history", "importances", "trade_off"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_on_the_front_are_those_that_none_is_faster_and_better_than():
    assert plots.pareto_front([3, 1, 2, 2, 4], [0.9, 0.5, 0.4, 0.7, 0.9]) == [1, 3, 0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--val-size 0", "--val-size 0 is not possible: give at least 1 sample"),
        ("--search momentum", "--search: .*'momentum'|'momentum'"),
        ("--search", "--search nothing is not possible"),
        ("--trials 0", "--trials 0 is not possible"),
        ("--epochs 0", "--epochs 0 is not possible"),
        ("--lr nan", "--lr nan is not possible"),
        ("--wandb online", "--wandb"),
    ],
)
def test_wrong_flags_are_refused_by_name(words, complaint):
    with pytest.raises(UsageError, match=complaint) as refusal:
        parse(tune.Config, words.split())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "--lr 0.5",
            "--lr 0.5 is not possible: give a number from 0.0001 to 0.03, which are searched",
        ),
        ("--search hidden --hidden 3 2", "--hidden 3 2 is not possible: give one of 128, 256"),
        ("--val-size 4000", "--val-size 4000 leaves nothing to train on"),
        ("--val-size 3000 --search batch-size", "--val-size 3000 leaves 1000 samples to train on"),
        ("--batch-size 2001", "--batch-size 2001 exceeds the 2000 training samples"),
    ],
)
def test_what_cannot_be_searched_is_refused(words, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        search(tmp_path / "study", *words.split())
    assert not (tmp_path / "study").exists()


def test_another_study_in_the_folder_is_refused_and_left_as_it_is(tmp_path):
    before = search(tmp_path, trials=2)
    for words, complaint in {
        "--epochs 2": "--epochs is 2, but the study in .* was begun with 1: give that, or choose another",
        "--seed 1": "--seed is 1, but",
        "--lr 0.002": "--lr is 0.002, but",
        "--val-size 1000": "--val-size is 1000, but",
        "--search lr": r"--search is \['lr'\], but",
    }.items():
        with pytest.raises(UserError, match=complaint):
            search(tmp_path, *words.split(), trials=3)
    assert trials_of(tmp_path) == before
    # Where the data are is not a setting.
    assert len(search(tmp_path, "--data-dir", str(tmp_path), trials=2)) == 2


@pytest.mark.slow
def test_a_study_goes_on_with_its_own_teachers_alone(tmp_path):
    torch.save(networks.build("mlp").state_dict(), tmp_path / "teacher.pth")
    taught = ["--teacher", str(tmp_path / "teacher.pth")]
    for folder, flags, others in (("taught", taught, []), ("plain", [], taught)):
        search(tmp_path / folder, *flags, trials=1)
        with pytest.raises(UserError, match="the teachers' digest is "):
            search(tmp_path / folder, *others, trials=2)
        assert len(search(tmp_path / folder, *flags, trials=1)) == 1


def test_a_damaged_journal_is_refused(tmp_path):
    search(tmp_path, trials=1)
    lines = (tmp_path / study_locks.JOURNAL).read_bytes().splitlines(keepends=True)
    for damage in (
        b"\x00" * 50 + b"\n",
        b"{}\n",
        b'{"op_code":99,"worker_id":"x"}\n',
        b"no JSON\n",
    ):
        for place in (5, len(lines)):
            (tmp_path / study_locks.JOURNAL).write_bytes(
                b"".join([*lines[:place], damage, *lines[place:]])
            )
            with pytest.raises(UserError, match=r"the study in .* is damaged") as refusal:
                search(tmp_path, trials=2)
            assert "\n" not in str(refusal.value)


def test_a_journal_that_is_not_one_or_has_lost_its_beginning_is_refused_and_loses_nothing(tmp_path):
    search(tmp_path, trials=2)
    journal = tmp_path / study_locks.JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b'"fixed"' in lines[1]
    for content in (
        b"my diary",
        b"my diary\n",
        b"".join(lines[1:]),
        b"".join([lines[0], *lines[2:]]),
    ):
        journal.write_bytes(content)
        with pytest.raises(UserError, match=r"the study in .* is damaged"):
            search(tmp_path, trials=3)
        assert journal.read_bytes().startswith(content)


def test_several_processes_of_a_launcher_are_refused(tmp_path, monkeypatch):
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "MASTER_PORT": 1,
        "MASTER_ADDR": "x",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(
        tune.launch, "start", lambda **_: pytest.fail("it would wait for the other")
    )
    with pytest.raises(UserError, match="start the same command several times, without a launcher"):
        search(tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_command_ends_with_one_sentence():
    for folder, sentence in {
        "/dev/null/study": "'/dev/null/study': Not a directory",
        "LICENSE": "File exists",
    }.items():
        done = call(PYTHON, "-m", "mnist_dist", "tune", *QUICK, "--output-dir", folder)
        assert done.returncode == 1 and sentence in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--hidden",
        "--no-plots",
        "--hidden 7 --lr 1e-05 --cpu",
        "--data-dir 'my data' --warmup 0.1 --recipe original --epochs 3",
    ],
)
def test_settings_as_flags_are_read_back_as_they_were(words):
    config = parse(TrainConfig, shlex.split(words))
    assert parse(TrainConfig, as_flags(config)) == config


@pytest.mark.slow
def test_what_the_sweep_starts_is_accepted_by_train_py(tmp_path):
    """With W&B's own functions, and a `python` that writes down its words instead of training."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((REPOSITORY / "sweep.yaml").read_text())
    assert (
        sweep["metric"] == {"name": "val_accuracy", "goal": "maximize"}
        and sweep["program"] == "train.py"
    )
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(0o755)
    knobs = sweep["parameters"]
    assert {name.replace("_", "-") for name in knobs} == set(search_space.SPACE)
    choices = {
        name: knob.get("values") or [knob["min"], knob["max"]] for name, knob in knobs.items()
    }
    # So that each value is drawn once at least.
    for number in range(max(map(len, choices.values()))):
        drawn = {name: values[number % len(values)] for name, values in choices.items()}
        args = create_sweep_command_args(
            {"args": {name: {"value": value} for name, value in drawn.items()}}
        )["args"]
        command: list[str] = []
        for word in create_sweep_command(list(sweep["command"])):
            command += {"${env}": ["/usr/bin/env"], "${args}": args}.get(word, [word])
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        script, *words = json.loads(done.stdout)
        config = parse(TrainConfig, words)
        assert script == "train.py" and config.val_size > 0
        for name, value in drawn.items():
            found = getattr(config, name)
            assert (" ".join(map(str, found)) if name == "hidden" else found) == value, name


def test_the_sweep_searches_what_tune_searches():
    knobs = yaml.safe_load((REPOSITORY / "sweep.yaml").read_text())["parameters"]
    for name, knob in search_space.SPACE.items():
        mine = knobs[name.replace("-", "_")]
        if isinstance(knob, CategoricalDistribution):
            assert list(knob.choices) == mine["values"]
        elif name == "batch-size":
            assert isinstance(knob, IntDistribution)
            assert (knob.low, knob.high) == (mine["values"][0], mine["values"][-1])
        else:
            assert isinstance(knob, IntDistribution | FloatDistribution)
            assert (knob.low, knob.high) == (mine["min"], mine["max"])
            assert getattr(knob, "log", False) == ("log" in mine["distribution"])


@pytest.mark.parametrize(
    ("words", "searched"),
    [
        ("", set(search_space.SPACE)),
        ("--epochs 1", set(search_space.SPACE) - {"epochs"}),
        # As it is by default.
        ("--epochs=5 --batch_size 64", set(search_space.SPACE) - {"epochs", "batch-size"}),
        ("--epochs 4 --search epochs lr", {"epochs", "lr"}),
    ],
)
def test_what_has_a_flag_of_its_own_is_not_searched(words, searched):
    assert set(parse(tune.Config, words.split()).searched) == searched


def test_if_all_has_flags_of_its_own_there_is_nothing_to_search():
    words = "--lr 1e-3 --hidden 8 --batch-size 64 --epochs 5 --schedule cosine --weight-decay 0 --label-smoothing 0"
    with pytest.raises(
        UsageError, match="--search nothing is not possible: give some of lr, hidden, "
    ):
        parse(tune.Config, [*words.split(), *"--affine 0 --elastic 0".split()])


def test_a_flag_decides_what_every_trial_does(tmp_path):
    flags = "--dataset mnist-5k --val-size 2000 --epochs 1 --batch-size 200 --hidden 128 --affine 0 --elastic 0 --cpu"
    tune.main(parse(tune.Config, [*flags.split(), "--output-dir", str(tmp_path), "--trials", "3"]))
    for trial in trials_of(tmp_path):
        assert trial.params.keys() == {"lr", "schedule", "weight-decay", "label-smoothing"}
        assert len(trial.intermediate_values) == 1
