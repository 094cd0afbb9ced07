"""A lock file with a heartbeat, for file systems whose own locks cannot be relied on.

The file holds JSON:
    host: the node, and its namespace of processes.
    pid: the process.
    started: when it began to hold the folder, in seconds since 1970.
    heartbeat: when it last said that it lives, likewise.
    token: a random word, by which it knows its own file.
"""

import json
import os
import platform
import secrets
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from mnist_dist.core.errors import UserError

NAME = ".holder.json"
BEAT = 5.0  # seconds between two heartbeats
FRESH = 30.0  # seconds for which a heartbeat counts as recent
WATCH = 12.0  # seconds to watch an old heartbeat, in case it only looks old by another node's clock
READS = 3  # of a file that another process may just be writing, which for a moment is no JSON
REREAD = 0.1  # seconds between them
MOMENT = 0.5  # seconds to wait for another process that took the folder at the same time

# File systems of several nodes, as the list of what is mounted calls them. A lock there may hold on
# one node only, as with NFS's `local_lock` and Lustre's `localflock`.
SHARED = ("nfs", "lustre", "cifs", "smb", "fuse", "9p", "beegfs", "gpfs", "ceph", "afs", "gluster")
ON_THIS_NODE = ("fuseblk", "fuse.lxcfs")


class HeartbeatLock:
    """A lock on a folder, held by this process until `let_go`.

    A background thread renews the heartbeat. If another process has taken over the folder, which
    happens only if this process sent no heartbeats (for example while suspended), the thread ends
    this process.

    Args:
        folder: the folder, which no other process holds.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.about = {
            "host": host(),
            "pid": os.getpid(),
            "started": time.time(),
            "token": secrets.token_hex(8),
        }
        self.released = threading.Event()
        self.beat()
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def beat(self) -> None:
        """Say that this process lives.

        The file is written in place: of one that was renamed, NFS may show the old one for a time.
        """
        document = json.dumps(self.about | {"heartbeat": time.time()})
        content = f"{document}\n".encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, content)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)

    def keep(self) -> None:
        """Renew the heartbeat until the folder is let go."""
        while not self.released.wait(BEAT):
            found = read(self.path)
            if found and found.get("token") != self.about["token"]:
                print(
                    f"error: {described(found)} has taken over the run in {self.path.parent}, "
                    "because this process had stopped sending heartbeats: this process exits and "
                    "leaves the run to it",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
                return
            with suppress(OSError):  # a folder that is gone is noticed by the training
                if self.path.parent.exists() and not self.released.is_set():
                    self.beat()

    def let_go(self) -> None:
        """Release the folder."""
        self.released.set()
        self.thread.join()
        found = read(self.path)
        if found and found.get("token") == self.about["token"]:
            with suppress(OSError):
                self.path.unlink()


def hold(folder: Path) -> HeartbeatLock:
    """Lock a folder for this process, replacing a stale lock of a process that has died.

    Args:
        folder: the folder, which must exist.

    Returns:
        What holds it.

    Raises:
        UserError: another process holds it.
        OSError: the folder cannot be written to.
    """
    path = folder / NAME
    found = read(path)
    if found:
        refuse_if_alive(path, found)
    holder = HeartbeatLock(folder)
    # If two processes start at the same moment, the last one to write owns the file.
    time.sleep(MOMENT)
    found = read(path)
    if found and found.get("token") != holder.about["token"]:
        holder.let_go()
        refuse(path, found)
    return holder


def refuse_if_alive(path: Path, found: dict[str, Any]) -> None:
    """Refuse a folder whose holder lives.

    Args:
        path: the holder's file.
        found: what it holds.

    Raises:
        UserError: the holder is a live process of this node, or its heartbeat is recent or keeps
            changing (by another node's clock).
    """
    if found.get("host") == host() and not is_there(found):
        return
    if is_fresh(found):
        refuse(path, found)
    until = time.monotonic() + WATCH
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCH))
        if read(path) != found:
            refuse(path, found)


def is_there(found: dict[str, Any]) -> bool:
    """Whether the process named in this node's lock file still runs, and its pid was not reused."""
    try:
        process = psutil.Process(found["pid"])
        return process.create_time() < found["started"] + 1
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, KeyError, TypeError, ValueError):
        return True  # it cannot be told


def refuse(path: Path, found: dict[str, Any]) -> NoReturn:
    """Refuse a folder that another process holds.

    Args:
        path: the holder's file.
        found: what it holds.

    Raises:
        UserError: says who does.
    """
    raise UserError(
        f"another process is writing the run in {path.parent} ({described(found)}, says {path}): "
        "wait for it, or choose another folder"
    )


def seems_held(folder: Path) -> bool:
    """Tell whether a folder has a holder whose heartbeat is fresh."""
    found = read(folder / NAME)
    return found is not None and is_fresh(found)


def is_fresh(found: dict[str, Any]) -> bool:
    """Tell whether a heartbeat was just now, as far as clocks agree."""
    heartbeat = found.get("heartbeat")
    if not isinstance(heartbeat, int | float):
        return False
    return abs(time.time() - heartbeat) < FRESH


def read(path: Path) -> dict[str, Any] | None:
    """Read a holder's file, again if it is just being written.

    Returns:
        What it holds, empty if that cannot be understood. None without a file.
    """
    for attempt in range(READS):
        if attempt:
            time.sleep(REREAD)
        try:
            found = json.loads(path.read_bytes())
        except OSError:
            return None
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}


def described(found: dict[str, Any]) -> str:
    """Name the process that a holder's file is of."""
    node = str(found.get("host", "?")).split(" ")[0]
    return f"process {found.get('pid', '?')} on {node}"


def host() -> str:
    """Name this node, and the namespace in which its processes have their numbers."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:  # on other systems than Linux
        return platform.node()
    return f"{platform.node()} {namespace}"


def is_of_several_nodes(folder: Path) -> bool:
    """Tell whether a folder is on a file system that several nodes may see."""
    place = folder.resolve()
    best = Path("/")
    kind = ""
    for mounted in psutil.disk_partitions(all=True):
        point = Path(mounted.mountpoint)
        if place.is_relative_to(point) and point.is_relative_to(best):
            best = point
            kind = mounted.fstype
    return kind.startswith(SHARED) and kind not in ON_THIS_NODE
