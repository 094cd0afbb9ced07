"""What a GPU has to answer, in half an hour: each part a process of its own, with a time limit of its own.

    python benchmarks/gpu.py --data-dir data                # on a machine with a GPU: gpu.json and gpu.md
    python benchmarks/gpu.py --data-dir data --only speed   # one part again; what others found before is kept
    python benchmarks/gpu.py --cpu                          # a rehearsal on the CPU, small: its figures mean nothing

Results are written as they come. It needs no network, and full MNIST in --data-dir. The exit status is 0 if no part
failed, or ran out of time.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_dist.core import ExactAccelerator
from mnist_dist.core.loader import ExactDataLoader
from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch, origin
from mnist_dist.run.neighbour import Neighbour
from mnist_dist.task import networks
from mnist_dist.task.objective import Loss, adam, average, loss_of

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {  # flags of train.py that are tried for two epochs each
    "mlp": "",
    "cnn": "--model cnn",
    "tf32": "--model cnn --tf32",
    "bf16": "--model cnn --mixed-precision bf16",
    "fp16": "--model cnn --mixed-precision fp16 --ema 0.99",
    "float64": "--dtype float64",
    "ema, clipping, accumulation": "--ema 0.99 --clip-norm 0.5 --gradient-accumulation-steps 2",
    "distortions, dropout": "--affine 0.5 --elastic 0.5 --dropout 0.1",
    "virtual": "--model cnn --virtual-processes 4",
    "compile": "--compile",
}
REHEARSED = ("mlp",)  # of these, on a CPU
PRECISIONS = {"float32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}  # and Accelerate's word for each
Result = dict[str, dict[str, Any]]  # rows of a table: name, and figures by column


# ------------------------------------------------------------------------------------------------------ what is asked


def machine(args: argparse.Namespace) -> Result:
    """The GPU, its driver, and versions."""
    facts = {"device": origin.processor(launch.start(args.cpu).device)} | launch.versions()
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,memory.total,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        facts["driver, memory, clock, power"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return {name: {"value": value} for name, value in facts.items()}


def verify(args: argparse.Namespace) -> Result:
    """`python -m mnist_dist verify`, on one process."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*about_data(args), "--json", f"{folder}/answer.json", "--output-dir", folder]
        subprocess.run([sys.executable, "-m", "mnist_dist", "verify", *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
        answer = json.loads(Path(folder, "answer.json").read_text())
    found = {check["name"]: {"passed": check["passed"], "detail": check["detail"]} for check in answer["checks"]}
    return promised(found, answer["passed"])


def options(args: argparse.Namespace) -> Result:
    """Two epochs with each option."""
    found: Result = {}
    for name in REHEARSED if args.cpu else OPTIONS:
        try:
            run_of, _ = train(args, "--epochs", "2", *OPTIONS[name].split())
            found[name] = {"test accuracy": run_of[-1]["test_accuracy"], "samples/s": run_of[-1]["samples_per_second"]}
        except RuntimeError as error:
            found[name] = {"error": str(error)[-500:]}
        show(found)
    return promised(found, not any("error" in row for row in found.values()))


def waits(args: argparse.Namespace) -> Result:
    """Where the host waits for the GPU, as CUDA says, in an epoch of 20 updates with everything on, after the first."""
    if args.cpu:
        raise NeedsGPU("CUDA alone tells where the host waits")
    config = TrainConfig(model="cnn", ema=0.99, clip_norm=0.5, affine=0.5, elastic=0.5, dropout=0.1, batch_size=200)
    training = a_training(args, config, samples=4000, micro_batches=2)
    places = Counter[str]()

    def note(message: Warning | str, *_: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if str(ROOT / "mnist_dist") in frame.filename]
        places[f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        for _ in training.epoch():
            torch.cuda.set_sync_debug_mode("warn")  # after the first update
        torch.cuda.set_sync_debug_mode("default")
    return {place: {"times": times} for place, times in places.items()} or {"none": {"times": 0}}


def bits(args: argparse.Namespace) -> Result:
    """Whether a run has the same bits again, and after a stop between its epochs."""
    found: Result = {}
    for name in REHEARSED if args.cpu else ("mlp", "cnn", "virtual"):
        flags = OPTIONS[name].split()
        with tempfile.TemporaryDirectory() as folder:
            (_, one), (_, again) = (train(args, "--epochs", "2", *flags) for _ in range(2))
            train(args, "--epochs", "1", *flags, folder=f"{folder}/run")
            _, resumed = train(args, "--epochs", "2", "--resume", *flags, folder=f"{folder}/run")
        found[name] = {"the same again": again == one, "the same after a stop": resumed == one}
        show(found)
    return promised(found, all(all(row.values()) for row in found.values()))


def shares(args: argparse.Namespace) -> Result:
    """The largest difference of float64 weights after 40 updates in one share and in several, promised to be 1e-9."""
    found: Result = {}
    for model in ("mlp", "cnn"):
        weights = {}
        for count in (0, 2, 3, 7, 8):
            config = TrainConfig(
                model=model, batch_size=20 if args.cpu else 100, dtype="float64", virtual_processes=count
            )
            training = a_training(args, config, samples=40 * config.batch_size - 1)
            for _ in training.epoch():
                pass
            weights[count] = torch.cat([each.detach().cpu().flatten() for each in training.network.parameters()])
        found[model] = {f"{n} shares": (weights[n] - weights[0]).abs().max().item() for n in weights if n}
    return promised(found, all(max(row.values()) <= 1e-9 for row in found.values()))


def updates(args: argparse.Namespace) -> Result:
    """Microseconds, kernels and peak memory of an update, beside those of a hand-written loop in a CUDA graph."""
    found: Result = {}
    for model in ("mlp", "cnn"):
        for size in (64,) if args.cpu else (64, 512, 4096):
            for precision, mixed in PRECISIONS.items():
                if args.cpu and precision in ("tf32", "fp16"):
                    continue
                config = TrainConfig(model=model, batch_size=size, mixed_precision=mixed, tf32=precision == "tf32")
                row = timed(args, config)
                if mixed == "no":
                    training = a_training(args, config, samples=60 * size if args.cpu else 60_000)
                    row["us, floor"] = microseconds(floor(training, graph=not args.cpu), args)
                    row["share of the floor's speed"] = row["us, floor"] / row["us"]
                found[f"{model}, batch {size}, {precision}"] = row
                show(found)
    return found


def timed(args: argparse.Namespace, config: TrainConfig) -> dict[str, Any]:
    """Microseconds, kernels and peak memory of an update."""
    training = a_training(args, config, samples=60 * config.batch_size if args.cpu else 60_000)
    updates = training.endless()
    if args.cpu:
        return {"us": microseconds(lambda: next(updates), args)}
    torch.cuda.reset_peak_memory_stats()
    us = microseconds(lambda: next(updates), args)
    memory = torch.cuda.max_memory_allocated() / 2**20
    return {"us": us, "kernels": kernels(lambda: next(updates)), "MiB": memory}


def speed(args: argparse.Namespace) -> Result:
    """Samples a second at batch 64: train.py, the original script, and the loop that Accelerate documents."""
    lines, _ = train(args, "--epochs", "4")
    found: Result = {"train.py": {"samples/s": max(line["samples_per_second"] for line in lines)}}
    if args.cpu:
        return found  # the others read full MNIST, for minutes
    for name in ("floor", "original", "accelerate"):
        command = [sys.executable, "benchmarks/baselines.py", name, f"--data-dir={args.data_dir}"]
        seconds = json.loads(run([*command, f"--epochs={4 if name == 'floor' else 1}"]).splitlines()[-1])[
            "epoch_seconds"
        ]
        ours, theirs = found["train.py"]["samples/s"], 60_000 / min(seconds)
        found[name] = {"samples/s": theirs, "train.py is so many times as fast": ours / theirs}
        show(found)
    return found


def recipe(args: argparse.Namespace) -> Result:
    """--recipe fast-cnn with five seeds: seconds of training to the end of the epoch that reaches 99 %."""
    found: Result = {}
    for seed in range(1 if args.cpu else 5):
        flags = ["--epochs", "1"] if args.cpu else []
        lines, _ = train(args, "--recipe", "fast-cnn", "--seed", str(seed), *flags)
        samples, seconds = 4000 if args.cpu else 60_000, 0.0
        for line in lines:
            seconds += samples / line["samples_per_second"]
            if line["test_accuracy"] >= 0.99:
                break
        found[f"seed {seed}"] = {"seconds": seconds, "test accuracy": line["test_accuracy"]}
        show(found)
    reached = all(row["test accuracy"] >= 0.99 for row in found.values())
    mean = statistics.mean(row["seconds"] for row in found.values())
    return found | {"mean": {"seconds": mean, "reached 99 %": reached}}


def pair(args: argparse.Namespace) -> Result:
    """Two processes, on one GPU if NCCL allows that: whether they sum, and how soon one ends if the other is killed."""
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, __file__, "--worker", "one_of_a_pair", *(["--cpu"] if args.cpu else [])]
    several = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    several[1].communicate()
    begin = time.perf_counter()
    output, errors = several[0].communicate()
    if "they sum" not in output:
        return {"pair": {"they sum": False, "why": errors.strip()[-500:]}}
    return {"pair": {"they sum": True, "seconds until the other ends": time.perf_counter() - begin}}


def one_of_a_pair(args: argparse.Namespace) -> Result:
    """What each of them does; the second one dies in it."""
    device = "cpu" if args.cpu else f"cuda:{int(os.environ['RANK']) % torch.cuda.device_count()}"
    dist.init_process_group("gloo" if args.cpu else "nccl")
    neighbour, one = Neighbour(), torch.ones(1, device=device)
    dist.all_reduce(one)
    assert one.item() == 2
    print("they sum", flush=True)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if args.cpu:
        neighbour.thread.join()  # gloo would notice by itself
    dist.all_reduce(one)
    return {"": {"": one.item()}}  # a wait in CUDA, which only the watch can end


# Most important first; seconds that each may take.
PARTS: dict[Callable[[argparse.Namespace], Result], int] = {
    machine: 60,
    verify: 150,
    waits: 90,
    updates: 300,
    bits: 240,
    shares: 120,
    speed: 180,
    recipe: 150,
    options: 300,
    pair: 90,
}


# ---------------------------------------------------------------------------------------------------- how it is asked


class NeedsGPU(Exception):
    """The part has nothing to do on a CPU."""


def about_data(args: argparse.Namespace) -> list[str]:
    """Flags of all programs here: which data, and which device."""
    return ["--dataset", "mnist-5k", "--cpu"] if args.cpu else ["--dataset", "mnist", "--data-dir", str(args.data_dir)]


def run(command: list[str]) -> str:
    """A program's output; a RuntimeError with the end of what it said if it failed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def train(args: argparse.Namespace, *flags: str, folder: str = "") -> tuple[list[dict[str, Any]], str]:
    """Run train.py, and return the lines of its metrics and the digest of its weights."""
    with tempfile.TemporaryDirectory() as aside:
        place = Path(folder or f"{aside}/run")
        small = ["--batch-size", "500"] if args.cpu and "--recipe" not in flags else []
        where = ["--wandb", "disabled", "--output-dir", str(place)]
        run([sys.executable, "train.py", *about_data(args), *small, *where, *flags])
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        return lines, hashlib.sha256((place / "mnist_model.pth").read_bytes()).hexdigest()


@dataclass
class ATraining:
    """A training as train.py makes it.

    Attributes:
        accelerator: its process.
        network: bare.
        model, optimizer, loader: prepared.
        loss: what is minimised.
        clip_norm: the largest norm of a gradient; 0: no limit.
    """

    accelerator: ExactAccelerator
    network: networks.MNISTNet
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: ExactDataLoader
    loss: Loss
    clip_norm: float

    def epoch(self) -> Iterator[None]:
        """Make the updates of an epoch, one at each step of the iteration."""
        accelerator = self.accelerator
        for images, labels in self.loader:
            loss = self.loss(self.model, images, labels, accelerator.micro_batch.rand)
            accelerator.backward(loss)
            if self.clip_norm:
                accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if accelerator.sync_gradients:
                yield

    def endless(self) -> Iterator[None]:
        """Make the updates of one epoch after the other."""
        while True:
            yield from self.epoch()


def a_training(args: argparse.Namespace, config: TrainConfig, samples: int, micro_batches: int = 1) -> ATraining:
    """A training of random images: for times, bits and waits they are as good as any."""
    dtype = getattr(torch, config.dtype)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = launch.start(
        args.cpu,
        config.mixed_precision,
        dtype,
        tf32=config.tf32,
        virtual_processes=config.virtual_processes,
        micro_batches=micro_batches,
    )
    torch.manual_seed(0)
    images = torch.randn(samples, 1, 28, 28).to(accelerator.device, dtype)
    labels = torch.randint(10, (samples,)).to(accelerator.device)
    network = networks.build(config.model).to(accelerator.device, dtype)
    optimizer = adam(network, config)
    if config.ema:
        average(network, optimizer, config.ema)
    loader = DataLoader(TensorDataset(images, labels), config.batch_size, shuffle=True)
    loss = loss_of(network, config)
    return ATraining(accelerator, network, *accelerator.prepare(network, optimizer, loader), loss, config.clip_norm)


def microseconds(part: Callable[[], object], args: argparse.Namespace) -> float:
    """The lowest mean of three rounds, the device's work included."""
    rounds, repeats = [], 5 if args.cpu else 200
    for _ in range(20 if not args.cpu else 1):
        part()
    for _ in range(3):
        synchronize(args)
        begin = time.perf_counter()
        for _ in range(repeats):
            part()
        synchronize(args)
        rounds.append(1e6 * (time.perf_counter() - begin) / repeats)
    return min(rounds)


def synchronize(args: argparse.Namespace) -> None:
    if not args.cpu:
        torch.cuda.synchronize()


def kernels(part: Callable[[], object]) -> float:
    """Kernels and copies that the GPU is given, mean of 20."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(20):
            part()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events()) / 20


def floor(training: ATraining, graph: bool) -> Callable[[], object]:
    """A hand-written update of such a network, as one CUDA graph: the order, a cursor and all else on the GPU."""
    images, labels = training.loader.dataset.tensors
    size = training.loader.batch_size
    copy = networks.build("cnn" if isinstance(training.network, networks.ConvNet) else "mlp").to(images.device)
    optimizer = torch.optim.AdamW(copy.parameters(), lr=1e-3, fused=True, capturable=graph)
    order = training.loader.sampler.order(0).to(images.device)
    cursor = torch.zeros((), dtype=torch.int64, device=images.device)
    places = torch.arange(size, device=images.device)

    def update() -> Tensor:
        index = order[(places + cursor) % len(order)]
        loss = F.cross_entropy(copy(images[index]), labels[index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        cursor.add_(size)
        return loss

    if not graph:
        return update
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(beside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        update()
    return captured.replay


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def promised(found: Result, kept: bool) -> Result:
    """What was found; a part that finds a promise broken fails, and what it found stays."""
    show(found)
    if not kept:
        raise RuntimeError("a promise is broken: see the table")
    return found


def show(found: Result) -> None:
    """Hand what has been found so far to who asked: it is kept if the time runs out."""
    print(json.dumps(found), flush=True)


def ask(name: str, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Run one part, and return its status, seconds and rows."""
    words = ["--worker", name, "--data-dir", str(args.data_dir), *(["--cpu"] if args.cpu else [])]
    begin, status = time.perf_counter(), "done"
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=errors, text=True, start_new_session=True)
        try:
            code = process.wait(seconds)
            if code:
                errors.seek(0)
                status = f"failed: {errors.read().strip()[-2000:]}"
        except subprocess.TimeoutExpired:
            status = f"was not done in {seconds:.0f} s"
        finally:
            if process.poll() is None or status != "done":
                with_all_that_it_started(process.pid)
                process.wait()
        output.seek(0)
        rows = [line for line in output.read().splitlines() if line.startswith("{")]
    found = json.loads(rows[-1]) if rows else {}
    if "needs a GPU" in found:
        status, found = f"needs a GPU: {found['needs a GPU']}", {}
    return {"status": status, "seconds": time.perf_counter() - begin, "found": found}


def with_all_that_it_started(group: int) -> None:
    """End a part."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""

    def cell(value: Any) -> str:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        return shown.replace("|", "/").replace("\n", " ")

    lines = ["**A rehearsal on a CPU: these figures mean nothing.**\n"] if result["cpu"] else []
    for name, part in result["parts"].items():
        lines.append(f"## {name}\n\n{part['about']} Here: {part['status']}, {part['seconds']:.0f} s.\n")
        columns = list(dict.fromkeys(column for row in part["found"].values() for column in row))
        if columns:
            lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
            lines += [
                f"| {n} | {' | '.join(cell(row.get(c, '')) for c in columns)} |" for n, row in part["found"].items()
            ]
            lines.append("")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="path of the two files, without suffix")
    parser.add_argument(
        "--only", nargs="+", choices=[part.__name__ for part in PARTS], help="these parts; default: all"
    )
    parser.add_argument("--minutes", type=float, default=29.0, help="after which no part begins, or goes on")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU, with small sizes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.data_dir = args.data_dir.resolve()
    if args.worker:
        try:
            show({part.__name__: part for part in (*PARTS, one_of_a_pair)}[args.worker](args))
        except NeedsGPU as error:
            print(json.dumps({"needs a GPU": str(error)}))
        return
    if not (args.cpu or torch.cuda.is_available()):
        sys.exit("gpu.py: error: there is no GPU that PyTorch can use: --cpu rehearses the program without one")
    place = args.output.with_suffix(".json")
    result = json.loads(place.read_text()) if place.exists() else {"parts": {}}
    if result.setdefault("cpu", args.cpu) != args.cpu:
        sys.exit(
            f"gpu.py: error: {place} is {'a rehearsal' if result['cpu'] else 'from a GPU'}: choose another --output"
        )
    end, whole = time.perf_counter() + 60 * args.minutes, True
    for part, limit in PARTS.items():
        if args.only and part.__name__ not in args.only:
            continue
        left = min(limit, end - time.perf_counter())
        found = (
            ask(part.__name__, left, args) if left > 5 else {"status": "no time was left", "seconds": 0.0, "found": {}}
        )
        result["parts"][part.__name__] = {"about": part.__doc__, "date": time.strftime("%Y-%m-%d")} | found
        whole = whole and found["status"].startswith(("done", "needs a GPU"))
        place.write_text(json.dumps(result, indent=1) + "\n")
        place.with_suffix(".md").write_text(markdown(result))
        print(f"{part.__name__}: {found['status']}, {found['seconds']:.0f} s", flush=True)
    sys.exit(not whole)


if __name__ == "__main__":
    main()
