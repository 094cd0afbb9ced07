"""An elastic run on this machine: each torchrun plays a node, at an address of its own, and nodes come and go.

The rendezvous store is in the process that uses this, so that any agent may be killed.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch.distributed as dist

TRAIN = Path(__file__).parents[1] / "train.py"
# Seconds: for more nodes to come, between signs of life, and how many may be missed. torch's 30, 5 and 3 are patient.
QUICK = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
WAIT = 120  # seconds at most until all agents train


class ElasticRun:
    """A training under torchrun agents.

    Args:
        place: the folder they are started in; their logs and, without `--output-dir`, the run go there.
        flags: of train.py.
        nodes: MIN:MAX.
        restarts: of `--max-restarts`.
        hosted: whether the store is here; else the first agent hosts it.
    """

    def __init__(self, place: Path, flags: list[str], nodes: str = "1:2", restarts: int = 0, hosted: bool = True):
        self.place, self.agents = place, dict[str, subprocess.Popen[bytes]]()
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = self.store.port
        if not hosted:
            del self.store
        place.mkdir(parents=True, exist_ok=True)
        self.command = [
            *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1"),
            *(f"--max-restarts={restarts}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"),
            f"--rdzv-conf={QUICK}" + (",is_host=0" if hosted else ""),
        ]
        self.script = [str(TRAIN), *flags]

    def start(self, address: str) -> None:
        """Start the agent of a node, which joins."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with self.log(address).open("ab") as log:
            self.agents[address] = subprocess.Popen(
                [*self.command, f"--local-addr={address}", *self.script],
                cwd=self.place,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def log(self, address: str) -> Path:
        """Where an agent and its processes write."""
        return self.place / f"{address}.log"

    def processes(self, address: str) -> list[psutil.Process]:
        """Those that train on a node."""
        return psutil.Process(self.agents[address].pid).children()

    def kill(self, address: str) -> None:
        """End a node as a power failure does."""
        agent = self.agents.pop(address)
        for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
            process.kill()
        agent.wait()

    def noted(self) -> dict:
        """What the run's config.json says of its job; empty without one."""
        for config in self.place.glob("**/config.json"):
            return json.loads(config.read_text())["job"]
        return {}

    def update(self) -> int:
        """The update of the newest checkpoint, 0 without one."""
        return max((int(place.name[5:]) for place in self.place.glob("**/checkpoints/step-*")), default=0)

    def ended(self) -> bool:
        """Whether the agents have left."""
        return all(agent.poll() is not None for agent in self.agents.values())

    def settle(self) -> bool:
        """Wait until the agents train together, and have written a checkpoint since; False if the run has ended."""
        deadline, update, seen = time.monotonic() + WAIT, None, None
        while not self.ended():
            launchers = self.noted().get("launchers", [])
            whole = len(launchers) == len(self.agents) and all(self.agents_in(launchers))
            if not whole or launchers != seen:
                update, seen = self.update(), launchers
            elif self.update() > (update or 0):
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {WAIT} s {list(self.agents)} do not train, but {launchers}")
            time.sleep(0.05)
        return False

    def agents_in(self, launchers: list[str]) -> list[bool]:
        """For each agent whether it is among the launchers noted."""
        return [any(f":{agent.pid}:" in name for name in launchers) for agent in self.agents.values()]
