"""Two processes, over NCCL on one GPU if NCCL allows that, and one of them is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import ROOT, random_digits
from torch.utils.data import DataLoader

from gpu_parts.asking import Asked, Result
from mnist_dist.core import ExactAccelerator
from mnist_dist.run.neighbour import Neighbour
from mnist_dist.task import networks

SUMMED = "they sum"
SUMMED_BY_DDP = "the hook of DDP sums"
EXACT = 1e-5  # how far a float32 gradient may be from that of one process


def pair(asked: Asked) -> Result:
    """Whether two processes sum, with DDP too, and how soon one ends after the other is killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--worker",
        "one_of_a_pair",
    ]
    if asked.cpu:
        command.append("--cpu")
    processes = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(local_rank(rank, asked)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    first, second = processes
    second.communicate()
    begin = time.perf_counter()
    output, errors = first.communicate()
    seconds = time.perf_counter() - begin
    row: dict[str, Any] = {SUMMED: SUMMED in output, SUMMED_BY_DDP: SUMMED_BY_DDP in output}
    if all(row.values()):
        row["seconds until the other ends"] = seconds
    else:
        row["why"] = errors.strip()[-500:]
    return {"pair": row}


def local_rank(rank: int, asked: Asked) -> int:
    """The number of the GPU of a process: both have the same one where there is only one."""
    return rank if asked.cpu else rank % torch.cuda.device_count()


def one_of_a_pair(asked: Asked) -> Result:
    """What each of them does; the second one dies in it."""
    accelerator = ExactAccelerator(cpu=asked.cpu, ddp=True)
    neighbour = Neighbour()
    one = torch.ones(1, device=accelerator.device)
    dist.all_reduce(one)
    assert one.item() == 2
    print(SUMMED, flush=True)
    distance = distance_from_one_process(accelerator)
    assert distance < EXACT, f"the gradient is {distance} from that of one process"
    print(SUMMED_BY_DDP, flush=True)
    dist.barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.cpu:
        neighbour.thread.join()  # gloo would notice by itself
    dist.all_reduce(one)
    return {"": {"": one.item()}}  # a wait in CUDA, which only the watch can end


def distance_from_one_process(accelerator: ExactAccelerator) -> float:
    """How far the gradient that DDP sums is from that of the whole batch, at most."""
    torch.manual_seed(0)
    network = networks.build("mlp").to(accelerator.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    samples = random_digits(101, accelerator.device)
    images, labels = samples.tensors
    whole = F.cross_entropy(network(images), labels)
    expected = torch.autograd.grad(whole, list(network.parameters()))
    loader = DataLoader(samples, batch_size=len(labels))
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    distances = []
    for own_images, own_labels in loader:
        loss = F.cross_entropy(model(own_images), own_labels)
        accelerator.backward(loss)
        for parameter, right in zip(network.parameters(), expected, strict=True):
            assert parameter.grad is not None
            distances.append((parameter.grad - right).abs().max().item())
        optimizer.step()
        optimizer.zero_grad()
    return max(distances)
