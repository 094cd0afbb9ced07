"""What `doctor` says against scripts without a mistake, again and again, beside busy programs.

    python benchmarks/doctor_false_alarms.py [--rounds 20] [--busy 2]

The scripts are those of tests/doctor: plain DDP, Accelerate, `ExactAccelerator`, and one that is
stopped and started again, on 1, 2, 3 and 5 processes. Each FAIL and WARN is printed when it comes,
and at the end the number of runs and of false alarms.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "tests" / "doctor"
PLAIN = ("plain.py", "shared.py", "accelerated.py", "varied.py")
BUSY = "while True: pass"


def case(script: str, worlds: tuple[int, ...], *flags: str, **more: Any) -> dict[str, Any]:
    """Return one run of a script, as doctor_driver.py takes it."""
    name = "-".join([script, *map(str, worlds), *flags, *map(str, more.values())])
    path = str(SCRIPTS / script)
    return {"name": name, "script": path, "worlds": worlds, "flags": flags} | more


def sound_cases() -> list[dict[str, Any]]:
    """Return all that is run in a round."""
    cases = [case(script, (world,)) for world in (1, 3) for script in PLAIN]
    cases += [case(script, (2, 1)) for script in (*PLAIN, "elaborate.py")]
    cases += [case("shared.py", (2, 1), "rounded")]
    for virtual_processes in ("0", "6"):
        cases += [case("exact.py", (world, 1), virtual_processes) for world in (2, 3, 5)]
    return [*cases, case("resumed.py", (2,), stop_after=9)]


@contextmanager
def busy_loop() -> Iterator[None]:
    """Keep a core busy, as another program on the machine would."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def false_alarms(folder: Path, cases: list[dict[str, Any]]) -> list[str]:
    """Run cases once, and return what was said against them."""
    command = [sys.executable, str(SCRIPTS / "doctor_driver.py"), str(folder)]
    done = subprocess.run([*command, *map(json.dumps, cases)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    alarms = []
    for each in cases:
        findings = json.loads((folder / f"{each['name']}.json").read_text())
        alarms += [
            f"{each['name']}: {finding['level']} {finding['subject']}: {finding['evidence']}"
            for finding in findings
            if finding["level"] in ("FAIL", "WARN") or finding["subject"] == "doctor"
        ]
    return alarms


def main() -> None:
    """Run as many rounds as asked for."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--rounds", type=int, default=20)
    asked.add_argument("--busy", type=int, default=2, help="busy loops beside")
    config = asked.parse_args()
    cases = sound_cases()
    total = 0
    with ExitStack() as stack:
        for _ in range(config.busy):
            stack.enter_context(busy_loop())
        for number in range(config.rounds):
            with tempfile.TemporaryDirectory() as folder:
                alarms = false_alarms(Path(folder), cases)
            total += len(alarms)
            print(f"round {number + 1}: {len(cases)} runs, {len(alarms)} false alarms", flush=True)
            for alarm in alarms:
                print(alarm, flush=True)
    print(
        f"{config.rounds * len(cases)} runs beside {config.busy} busy loops: {total} false alarms"
    )


if __name__ == "__main__":
    main()
