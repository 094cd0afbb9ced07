"""Bytes that a process sends for an update, counted where torch is asked to send them."""

import multiprocessing
import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from common import Training, random_digits

from mnist_dist.digits.config import TrainConfig
from mnist_dist.run import launch

UPDATES = 3  # that are counted, after a first one that is not
BATCH = 64


class Counter:
    """Counts what this process sends from now on, by standing before torch.distributed's functions.

    Attributes:
        sent: bytes that were sent to single processes.
        reduced: bytes of the tensors that were given to an all-reduce.
        messages: how many messages and collectives there were.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.reduced = 0
        self.messages = 0
        self.isend = dist.isend
        self.all_reduce = dist.all_reduce
        self.all_to_all_single = dist.all_to_all_single
        self.all_gather = dist.all_gather
        dist.isend = self.count_message
        dist.all_reduce = self.count_all_reduce
        dist.all_to_all_single = self.count_all_to_all  # type: ignore[assignment]
        dist.all_gather = self.count_all_gather  # type: ignore[assignment]

    def remove(self) -> None:
        """Count no more."""
        dist.isend = self.isend
        dist.all_reduce = self.all_reduce
        dist.all_to_all_single = self.all_to_all_single
        dist.all_gather = self.all_gather

    def count_message(self, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """Stand before `dist.isend`."""
        self.sent += tensor.nbytes
        self.messages += 1
        return self.isend(tensor, *arguments, **options)

    def count_all_reduce(self, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """Stand before `dist.all_reduce`."""
        self.reduced += tensor.nbytes
        self.messages += 1
        return self.all_reduce(tensor, *arguments, **options)

    def count_all_to_all(self, output: Any, tensor: torch.Tensor, *arguments: Any) -> Any:
        """Stand before `dist.all_to_all_single`: each process keeps its own part."""
        others = dist.get_world_size() - 1
        self.sent += tensor.nbytes * others // (others + 1)
        self.messages += others
        return self.all_to_all_single(output, tensor, *arguments)

    def count_all_gather(self, outputs: Any, tensor: torch.Tensor, *arguments: Any) -> Any:
        """Stand before `dist.all_gather`: each process sends its tensor to every other, or passes others' on."""
        others = dist.get_world_size() - 1
        self.sent += tensor.nbytes * others
        self.messages += others
        return self.all_gather(outputs, tensor, *arguments)


def count_updates(virtual: int) -> dict[str, float]:
    """Count what this process sends for an update of the default MLP.

    Args:
        virtual: the number of virtual processes, 0 for none.

    Returns:
        Bytes sent to single processes, bytes given to all-reduces, messages, and all bytes.
    """
    accelerator = launch.start(cpu=True, mixed_precision="no", virtual_processes=virtual)
    samples = random_digits((UPDATES + 2) * BATCH)
    training = Training(accelerator, TrainConfig(batch_size=BATCH), samples)
    training.make_updates(1)
    counter = Counter()
    while accelerator.updates <= UPDATES:
        for images, labels in training.loader:
            training.learn(images, labels)
            if accelerator.updates > UPDATES:
                break
    counter.remove()
    # An all-reduce is gloo's ring, which sends so much; this is reckoned.
    world = accelerator.num_processes
    ring = 2 * (world - 1) / world * counter.reduced
    return {
        "sent": counter.sent / UPDATES,
        "reduced": counter.reduced / UPDATES,
        "messages": counter.messages / UPDATES,
        "in all": (counter.sent + ring) / UPDATES,
    }


def be_process(
    rank: int,
    environment: dict[str, str],
    virtual: list[int],
    answers: Any,
) -> None:
    """Be one process, and put into a queue what it has counted for each V."""
    os.environ.update(environment)
    os.environ["RANK"] = str(rank)
    os.environ["LOCAL_RANK"] = str(rank)

    def count() -> None:
        answers.put([count_updates(shares) for shares in virtual])
        answers.close()
        answers.join_thread()

    launch.run(count, "traffic.py")


def count_bytes(world: int, virtual: list[int]) -> list[dict[str, float]]:
    """Count, on so many processes, what one of them sends for an update: the most of any process.

    The processes are forks of this one, so that torch is imported once.

    Args:
        world: the number of processes, at least 2.
        virtual: the numbers of virtual processes to count for, 0 for none.

    Returns:
        What was counted, for each of `virtual`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = []
    for rank in range(world):
        arguments = (rank, environment, virtual, answers)
        process = context.Process(target=be_process, args=arguments)
        process.start()
        processes.append(process)
    of_processes = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    most = []
    for counted in zip(*of_processes, strict=True):
        most.append({name: max(one[name] for one in counted) for name in counted[0]})
    return most


def count_table(
    worlds: tuple[int, ...],
    virtual: tuple[int, ...],
) -> dict[str, dict[str, dict[str, float]]]:
    """Count for each number of processes W, and each V of at least W.

    Args:
        worlds: the numbers of processes.
        virtual: the numbers of virtual processes, 0 for none.

    Returns:
        What was counted, by W and V.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for world in worlds:
        possible = [shares for shares in virtual if shares == 0 or shares >= world]
        found = count_bytes(world, possible)
        by_shares = zip(possible, found, strict=True)
        table[str(world)] = {str(shares): counted for shares, counted in by_shares}
        print(f"W = {world}: counted", flush=True)
    return table
