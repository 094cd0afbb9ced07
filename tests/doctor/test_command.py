"""The command `doctor`: how it starts programs, what it prints and writes, and its exit status."""

import json
import sys
from pathlib import Path

import pytest
from conftest import PYTHON, call, torchrun

from mnist_dist.tools.doctor.command import place_of_program

sys.path.insert(0, str(Path(__file__).parent))
from planted_faults import FAULTS, HERE

DOCTOR = ("-m", "mnist_dist", "doctor")


def script_with(fault: str, folder: Path) -> Path:
    """Write a script with a mistake."""
    script = folder / "train_mine.py"
    script.write_text(FAULTS[fault].source())
    return script


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("mine.py --all", "mine.py"),
        ("--all mine.py", "mine.py"),
        ("--every 3 --json f.json --cpu mine.py --every 5 other.py", "mine.py"),
        ("--every=3 mine.py", "mine.py"),
        ("--records folder --against 0 mine.py 7", "mine.py"),
    ],
)
def test_flags_of_its_own_come_before_the_program(line, program):
    words = line.split()
    assert words[place_of_program(words)] == program


def test_without_a_program_it_gives_its_flags_and_refuses():
    assert place_of_program(["--help"]) == 1
    assert place_of_program(["--every"]) == 1


def test_it_starts_processes_and_its_status_is_the_answer(tmp_path):
    script = script_with("plain-set_epoch-forgotten", tmp_path)
    found = tmp_path / "found.json"
    done = call(PYTHON, *DOCTOR, "--against", "0", "--json", found, script, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "train_mine.py:36: two epochs have the same shuffled order" in done.stdout
    assert "-> call sampler.set_epoch(epoch)" in done.stdout
    assert done.stdout.strip().endswith("1 finding")
    written = json.loads(found.read_text())
    assert not written["sound"]
    assert [each["updates"] for each in written["processes"]] == [12, 12]
    levels = {each["subject"]: each["level"] for each in written["findings"]}
    assert levels.pop("order") == "FAIL"
    assert set(levels.values()) == {"PASS"}


@pytest.mark.slow
def test_a_sound_program_is_sound_and_everything_is_shown_if_asked_for(tmp_path):
    done = call(PYTHON, *DOCTOR, "--all", HERE / "accelerated.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS  gradients" in done.stdout
    assert done.stdout.strip().endswith("nothing wrong was found")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise SystemExit('no such data')", "no such data"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("print('done')", "no optimizer of torch.optim made a step"),
    ],
)
def test_a_program_that_cannot_run_has_a_status_of_its_own(source, said, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(source)
    done = call(PYTHON, *DOCTOR, script)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("plain-set_epoch-forgotten", "train_mine.py:36: two epochs have the same"),
        ("plain-an-error", "by ValueError: no such row"),
        ("plain-a-hang", "waits for nobody; process 0 waits for others at"),
    ],
)
def test_under_torchrun_the_first_process_judges(fault, said, tmp_path):
    script = script_with(fault, tmp_path)
    done = torchrun(2, *DOCTOR, "--deadline", "8", script, tmp_path)
    assert done.returncode == 1, done.stderr
    assert said in done.stdout, done.stdout + done.stderr
    assert "1 finding" in done.stdout
    assert done.stdout.count("FAIL ") == 1


@pytest.mark.slow
def test_against_one_needs_a_start_of_its_own(tmp_path):
    done = torchrun(2, *DOCTOR, "--against", "1", HERE / "plain.py", tmp_path)
    assert "a launcher has started one: leave it out" in done.stderr
