"""How the processes find each other, also after a launcher has started them again."""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mnist_dist.core.connections import PATIENCE

SCHEME = "mnist-dist"
METHOD = f"{SCHEME}://"  # for `init_process_group(init_method=...)`

# How long processes have to come, and to answer. It is not 10 minutes: that is Accelerate's default
# for NCCL, so Accelerate does not hand it on (accelerate 1.15), and gloo waits for 30.
TIMEOUT = PATIENCE

UNKNOWN = 10  # seconds to retry while the first node's name does not resolve yet
SILENCE = 30  # seconds of waiting after which one process of a node says what it waits for


def rendezvous(_: str, **options: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Like torch's env:// rendezvous, but with keys that no earlier attempt has written.

    `torchrun --max-restarts` keeps one store for all attempts (torch 2.15), so a process that is
    started again would read the address of one that is dead: `connectFullMesh failed ... Connection
    refused` (pytorch #135712, #167288).

    Args:
        _: the address, which says nothing: it is `METHOD`.
        **options: what torch hands to a rendezvous, such as the `timeout`.

    Yields:
        The store, the rank of this process, and the number of processes.
    """
    timeout = options["timeout"]
    notice = threading.Timer(SILENCE, tell, [timeout])
    notice.daemon = True
    notice.start()
    try:
        if os.environ["RANK"] != "0":
            address = os.environ["MASTER_ADDR"]
            port = int(os.environ["MASTER_PORT"])
            reach(address, port, timeout)
        meetings = dist.rendezvous("env://", **options)
        store, rank, world = next(iter(meetings))
        name = agree(store, rank, world, timeout)
    finally:
        notice.cancel()
    yield dist.PrefixStore(name, store), rank, world


def reach(address: str, port: int, timeout: timedelta) -> None:
    """Wait until the store can be reached.

    torch would wait, too, but prints pages of its own stack if the store cannot be reached.

    Args:
        address: the name or number of the first process's node.
        port: the port of the store on it.
        timeout: how long to wait.

    Raises:
        dist.DistStoreError: the store could not be reached in time.
    """
    begin = time.monotonic()
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            patience = timeout.total_seconds()
            if isinstance(error, socket.gaierror):
                patience = min(patience, UNKNOWN)
            if time.monotonic() - begin > patience:
                reason = error.strerror or error
                message = f"nobody answers at {address}:{port} ({reason})"
                raise dist.DistStoreError(message) from error
        time.sleep(0.1)


def tell(timeout: timedelta) -> None:
    """Say, once a node, what the processes wait for: a wrong address would look like a hang.

    Args:
        timeout: how long they will wait.
    """
    if os.environ["LOCAL_RANK"] != "0":
        return
    world = os.environ["WORLD_SIZE"]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    minutes = timeout.total_seconds() / 60
    print(
        f"waiting for all {world} processes to meet at {place}, for {minutes:.0f} minutes at most: "
        "is each of them started, and is this the address of the first one's node?",
        file=sys.stderr,
        flush=True,
    )


def agree(store: dist.Store, rank: int, world: int, timeout: timedelta) -> str:
    """Find a name for this attempt that its processes share, whatever earlier ones left behind.

    Counters would not do: launchers on several nodes count restarts differently. So each process
    sends a token of its own. The first process answers all tokens, even those of dead processes,
    until every process has acknowledged the name of this attempt.

    Args:
        store: where the processes leave messages for each other.
        rank: the number of this process.
        world: the number of processes.
        timeout: how long the first process waits for the others.

    Returns:
        The name.

    Raises:
        dist.DistStoreError: some process did not come in time.
    """
    token = uuid.uuid4().hex
    if rank:
        return ask_for_name(store, rank, token)
    deadline = time.monotonic() + timeout.total_seconds()
    waiting = set(range(1, world))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"thanks/{token}/{other}"]):
                waiting.remove(other)
            elif store.check([f"ask/{other}"]):
                others_token = store.get(f"ask/{other}").decode()
                store.set(f"answer/{others_token}", token)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"process {min(waiting)} did not come")
        time.sleep(0.005)
    return token


def ask_for_name(store: dist.Store, rank: int, token: str) -> str:
    """Ask the first process for the name of this attempt, and thank for it.

    Args:
        store: where the processes leave messages for each other.
        rank: the number of this process.
        token: a word that no other process uses, now or in an earlier attempt.

    Returns:
        The name.
    """
    store.set(f"ask/{rank}", token)
    name = store.get(f"answer/{token}").decode()
    store.set(f"thanks/{name}/{rank}", "")
    return name


dist.register_rendezvous_handler(SCHEME, rendezvous)
