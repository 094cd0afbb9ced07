"""Kills or signals a training at random instants, resumes it until it is done, and compares bits.

    python benchmarks/fault_injection.py --faults 100
    python benchmarks/fault_injection.py --faults 30 --processes 2
    python benchmarks/fault_injection.py --faults 20 --processes 2 --signal TERM INT USR1
    python benchmarks/fault_injection.py --faults 20 --processes 2 --signal TERM INT USR1 \\
        --launcher accelerate
    python benchmarks/fault_injection.py --elastic --faults 20
    python benchmarks/fault_injection.py --elastic --faults 20 -- --model mlp --dtype float32 \\
        --virtual-processes 2 --epochs 220

Each fault comes at an instant uniform over the time that the undisturbed run took from the line
with its folder to its end, so also inside the writing of checkpoints and files. KILL goes to all
processes; TERM, INT and USR1 to one of them, chosen at random, which must make all leave with a
checkpoint; several signals come in turn. The weights, metrics.jsonl and summary.json (times aside)
must be those of the undisturbed run. The exit status is 0 only if all were. --cpu keeps a GPU out
of it.

With --elastic one run on the CPU has all the faults, on one or two torchrun agents that play nodes:
an agent is killed with its process, the first of them to begin with; one is asked to leave; one
joins; a process is killed, or asked to stop. Each comes at a random instant once the agents train
together, and is survived if all that are left do so again. The run must end by itself, with the
weights of one process never disturbed: to 1e-9 in float64, to the bit if flags after `--` have
--virtual-processes. --picture FILE draws it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from elastic_agents import TRAIN
from elastic_faults import disturb_elastic_run

FLAGS = (
    "--dataset mnist-5k --wandb disabled --epochs 6 --batch-size 40 --checkpoint-every 9 "
    "--schedule one-cycle --gradient-accumulation-steps 2 --val-size 100 --affine 0.5 "
    "--elastic 0.5"
)
TIMES = ("samples_per_second", "train_seconds")
CONFIGURATION = TRAIN.with_name("accelerate_config.yaml")
LAUNCHERS = {
    "torchrun": "-m torch.distributed.run --standalone --nproc-per-node".split(),
    "accelerate": [
        *"-m accelerate.commands.accelerate_cli launch --config_file".split(),
        str(CONFIGURATION),
        "--num_processes",
    ],
}
ANSWERS = ("going on", "no checkpoint")  # how a resumed run says where it begins


@dataclass
class Launcher:
    """How a training is started.

    Attributes:
        processes: how many.
        name: "torchrun" or "accelerate".
        flags: of train.py.
    """

    processes: int
    name: str
    flags: list[str] = field(default_factory=FLAGS.split)

    def start(self, folder: Path, *more: str) -> subprocess.Popen:
        """Start the training, with further flags."""
        command = [sys.executable]
        if self.processes > 1:
            command += [*LAUNCHERS[self.name], str(self.processes)]
        command += [str(TRAIN), *self.flags, "--output-dir", str(folder), *more]
        return subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ranks(self, launched: subprocess.Popen) -> list[psutil.Process]:
        """The processes that train."""
        parent = psutil.Process(launched.pid)
        return [parent] if self.processes == 1 else parent.children()


def wait_until_begun(running: subprocess.Popen) -> None:
    """Wait until a training has said where it writes: from then on it can be asked to stop."""
    assert running.stdout
    for line in running.stdout:
        if "writing to" in line:
            return
    errors = running.stderr.read() if running.stderr else ""
    sys.exit(f"a training ended before it began: {errors}")


def timeless(figures: dict) -> dict:
    """Figures without times."""
    return {name: value for name, value in figures.items() if name not in TIMES}


def result(folder: Path) -> tuple[bytes, list, dict]:
    """What must be the same: the weights' bytes, and the figures without times."""
    lines = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        lines.append(timeless(json.loads(line)))
    summary = timeless(json.loads((folder / "summary.json").read_text()))
    return (folder / "mnist_model.pth").read_bytes(), lines, summary


def send(name: str, running: subprocess.Popen, launcher: Launcher, dice: random.Random) -> None:
    """Send a signal: KILL to all processes, another one to one of those that train."""
    try:
        ranks = launcher.ranks(running)
        if name == "KILL":
            for process in {psutil.Process(running.pid), *ranks}:
                process.kill()
        else:
            number = getattr(signal, f"SIG{name}")
            dice.choice(ranks).send_signal(number)
    except (ProcessLookupError, psutil.Error, IndexError):
        pass  # it was done already


def disturb(
    folder: Path,
    launcher: Launcher,
    name: str,
    duration: float,
    dice: random.Random,
) -> str:
    """Begin a run, disturb it once, and resume it until it is done.

    Args:
        folder: of the run.
        launcher: how it is started.
        name: of the signal.
        duration: of the undisturbed run, in seconds.
        dice: what decides when, and whom.

    Returns:
        What happened, for the log.
    """
    running = launcher.start(folder)
    wait_until_begun(running)
    instant = dice.uniform(0, duration)
    time.sleep(instant)
    send(name, running, launcher, dice)
    _, errors = running.communicate(timeout=120)
    when = f"{name} after {instant:.2f} s"
    status = running.returncode
    may_fail = name == "KILL" or "stopped on request" in errors
    if status != 0 and not may_fail:
        return f"{when}: left with {status} and no checkpoint: {errors[-2000:]}"
    again = launcher.start(folder, "--resume")
    output, errors = again.communicate(timeout=300)
    if again.returncode != 0:
        return f"{when}: the resumed run failed: {errors[-2000:]}"
    answers = [line for line in output.splitlines() if line.startswith(ANSWERS)]
    return f"{when}: {', '.join(answers)}"


def seconds_of_undisturbed(folder: Path, launcher: Launcher) -> float:
    """Run the training once undisturbed, and return what it took from when it had begun."""
    running = launcher.start(folder)
    wait_until_begun(running)
    begin = time.perf_counter()
    _, errors = running.communicate(timeout=300)
    if running.returncode:
        sys.exit(f"the undisturbed run failed: {errors}")
    return time.perf_counter() - begin


def disturb_many(launcher: Launcher, names: list[str], faults: int, dice: random.Random) -> int:
    """Disturb so many runs, a fault each.

    Args:
        launcher: how they are started.
        names: of the signals, which come in turn.
        faults: how many.
        dice: what decides when, and whom.

    Returns:
        How many ended with the bits of the undisturbed one.
    """
    same = 0
    with tempfile.TemporaryDirectory() as root:
        reference = Path(root, "reference")
        duration = seconds_of_undisturbed(reference, launcher)
        expected = result(reference)
        for number in range(faults):
            folder = Path(root, f"run-{number}")
            name = names[number % len(names)]
            story = disturb(folder, launcher, name, duration, dice)
            is_done = (folder / "summary.json").exists()
            equal = is_done and result(folder) == expected
            if equal:
                same += 1
            verdict = "same bits" if equal else "DIFFERENT"
            print(f"{number + 1:4d} {verdict}  {story}", flush=True)
    return same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    signals = ["KILL", "TERM", "INT", "USR1"]
    some_seed = random.SystemRandom().randrange(2**32)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--signal", choices=signals, nargs="+", default=["KILL"])
    parser.add_argument("--launcher", choices=list(LAUNCHERS), default="torchrun")
    parser.add_argument("--seed", type=int, default=some_seed)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--elastic", action="store_true")
    parser.add_argument("--picture", type=Path, help="with --elastic: draw it to this file")
    parser.add_argument("flags", nargs="*", help="after --: further flags, with --elastic")
    args = parser.parse_args()
    dice = random.Random(args.seed)
    if args.elastic:
        print(
            f"{args.faults} events in one elastic run, --seed {args.seed}",
            flush=True,
        )
        right = disturb_elastic_run(args.faults, args.flags, dice, args.picture)
        sys.exit(not right)
    launcher = Launcher(args.processes, args.launcher)
    if args.cpu:
        launcher.flags.append("--cpu")
    what = f"{args.faults} faults, {' '.join(args.signal)}, {args.processes} process(es)"
    if args.processes > 1:
        what += f" under {args.launcher}"
    print(f"{what}, --seed {args.seed}", flush=True)
    same = disturb_many(launcher, args.signal, args.faults, dice)
    print(f"{same} of {args.faults} runs ended with the bits of the undisturbed one")
    sys.exit(same != args.faults)


if __name__ == "__main__":
    main()
