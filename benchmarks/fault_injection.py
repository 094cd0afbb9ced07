"""Kills or signals a short training at random instants, resumes it until it is done, and compares bits.

    python benchmarks/fault_injection.py --faults 100
    python benchmarks/fault_injection.py --faults 30 --processes 2
    python benchmarks/fault_injection.py --faults 20 --processes 2 --signal TERM INT USR1
    python benchmarks/fault_injection.py --faults 20 --processes 2 --signal TERM INT USR1 --launcher accelerate
    python benchmarks/fault_injection.py --elastic --faults 20
    python benchmarks/fault_injection.py --elastic --faults 20 -- --model mlp --dtype float32 --virtual-processes 2 \\
        --epochs 220

Each fault comes at an instant uniform over the time that the undisturbed run took from the line with its folder to its
end, so also inside the writing of checkpoints and files. KILL goes to all processes; TERM, INT and USR1 to one of them,
chosen at random, which must make all leave with a checkpoint; several signals come in turn. The weights, metrics.jsonl
and summary.json (times aside) must be those of the undisturbed run. The exit status is 0 only if all were. --cpu
keeps a GPU out of it.

With --elastic one run on the CPU has all the faults, on one or two torchrun agents that play nodes: an agent is killed
with its process, the first of them to begin with; one is asked to leave; one joins; a process is killed, or asked to
stop. Each comes at a random instant once the agents train together, and is survived if all that are left do so again.
The run must end by itself, with the weights of one process never disturbed: to 1e-9 in float64, to the bit if flags
after `--` have --virtual-processes. --picture FILE draws it.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from elastic_agents import ElasticRun

TRAIN = Path(__file__).parents[1] / "train.py"
FLAGS = "--dataset mnist-5k --wandb disabled --epochs 6 --batch-size 40 --checkpoint-every 9".split()
FLAGS += "--schedule one-cycle --gradient-accumulation-steps 2 --val-size 100 --affine 0.5 --elastic 0.5".split()
ELASTIC = "--dataset mnist-5k --cpu --wandb disabled --model cnn --dtype float64 --batch-size 100 --epochs 25"
ELASTIC += " --checkpoint-every 3"  # few updates that take long
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 10)]  # ranks are in their order
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TIMES = ("samples_per_second", "train_seconds")


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"],
    "accelerate": [
        *("-m", "accelerate.commands.accelerate_cli", "launch"),
        *("--config_file", str(TRAIN.with_name("accelerate_config.yaml")), "--num_processes"),
    ],
}


def start(folder: Path, processes: int, launcher: str, *more: str) -> subprocess.Popen:
    """The training, begun."""
    launch = [*LAUNCHERS[launcher], str(processes)] if processes > 1 else []
    command = [sys.executable, *launch, str(TRAIN), *FLAGS, "--output-dir", str(folder), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(running: subprocess.Popen) -> None:
    """Wait until a training has said where it writes: from then on it answers a request to stop with a checkpoint."""
    assert running.stdout
    while "writing to" not in (line := running.stdout.readline()):
        if not line:
            sys.exit(f"a training ended before it began: {running.stderr.read() if running.stderr else ''}")


def ranks(launched: subprocess.Popen, processes: int) -> list[psutil.Process]:
    """The processes that train."""
    parent = psutil.Process(launched.pid)
    return [parent] if processes == 1 else parent.children()


def result(folder: Path) -> tuple[bytes, list, dict]:
    """What must be the same: the weights' bytes, and the figures without times."""

    def timeless(figures: dict) -> dict:
        return {name: value for name, value in figures.items() if name not in TIMES}

    lines = [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = timeless(json.loads((folder / "summary.json").read_text()))
    return (folder / "mnist_model.pth").read_bytes(), lines, summary


def disturb(folder: Path, processes: int, launcher: str, name: str, duration: float, dice: random.Random) -> str:
    """One run with one fault, resumed until it is done. Returns what happened, for the log."""
    running = start(folder, processes, launcher)
    begun(running)
    instant = dice.uniform(0, duration)
    time.sleep(instant)
    number = getattr(signal, f"SIG{name}")
    try:
        if name == "KILL":
            for process in {psutil.Process(running.pid), *ranks(running, processes)}:
                process.kill()
        else:
            dice.choice(ranks(running, processes)).send_signal(number)
    except (ProcessLookupError, psutil.Error, IndexError):
        pass  # it was done already
    _, errors = running.communicate(timeout=120)
    if name != "KILL" and running.returncode != 0 and "stopped on request" not in errors:
        return f"{name} after {instant:.2f} s: left with {running.returncode} and no checkpoint: {errors[-2000:]}"
    again = start(folder, processes, launcher, "--resume")
    output, errors = again.communicate(timeout=300)
    if again.returncode != 0:
        return f"{name} after {instant:.2f} s: the resumed run failed: {errors[-2000:]}"
    resumed = [line for line in output.splitlines() if line.startswith(("going on", "no checkpoint"))]
    return f"{name} after {instant:.2f} s: {', '.join(resumed)}"


def happen(run: ElasticRun, first: bool, dice: random.Random) -> str:
    """Let something happen to an elastic run that trains, and return what; `first`: the first agent is killed."""
    agents = sorted(run.agents)
    address = agents[0] if first else dice.choice(agents)
    with_others = ["agent killed", "agent asked to leave"] if len(agents) > 1 else ["agent joins"] * 3
    event = with_others[0] if first else dice.choice([*with_others, "process killed", "process asked to stop"])
    if event == "agent killed":
        run.kill(address)
    elif event == "agent asked to leave":
        run.dismiss(address)
    elif event == "agent joins":
        address = dice.choice([other for other in ADDRESSES if other not in agents])
        run.start(address)
    else:
        for process in run.processes(address):
            process.send_signal(signal.SIGKILL if event == "process killed" else dice.choice(STOPS))
    return f"{event}: {address} of {', '.join(agents)}"


def disturb_elastic_run(faults: int, flags: list[str], dice: random.Random, picture: Path | None) -> bool:
    """One run with many faults, compared with one process never disturbed. Returns whether all is as it should be."""
    events = [("", 0, len(ADDRESSES[:2]))]  # what happened, after which update, and how many processes went on
    with tempfile.TemporaryDirectory() as root:
        folder, reference = Path(root) / "elastic" / "run", Path(root) / "reference"
        command = [sys.executable, str(TRAIN), *flags, "--output-dir", str(reference)]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
        # A death costs every agent one of its restarts.
        run = ElasticRun(folder.parent, [*flags, "--output-dir", str(folder)], restarts=faults)
        tried = survived = 0
        try:
            for address in ADDRESSES[:2]:
                run.start(address)
            run.train_together()
            while tried < faults:
                time.sleep(dice.uniform(0, 3))
                if run.ended() or (folder / "summary.json").exists():
                    break
                before, story = run.newest(), happen(run, tried == 0, dice)
                tried, begin = tried + 1, time.perf_counter()
                alive = run.train_together()
                survived += alive or (folder / "summary.json").exists()
                events.append((story.partition(":")[0], int(before[-10:] or 0), len(run.agents)))
                story += (
                    f"; at {before}, all train after {time.perf_counter() - begin:.0f} s" if alive else "; it ended"
                )
                print(f"{tried:4d} {story}", flush=True)
            while not run.ended():
                time.sleep(0.1)
        except TimeoutError as error:
            print(f"{tried:4d} {story}: {error}")
        finally:
            for address in list(run.agents):
                run.kill(address)
        print(f"{survived} of {tried} events survived" + f", the run was over before {faults}" * (tried < faults))
        if not (folder / "summary.json").exists():
            print(f"it did not end well: {run.logs()[-5000:]}")
            return False
        difference = weight_difference(folder, reference)
        same = (folder / "mnist_model.pth").read_bytes() == (reference / "mnist_model.pth").read_bytes()
        print(f"weights against one process never disturbed: {'the same bits' if same else f'{difference:.1e} apart'}")
        if picture:
            updates = json.loads((folder / "summary.json").read_text())["global_step"]
            digests = [
                hashlib.sha256((run / "mnist_model.pth").read_bytes()).hexdigest() for run in (folder, reference)
            ]
            draw(picture, events, updates, digests)
        return survived == faults and (same if "--virtual-processes" in flags else difference < 1e-9)


def draw(path: Path, events: list[tuple[str, int, int]], updates: int, digests: list[str]) -> None:
    """The processes of an elastic run over its updates, with what happened to it, and the run never disturbed."""
    from matplotlib.figure import Figure

    marks = {"agent killed": "X", "agent asked to leave": "v", "agent joins": "^", "process killed": "x"}
    picture = Figure(figsize=(8.6, 3.0), layout="constrained")
    axes = picture.subplots()
    _, at, processes = zip(*events, strict=True)
    axes.step([*at, updates], [*processes, processes[-1]], where="post", color="#0072B2", label="elastic run")
    axes.hlines(0, 0, updates, color="0.35", linestyle=":", label="one process, never disturbed")
    for name, mark in (marks | {"process asked to stop": "s"}).items():
        places = [(update, before[2]) for before, (event, update, _) in pairwise(events) if event == name]
        if places:
            axes.plot(*zip(*places, strict=True), mark, color="#D55E00", markersize=6, label=name)
    for height, digest in zip((processes[-1], 0), digests, strict=True):
        axes.annotate(f" sha256 {digest[:12]}", (updates, height), fontsize=8, va="center", family="monospace")
    labels = ["1, never\ndisturbed", *map(str, range(1, max(processes) + 1))]
    axes.set(xlabel="updates", ylabel="processes", xlim=(0, 1.22 * updates), ylim=(-0.5, None))
    axes.set_yticks(range(len(labels)), labels)
    axes.legend(fontsize=7, ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    picture.savefig(path, dpi=130)


def weight_difference(one: Path, other: Path) -> float:
    """The largest absolute difference between the weights of two runs."""
    weights, others = (torch.load(folder / "mnist_model.pth", weights_only=True) for folder in (one, other))
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT", "USR1"], nargs="+", default=["KILL"])
    parser.add_argument("--launcher", choices=list(LAUNCHERS), default="torchrun")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--elastic", action="store_true")
    parser.add_argument("--picture", type=Path, help="with --elastic: draw what happened to this file")
    parser.add_argument("flags", nargs="*", help="after --: further flags of train.py, with --elastic")
    args = parser.parse_args()
    if args.elastic:
        print(f"{args.faults} events in one elastic run, --seed {args.seed}", flush=True)
        flags = [*ELASTIC.split(), *args.flags]
        sys.exit(not disturb_elastic_run(args.faults, flags, random.Random(args.seed), args.picture))
    if args.cpu:
        FLAGS.append("--cpu")
    what = f"{args.faults} faults, {' '.join(args.signal)}, {args.processes} process(es)"
    print(f"{what} under {args.launcher}, --seed {args.seed}" if args.processes > 1 else f"{what}, --seed {args.seed}")
    dice, same = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as root:
        reference = start(Path(root) / "reference", args.processes, args.launcher)
        begun(reference)
        begin = time.perf_counter()
        _, errors = reference.communicate(timeout=300)
        duration = time.perf_counter() - begin
        if reference.returncode:
            sys.exit(f"the undisturbed run failed: {errors}")
        expected = result(Path(root) / "reference")
        for number in range(args.faults):
            folder = Path(root) / f"run-{number}"
            name = args.signal[number % len(args.signal)]
            story = disturb(folder, args.processes, args.launcher, name, duration, dice)
            equal = (folder / "summary.json").exists() and result(folder) == expected
            same += equal
            print(f"{number + 1:4d} {'same bits' if equal else 'DIFFERENT'}  {story}", flush=True)
    print(f"{same} of {args.faults} runs ended with the bits of the undisturbed one")
    sys.exit(same != args.faults)


if __name__ == "__main__":
    main()
