"""What a GPU has to answer: each part a process of its own, most worth knowing first.

    python benchmarks/gpu.py --data-dir data                # with a GPU: gpu.json and gpu.md
    python benchmarks/gpu.py --data-dir data --minutes 30   # with more time than 9 minutes
    python benchmarks/gpu.py --data-dir data --only bits    # one part; what others found is kept
    python benchmarks/gpu.py --cpu                          # a rehearsal: its figures mean nothing

Results are written as they come, and what did not fit in the time is named. It needs no network,
and full MNIST in --data-dir. A rehearsal also reckons, from counts of starts and updates, which
parts would fit on a GPU. The exit status is 0 if no part failed, or ran out of time.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, write_result
from gpu_parts.asking import Asked, NeedsGPU, show
from gpu_parts.pairs import one_of_a_pair
from gpu_parts.parts import PARTS, Part, reckon

NO_TIME = "no time was left"
FINE = ("done", "needs a GPU")  # how the status begins if nothing failed
LEAST = 5  # seconds without which no part begins


def work(name: str, asked: Asked) -> None:
    """Be the process of one part, and print what it finds."""
    by_name = {part.name: part.ask for part in PARTS}
    by_name["one_of_a_pair"] = one_of_a_pair
    try:
        show(by_name[name](asked))
    except NeedsGPU as error:
        print(json.dumps({"needs a GPU": str(error)}))


def ask(part: Part, seconds: float, asked: Asked) -> dict[str, Any]:
    """Run one part in a process of its own.

    Args:
        part: which one.
        seconds: after which it is ended.
        asked: what the program was asked for.

    Returns:
        Its status, its seconds, and the rows of its table.
    """
    command = [sys.executable, __file__, "--worker", part.name]
    command += ["--data-dir", str(asked.data_dir)]
    if asked.cpu:
        command.append("--cpu")
    status = "done"
    begin = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            if process.wait(seconds):
                errors.seek(0)
                status = f"failed: {errors.read().strip()[-2000:]}"
        except subprocess.TimeoutExpired:
            status = f"was not done in {seconds:.0f} s"
        finally:
            if process.poll() is None or status != "done":
                end_with_all_that_it_started(process)
        output.seek(0)
        found = last_table(output.read())
    if "needs a GPU" in found:
        status = f"needs a GPU: {found['needs a GPU']}"
        found = {}
    taken = time.perf_counter() - begin
    return {"status": status, "seconds": taken, "found": found}


def end_with_all_that_it_started(process: subprocess.Popen) -> None:
    """End the process of a part, and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_table(output: str) -> dict[str, Any]:
    """The last table that a part has printed, which holds what was in those before."""
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
    return found


def cell(value: Any) -> str:
    """A value in a table."""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "/").replace("\n", " ")


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a table, whose columns are those that any row has."""
    columns = []
    for row in found.values():
        columns += [column for column in row if column not in columns]
    lines = [
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for name, row in found.items():
        cells = [cell(row.get(column, "")) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""
    lines = []
    if result["cpu"]:
        lines.append("**A rehearsal on a CPU: these figures mean nothing.**\n")
    for name, part in result["parts"].items():
        lines.append(f"## {name}\n")
        lines.append(f"{part['about']} Here: {part['status']}, {part['seconds']:.0f} s.\n")
        if part["found"]:
            lines += table(part["found"])
    return "\n".join(lines) + "\n"


def earlier_result(place: Path, *, cpu: bool) -> dict[str, Any]:
    """What was found before, if anything was; a rehearsal and a GPU do not share a file."""
    if not place.exists():
        return {"cpu": cpu, "parts": {}}
    result = json.loads(place.read_text())
    if result["cpu"] != cpu:
        kind = "a rehearsal" if result["cpu"] else "from a GPU"
        sys.exit(f"gpu.py: error: {place} is {kind}: choose another --output")
    return result


def ask_all(parts: list[Part], minutes: float, asked: Asked, output: Path) -> list[str]:
    """Run parts one after the other, and write what each has found.

    Returns:
        The names of those that failed, or were not done.
    """
    place = output.with_suffix(".json")
    result = earlier_result(place, cpu=asked.cpu)
    end = time.perf_counter() + 60 * minutes
    undone = []
    for part in parts:
        left = end - time.perf_counter()
        limit = left if asked.cpu else min(left, part.limit)
        found: dict[str, Any] = {"status": NO_TIME, "seconds": 0.0, "found": {}}
        if left > LEAST:
            found = ask(part, limit, asked)
        about = {"about": part.about, "date": time.strftime("%Y-%m-%d")}
        result["parts"][part.name] = about | found
        if not found["status"].startswith(FINE):
            undone.append(part.name)
        write_result(place, result)
        place.with_suffix(".md").write_text(markdown(result))
        print(
            f"{part.name}: {found['status']}, {found['seconds']:.0f} s",
            flush=True,
        )
    return undone


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("gpu"),
        help="path of the two files, without suffix",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        help="these parts; default: all",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="after which no part begins, or goes on; default 9, a rehearsal has no limit",
    )
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU, small")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    asked = Asked(cpu=args.cpu, data_dir=args.data_dir.resolve())
    if args.worker:
        work(args.worker, asked)
        return
    if not (args.cpu or torch.cuda.is_available()):
        problem = "there is no GPU that PyTorch can use"
        sys.exit(f"gpu.py: error: {problem}: --cpu rehearses the program without one")
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    minutes = args.minutes or (60.0 if args.cpu else 9.0)
    undone = ask_all(parts, minutes, asked, args.output)
    if args.cpu:
        lines, left_out = reckon(parts, args.minutes or 9.0)
        print("\nreckoned for a GPU, with assumed seconds a start and an update:")
        print("\n".join(lines))
        print(f"does not fit: {', '.join(left_out) or 'nothing'}")
    if undone:
        print(f"failed, or did not fit in {minutes:g} minutes: {', '.join(undone)}")
    sys.exit(bool(undone))


if __name__ == "__main__":
    main()
