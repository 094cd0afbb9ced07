"""One elastic run with many faults, beside one process never disturbed; for fault_injection.py."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from elastic_agents import TRAIN, ElasticRun

FLAGS = (  # few updates that take long
    "--dataset mnist-5k --cpu --wandb disabled --model cnn --dtype float64 --batch-size 100 "
    "--epochs 25 --checkpoint-every 3"
)
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 10)]  # ranks are in their order
FIRST = ADDRESSES[:2]  # of the agents that begin
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MARKS = {  # in the picture
    "agent killed": "X",
    "agent asked to leave": "v",
    "agent joins": "^",
    "process killed": "x",
    "process asked to stop": "s",
}


@dataclass
class Event:
    """What has happened to the run: its name, after which update, and how many went on."""

    name: str
    update: int
    processes: int


@dataclass
class Story:
    """How the run went.

    Attributes:
        events: all that has happened to it, the beginning first.
        tried: how many faults there were.
        survived: after how many of them all that were left trained again.
    """

    events: list[Event]
    tried: int = 0
    survived: int = 0


def choose(agents: list[str], dice: random.Random, *, first: bool) -> str:
    """Choose what happens next: to the first agent, if it is the first fault."""
    with_others = ["agent killed", "agent asked to leave"]
    if len(agents) == 1:
        with_others = ["agent joins"] * 3
    if first:
        return with_others[0]
    return dice.choice([*with_others, "process killed", "process asked to stop"])


def happen(run: ElasticRun, dice: random.Random, *, first: bool) -> tuple[str, str]:
    """Let something happen to an elastic run that trains.

    Args:
        run: the run.
        dice: what decides.
        first: the first agent is killed, and nothing else may happen.

    Returns:
        The name of what happened, and to whom.
    """
    agents = sorted(run.agents)
    address = agents[0] if first else dice.choice(agents)
    event = choose(agents, dice, first=first)
    if event == "agent killed":
        run.kill(address)
    elif event == "agent asked to leave":
        run.dismiss(address)
    elif event == "agent joins":
        free = [other for other in ADDRESSES if other not in agents]
        address = dice.choice(free)
        run.start(address)
    else:
        for process in run.processes(address):
            if event == "process killed":
                process.kill()
            else:
                process.send_signal(dice.choice(STOPS))
    return event, f"{address} of {', '.join(agents)}"


def is_over(folder: Path) -> bool:
    """Whether the run has come to its end."""
    return (folder / "summary.json").exists()


def disturb(run: ElasticRun, folder: Path, faults: int, dice: random.Random) -> Story:
    """Begin the run, disturb it until it ends, and tell how it went."""
    story = Story([Event("", 0, len(FIRST))])
    what = "the beginning"
    try:
        for address in FIRST:
            run.start(address)
        run.train_together()
        while story.tried < faults:
            time.sleep(dice.uniform(0, 3))
            if run.ended() or is_over(folder):
                break
            before = run.newest()
            event, whom = happen(run, dice, first=story.tried == 0)
            what = f"{event}: {whom}"
            story.tried += 1
            begin = time.perf_counter()
            alive = run.train_together()
            seconds = time.perf_counter() - begin
            if alive or is_over(folder):
                story.survived += 1
            update = int(before[-10:] or 0)
            story.events.append(Event(event, update, len(run.agents)))
            outcome = "it ended"
            if alive:
                outcome = f"at {before}, all train after {seconds:.0f} s"
            print(f"{story.tried:4d} {what}; {outcome}", flush=True)
        while not run.ended():
            time.sleep(0.1)
    except TimeoutError as error:
        print(f"{story.tried:4d} {what}: {error}")
    finally:
        for address in list(run.agents):
            run.kill(address)
    return story


def train_undisturbed(folder: Path, flags: list[str]) -> None:
    """Train on one process that nobody disturbs."""
    command = [sys.executable, str(TRAIN), *flags, "--output-dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)


def disturb_elastic_run(
    faults: int,
    more_flags: list[str],
    dice: random.Random,
    picture: Path | None,
) -> bool:
    """Disturb one run many times, and compare it with one process never disturbed.

    Args:
        faults: how many.
        more_flags: of train.py.
        dice: what decides.
        picture: the file that it is drawn to, if any.

    Returns:
        Whether all is as it should be.
    """
    flags = [*FLAGS.split(), *more_flags]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "elastic", "run")
        reference = Path(root, "reference")
        train_undisturbed(reference, flags)
        # A death costs every agent one of its restarts.
        flags_of_run = [*flags, "--output-dir", str(folder)]
        run = ElasticRun(folder.parent, flags_of_run, restarts=faults)
        story = disturb(run, folder, faults, dice)
        line = f"{story.survived} of {story.tried} events survived"
        if story.tried < faults:
            line += f", the run was over before {faults}"
        print(line)
        if not is_over(folder):
            print(f"it did not end well: {run.logs()[-5000:]}")
            return False
        difference = weight_difference(folder, reference)
        same = weights_of(folder) == weights_of(reference)
        how = "the same bits" if same else f"{difference:.1e} apart"
        print(f"weights against one process never disturbed: {how}")
        if picture:
            draw(picture, story.events, folder, reference)
        right = same if "--virtual-processes" in flags else difference < 1e-9
        return story.survived == faults and right


def weights_of(folder: Path) -> bytes:
    """The file of a run's weights."""
    return (folder / "mnist_model.pth").read_bytes()


def weight_difference(one: Path, other: Path) -> float:
    """The largest absolute difference between the weights of two runs."""
    weights = torch.load(one / "mnist_model.pth", weights_only=True)
    others = torch.load(other / "mnist_model.pth", weights_only=True)
    differences = []
    for name, values in weights.items():
        differences.append((values - others[name]).abs().max().item())
    return max(differences)


def draw(path: Path, events: list[Event], folder: Path, reference: Path) -> None:
    """Draw the processes of an elastic run over its updates, beside the run never disturbed.

    Args:
        path: the file.
        events: what has happened to the run.
        folder: the run's.
        reference: that of the run never disturbed.
    """
    from matplotlib.figure import Figure

    updates = json.loads((folder / "summary.json").read_text())["global_step"]
    picture = Figure(figsize=(8.6, 3.0), layout="constrained")
    axes = picture.subplots()
    last = events[-1].processes
    axes.step(
        [*(event.update for event in events), updates],
        [*(event.processes for event in events), last],
        where="post",
        color="#0072B2",
        label="elastic run",
    )
    axes.hlines(
        0,
        0,
        updates,
        color="0.35",
        linestyle=":",
        label="one process, never disturbed",
    )
    for name, mark in MARKS.items():
        across = []
        up = []
        for before, event in pairwise(events):
            if event.name == name:
                across.append(event.update)
                up.append(before.processes)
        if across:
            axes.plot(across, up, mark, color="#D55E00", markersize=6, label=name)
    for height, place in ((last, folder), (0, reference)):
        digest = hashlib.sha256(weights_of(place)).hexdigest()
        axes.annotate(
            f" sha256 {digest[:12]}",
            (updates, height),
            fontsize=8,
            va="center",
            family="monospace",
        )
    most = max(event.processes for event in events)
    labels = ["1, never\ndisturbed", *map(str, range(1, most + 1))]
    axes.set(xlabel="updates", ylabel="processes")
    axes.set(xlim=(0, 1.22 * updates), ylim=(-0.5, None))
    axes.set_yticks(range(len(labels)), labels)
    axes.legend(
        fontsize=7,
        ncol=4,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )
    picture.savefig(path, dpi=130)
