"""Runs many small programs under `doctor`, in processes that are forked: torch is imported once.

    python tests/doctor/doctor_driver.py FOLDER CASE...

A case is JSON: `name`, `script` (a path), `worlds` (how many processes, and beside them),
`flags`, `deadline`, and `watched`, which may be false. What was found goes to FOLDER/NAME.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimizer would import in every process

from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.judge import judge
from mnist_dist.tools.doctor.launcher import free_port
from mnist_dist.tools.doctor.record_files import read_records
from mnist_dist.tools.doctor.recorder import Recorder
from mnist_dist.tools.doctor.records import Record, Sign
from mnist_dist.tools.doctor.rules_resume import Resume, judge_resume
from mnist_dist.tools.doctor.running import Run, execute
from mnist_dist.tools.doctor.signs import HangWatch

LEAVE = 10.0


def main() -> None:
    folder = Path(sys.argv[1])
    for text in sys.argv[2:]:
        case = json.loads(text)
        begun = time.monotonic()
        found = findings_of(folder, case)
        seconds = time.monotonic() - begun
        print(f"{case['name']}: {seconds:.1f} s", flush=True)
        path = folder / f"{case['name']}.json"
        path.write_text(json.dumps(found))


def findings_of(folder: Path, case: dict[str, Any]) -> list[dict[str, str]]:
    """Run one case, and return what was found."""
    world, *beside = case["worlds"]
    records, hang = run(folder, case, world)
    judged = Case(records, hang=hang)
    if "stop_after" in case:
        return [vars(finding) for finding in judge_resume(judged, run_again(folder, case))]
    if beside:
        alone, _ = run(folder, case, 1)
        judged.alone = alone[0]
    if not case.get("watched", True):
        return []
    return [vars(finding) for finding in judge(judged)]


def run_again(folder: Path, case: dict[str, Any]) -> Resume:
    """Run a case's program until it is stopped, and start it again."""
    (world,) = case["worlds"]
    output = {"output": str(folder / f"{case['name']}-again")}
    named = {"name": f"{case['name']}-stopped", "stop": case["stop_after"]}
    stopped, _ = run(folder, case | output | named, world)
    flags = [*case.get("flags", []), "--resume"]
    resumed, _ = run(folder, case | output | {"name": f"{case['name']}-2", "flags": flags}, world)
    return Resume(stopped, resumed, case["stop_after"])


def run(folder: Path, case: dict[str, Any], world: int) -> tuple[list[Record], list[Sign]]:
    """Run a case's program on so many processes; return their records, and signs of a hang."""
    records = folder / f"{case['name']}-{world}"
    records.mkdir()
    output = Path(case.get("output", own_output(records)))
    output.mkdir(exist_ok=True)
    port = free_port()
    given = case | {"output": str(output)}
    children = [begin(records, given, rank, world, port) for rank in range(world)]
    hang = wait(records, children, case.get("deadline", 60.0))
    return read_records(records), hang


def own_output(records: Path) -> Path:
    """Return the folder for what the program writes itself."""
    return records.with_name(f"{records.name}-output")


def begin(records: Path, case: dict[str, Any], rank: int, world: int, port: int) -> int:
    """Begin one process."""
    child = os.fork()
    if child:
        return child
    place: dict[str, Any] = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    output = os.open(records / f"output-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    flags = [case["output"], *case.get("flags", [])]
    script = Path(case["script"])
    if not case.get("watched", True):
        sys.argv = [str(script), *flags]
        execute(script)
        os._exit(0)
    every = 1 if "stop_after" in case else case.get("every", 2)
    recorder = Recorder(records, every, case.get("stop", 0))
    status = Run(recorder, lambda status: status).start(script, flags)
    os._exit(status)


def wait(records: Path, children: list[int], deadline: float) -> list[Sign]:
    """Wait for all processes, and end those that wait forever; return the signs of a hang."""
    watch = HangWatch(records, len(children), deadline)
    running = set(children)
    hanging: list[Sign] = []
    until = float("inf")
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        running.discard(child)
        if child and status:
            until = min(until, time.monotonic() + LEAVE)
        hanging = hanging or watch.hanging()
        if hanging or time.monotonic() > until:
            for each in running:
                os.kill(each, signal.SIGKILL)
        time.sleep(0.02)
    return hanging


if __name__ == "__main__":
    main()
