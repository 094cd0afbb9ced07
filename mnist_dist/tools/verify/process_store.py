"""What the processes of `verify` leave for each other, in a store that the first one keeps."""

import json
import os
import socket
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

LOCAL = "127.0.0.1"
END = "end"  # the key by which the first process tells all to leave


class Sign(NamedTuple):
    """A sign of life of a process.

    Attributes:
        beat: its number.
        note: how far the process is, for people.
        place: where its program is.
        waits: whether it waits for other processes there.
    """

    beat: int
    note: str
    place: str
    waits: bool


class ProcessStore:
    """One connection of a process to the store that all of them have.

    Args:
        store: the connection.
        rank: this process's number.
        world: the number of processes.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.store = store
        self.rank = rank
        self.world = world

    def leave_value(self, round_number: int, value: Any, error: str) -> None:
        """Leave this process's value of a round.

        Args:
            round_number: the round.
            value: what JSON can hold.
            error: what went wrong here; empty if nothing did.
        """
        self.store.set(f"{round_number}/{self.rank}", json.dumps(value))
        if error:
            self.store.set(f"{round_number}/error/{self.rank}", error)
            self.store.set(f"{round_number}/trouble", "")

    def has_all_values(self, round_number: int) -> bool:
        """Return whether every process has left its value of a round."""
        return self.store.check(self.value_keys(round_number))

    def values(self, round_number: int) -> list[Any]:
        """Return the values of a round, that of the first process first."""
        texts = [self.store.get(key) for key in self.value_keys(round_number)]
        return [json.loads(text) for text in texts]

    def value_keys(self, round_number: int) -> list[str]:
        """Return what the processes' values of a round are stored under."""
        return [f"{round_number}/{rank}" for rank in range(self.world)]

    def has_error(self, round_number: int) -> bool:
        """Return whether some process has left an error in a round."""
        return self.store.check([f"{round_number}/trouble"])

    def errors(self, round_number: int) -> dict[int, str]:
        """Return the errors that were left in a round, by the process's number."""
        errors = {}
        for rank in range(self.world):
            key = f"{round_number}/error/{rank}"
            if self.store.check([key]):
                errors[rank] = self.store.get(key).decode()
        return errors

    def leave_sign(self, sign: Sign) -> None:
        """Leave a sign of life in the place of the one before."""
        self.store.set(f"beat/{self.rank}", json.dumps(sign))

    def signs(self) -> list[Sign | None]:
        """Return the last sign of life of every process, None where there is none."""
        return [self.sign_of(rank) for rank in range(self.world)]

    def sign_of(self, rank: int) -> Sign | None:
        """Return the last sign of life of a process, None if there is none."""
        key = f"beat/{rank}"
        if not self.store.check([key]):
            return None
        values = json.loads(self.store.get(key))
        return Sign(*values)

    def tell_all_to_leave(self) -> None:
        """Say that the work has ended, and how is said."""
        self.store.set(END, "")

    def are_all_to_leave(self) -> bool:
        """Return whether the work has ended."""
        return self.store.check([END])

    def say_goodbye(self) -> None:
        """Say that this process does not use the store again."""
        self.store.set(f"bye/{self.rank}", "")

    def have_said_goodbye(self, ranks: Iterable[int]) -> bool:
        """Return whether some processes do not use the store again."""
        keys = [f"bye/{rank}" for rank in ranks]
        return self.store.check(keys)


def connect(accelerator: Accelerator) -> tuple[ProcessStore, ProcessStore]:
    """Connect all processes to one store.

    Returns:
        Two connections, one for the program and one for a thread: with one they would wait for each
        other.
    """
    rank = accelerator.process_index
    world = accelerator.num_processes
    # On Windows torch is built without libuv.
    new_store = partial(dist.TCPStore, use_libuv=sys.platform != "win32")
    server = None
    address = None
    if rank == 0:
        server = new_store(LOCAL, 0, is_master=True, wait_for_workers=False)
        host = own_address() if world > 1 else LOCAL
        address = (host, server.port)
    ((host, port),) = broadcast_object_list([address])
    first = server or new_store(host, port, is_master=False)
    second = new_store(host, port, is_master=False)
    return ProcessStore(first, rank, world), ProcessStore(second, rank, world)


def own_address() -> str:
    """Return the address by which others reach this process's node.

    MASTER_ADDR may be that of another, on which torchrun's agents met.
    """
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with socket.create_connection(master, timeout=30) as connection:
        return connection.getsockname()[0]
