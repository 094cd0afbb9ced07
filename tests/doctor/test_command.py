"""The command `doctor`: how it starts programs, what it prints and writes, and its exit status."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import PYTHON, call, torchrun

from mnist_dist.core import UserError
from mnist_dist.tools.doctor.command import place_of_program, read

sys.path.insert(0, str(Path(__file__).parent))
from planted_faults import BACKWARD, FAULTS, HERE, changed

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
    assert "nothing wrong was found in 12 updates, of which 5 were examined" in done.stdout


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
def test_under_torchrun_another_process_judges_if_the_first_one_is_killed(tmp_path):
    script = tmp_path / "train_mine.py"
    killed = f"        if rank == 0 and number == 3:\n            os.abort()\n{BACKWARD}"
    script.write_text(
        changed("plain.py", (("import sys\n", "import os\nimport sys\n"), (BACKWARD, killed)))
    )
    done = torchrun(3, *DOCTOR, script, tmp_path)
    assert done.returncode == 1, done.stderr
    said = "process 0 died after update 3 without a message"
    assert done.stdout.count(said) == 1, done.stdout + done.stderr
    assert done.stdout.count("1 finding") == 1


def test_what_stops_and_what_starts_again_belong_together():
    for words, said in (
        ("--stop-after 3 train.py", "--stop-after needs --resume-with"),
        ("--resume-with --resume train.py", "--resume-with needs --stop-after"),
    ):
        with pytest.raises(UserError, match=said):
            read(words.replace("train.py", str(HERE / "plain.py")).split(), "doctor")


@pytest.mark.slow
def test_it_stops_a_program_and_starts_it_again(tmp_path):
    flags = ["--resume-with", "--resume", "--stop-after", "9"]
    output = tmp_path / "run-{processes}"
    done = call(PYTHON, *DOCTOR, *flags, HERE / "resumed.py", output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stopped after update 9, it resumes from update 8: 1 are made again" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"run-2", "run-2-stopped"}
    again = call(PYTHON, *DOCTOR, *flags, HERE / "resumed.py", tmp_path / "run", "--resume")
    assert again.returncode == 2, again.stdout + again.stderr


@pytest.mark.slow
def test_a_run_that_is_not_fresh_is_not_compared(tmp_path):
    source = (HERE / "resumed.py").read_text()
    script = tmp_path / "mine.py"
    script.write_text(source.replace('if "--resume" in sys.argv:', "if checkpoint.exists():"))
    done = call(PYTHON, *DOCTOR, script, tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it resumes from checkpoint.pth, which the run before it wrote" in done.stdout
    flags = ["--resume-with", "none", "--stop-after", "9"]
    again = call(PYTHON, *DOCTOR, *flags, script, tmp_path / "other")
    assert again.returncode == 2
    assert "put {processes} into the name of the folder" in again.stderr


APART = """
import argparse, os, torch

parser = argparse.ArgumentParser()
if "CONTRACT" in os.environ:
    parser.add_argument("--dtype")
    parser.add_argument("--output-dir")
args = parser.parse_args()
torch.manual_seed(0)
model = torch.nn.Linear(3, 1).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(4, 3).double()).sum().backward()
    optimizer.step()
if "CONTRACT" in os.environ:
    os.makedirs(args.output_dir, exist_ok=True)
    torch.save(model.state_dict(), f"{args.output_dir}/model.pth")
"""


@pytest.mark.slow
def test_verify_fails_a_program_whose_processes_never_connect(tmp_path):
    script = tmp_path / "apart.py"
    script.write_text(APART)
    verify = (PYTHON, "-m", "mnist_dist", "verify", "--cpu", "--program", script)
    done = call(*verify, CONTRACT="1")
    assert done.returncode == 1
    assert "FAIL  runs on 2              apart.py:15: 2 processes were started" in done.stdout
    without = call(*verify)
    assert "FAIL  doctor: connection     apart.py:15: 2 processes were started" in without.stdout
    (command,) = re.findall("start it yourself: (.*)", without.stdout)
    pasted = call("bash", "-c", command)
    assert pasted.returncode == 2
    assert "unrecognized arguments: --dtype float64" in pasted.stderr


@pytest.mark.slow
def test_against_one_needs_a_start_of_its_own(tmp_path):
    done = torchrun(2, *DOCTOR, "--against", "1", HERE / "plain.py", tmp_path)
    assert "a launcher has started one: leave it out" in done.stderr
