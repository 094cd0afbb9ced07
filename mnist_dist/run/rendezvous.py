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

from mnist_dist.core.processes import PATIENCE

SCHEME = "mnist-dist"
METHOD = f"{SCHEME}://"  # for `init_process_group(init_method=...)`
# For processes to come, and to answer. Not 10 minutes: that is Accelerate's default for NCCL, so it is not handed on
# (accelerate 1.15), and gloo waits for 30.
TIMEOUT = PATIENCE
UNKNOWN = 10  # seconds that the first one's name may be unknown: that of a container may come with it
SILENCE = 30  # seconds of waiting after which one process a node says what it waits for


def rendezvous(_: str, **options: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """torch's rendezvous by environment variables, with keys that no earlier attempt has written.

    `torchrun --max-restarts` keeps one store for all attempts (torch 2.15), so a process that is started again would
    read the address of one that is dead: `connectFullMesh failed ... Connection refused` (pytorch #135712, #167288).

    Yields:
        The store, this process's rank, and the number of processes.
    """
    timeout = options["timeout"]
    notice = threading.Timer(SILENCE, tell, [timeout])
    notice.daemon = True
    notice.start()
    try:
        if os.environ["RANK"] != "0":
            reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout)
        store, rank, world = next(iter(dist.rendezvous("env://", **options)))
        name = agree(store, rank, world, timeout)
    finally:
        notice.cancel()
    yield dist.PrefixStore(name, store), rank, world


def reach(address: str, port: int, timeout: timedelta) -> None:
    """Wait until the store can be reached. torch would, too, but with pages of its own stack if it cannot.

    Raises:
        dist.DistStoreError: it could not in time.
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
                raise dist.DistStoreError(f"nobody answers at {address}:{port} ({error.strerror or error})") from error
        time.sleep(0.1)


def tell(timeout: timedelta) -> None:
    """Say what the processes wait for, once a node: a wrong address would look like a hang."""
    if os.environ["LOCAL_RANK"] == "0":
        print(
            "waiting for all {WORLD_SIZE} processes to meet at {MASTER_ADDR}:{MASTER_PORT}, ".format_map(os.environ)
            + f"for {timeout.total_seconds() / 60:.0f} minutes at most: is each of them started, and is this the "
            "address of the first one's node?",
            file=sys.stderr,
            flush=True,
        )


def agree(store: dist.Store, rank: int, world: int, timeout: timedelta) -> str:
    """A name for this attempt that its processes share, whatever earlier ones have left in the store.

    Counters would not do: launchers on several nodes count restarts differently. So each process asks with a token of
    its own, and the first answers tokens, dead ones too, until every process has thanked for this attempt's name.

    Raises:
        dist.DistStoreError: some process did not come in time.
    """
    token = uuid.uuid4().hex
    if rank:
        store.set(f"ask/{rank}", token)
        name = store.get(f"answer/{token}").decode()
        store.set(f"thanks/{name}/{rank}", "")
        return name
    deadline, waiting = time.monotonic() + timeout.total_seconds(), set(range(1, world))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"thanks/{token}/{other}"]):
                waiting.remove(other)
            elif store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", token)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"process {min(waiting)} did not come")
        time.sleep(0.005)
    return token


dist.register_rendezvous_handler(SCHEME, rendezvous)
