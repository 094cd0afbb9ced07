"""`doctor` names each planted mistake once, finds nothing in sound scripts, changes nothing."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, call, without

sys.path.insert(0, str(Path(__file__).parent))
from near_misses import NEAR_MISSES
from planted_faults import FAULTS, HERE, changed

DRIVER = HERE / "doctor_driver.py"
SLOW = [name for name, fault in FAULTS.items() if fault.slow or fault.stop_after]
QUICK = [name for name in FAULTS if name not in SLOW]


def drive(folder: Path, cases: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """Run cases, and return what was found in each, by its name."""
    done = call(PYTHON, DRIVER, folder, *map(json.dumps, cases), timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    names = [case["name"] for case in cases]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def planted(folder: Path, names: list[str]) -> dict[str, list[dict[str, str]]]:
    """Plant mistakes, and return what is found in each."""
    cases = []
    for name in names:
        fault = FAULTS[name]
        script = folder / f"{name}.py"
        script.write_text(fault.source())
        worlds = [2, 1] if fault.against else [2]
        case: dict[str, Any] = {"name": name, "script": str(script), "worlds": worlds}
        case |= {"flags": fault.flags, "every": fault.every}
        if fault.stop_after:
            case["stop_after"] = fault.stop_after
        cases.append(case | {"deadline": fault.deadline})
    return drive(folder, cases)


def check(name: str, findings: list[dict[str, str]]) -> None:
    """See that a planted mistake is named, with its line, and that nothing else is said."""
    fault = FAULTS[name]
    counting = [each for each in findings if each["level"] in ("FAIL", "WARN")]
    shown = [(each["subject"], each["place"], each["evidence"]) for each in counting]
    subjects = [each["subject"] for each in counting if each["subject"] not in fault.also]
    assert subjects == [fault.subject], shown
    (found,) = [each for each in counting if each["subject"] == fault.subject]
    assert fault.words in found["evidence"], shown
    assert found["place"] == fault.place(f"{name}.py"), shown
    assert found["advice"]
    assert fault.advice in found["advice"], found["advice"]
    assert counting[0] == found, "the cause comes first"
    assert not [each for each in findings if each["subject"] == "doctor"], findings


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """What is found in the scripts of the default set."""
    return planted(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """What is found in the others."""
    return planted(tmp_path_factory.mktemp("slow"), SLOW)


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_named_once_with_its_line(name, quick):
    check(name, quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_another_mistake_is_named_once_with_its_line(name, slow):
    if FAULTS[name].script == "in_lightning.py":
        need_lightning()
    check(name, slow[name])


def sound_case(script: str, worlds: list[int], *flags: str) -> dict[str, Any]:
    """Return a case of a script without a mistake."""
    name = "-".join([script, *map(str, worlds), *flags])
    return {"name": name, "script": str(HERE / script), "worlds": worlds, "flags": flags}


def need_lightning() -> None:
    """Skip a test where Lightning is not installed, which the extra `test` brings."""
    if importlib.util.find_spec("lightning") is None:
        without("lightning is not installed")


def expect_sound(found: dict[str, list[dict[str, str]]]) -> None:
    """See that nothing was found."""
    for name, findings in found.items():
        wrong = [each for each in findings if each["level"] in ("FAIL", "WARN")]
        assert not wrong, (name, wrong)
        assert not [each for each in findings if each["subject"] == "doctor"], (name, findings)


def test_sound_scripts_are_sound(tmp_path):
    cases = [
        sound_case("plain.py", [2, 1]),
        sound_case("shared.py", [2, 1]),
        sound_case("shared.py", [2, 1], "rounded"),
        sound_case("accelerated.py", [2, 1]),
        sound_case("varied.py", [2, 1]),
        sound_case("elaborate.py", [2, 1]),
        sound_case("exact.py", [2, 1], "0"),
        sound_case("exact.py", [2, 1], "6"),
    ]
    found = drive(tmp_path, cases)
    expect_sound(found)
    notes = [each for each in found["plain.py-2-1"] if each["level"] == "NOTE"]
    assert [each["subject"] for each in notes] == ["batch"]
    assert "8 rows on 1 process and 16 on 2: batch_size is per process" in notes[0]["evidence"]
    exact = [each for each in found["exact.py-2-1-6"] if each["level"] == "NOTE"]
    assert not exact


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3, 5])
def test_sound_scripts_are_sound_on_other_numbers_of_processes(world, tmp_path):
    scripts = ["plain.py", "shared.py", "accelerated.py", "varied.py"]
    if world == 5:
        scripts = []  # 96 samples cannot be shared out among them without padding
    cases = [sound_case(script, [world]) for script in scripts]
    worlds = [world, 1] if world > 1 else [1]
    cases += [sound_case("exact.py", worlds, flag) for flag in ("0", "6")]
    expect_sound(drive(tmp_path, cases))


@pytest.mark.slow
def test_other_forms_of_pytorch_are_sound_or_said_to_be_unseen(tmp_path):
    forms = ["stream", "shards", "compiled", "scaled", "optimizer in parts"]
    cases = [sound_case("frameworks.py", [2, 1], form) for form in forms]
    found = drive(tmp_path, cases)
    said = [
        each["evidence"] for each in found["frameworks.py-2-1-shards"] if each["level"] == "NOTE"
    ]
    assert any("weights and gradients are not compared" in words for words in said)
    del found["frameworks.py-2-1-shards"]
    expect_sound(found)


@pytest.mark.slow
def test_what_is_nearly_a_mistake_is_none(tmp_path):
    cases = []
    for name, (script, *changes) in NEAR_MISSES.items():
        path = tmp_path / f"{name.replace(' ', '-')}.py"
        path.write_text(changed(script, tuple(changes)))
        cases.append(sound_case(script, [2, 1]) | {"name": path.stem, "script": str(path)})
    expect_sound(drive(tmp_path, cases))


@pytest.mark.slow
def test_a_sound_script_in_lightning_is_sound(tmp_path):
    need_lightning()
    expect_sound(drive(tmp_path, [sound_case("in_lightning.py", [2, 1])]))


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [5, 8])
def test_a_sound_resume_is_sound(stop_after, tmp_path):
    case = sound_case("resumed.py", [2]) | {"stop_after": stop_after}
    found = drive(tmp_path, [case])
    expect_sound(found)
    (findings,) = found.values()
    assert findings[0]["level"] == "PASS"
    assert "after update" in findings[0]["evidence"]


def test_nothing_is_changed(tmp_path):
    cases = []
    for watched in (True, False):
        case = sound_case("plain.py", [2])
        cases.append(case | {"name": str(watched), "watched": watched, "every": 1})
    drive(tmp_path, cases)
    for name in ("model.pth", "random-0.pth", "random-1.pth"):
        watched_file = tmp_path / "True-2-output" / name
        other_file = tmp_path / "False-2-output" / name
        assert watched_file.read_bytes() == other_file.read_bytes(), name
