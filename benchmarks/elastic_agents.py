"""An elastic run on this machine: each torchrun plays a node, at an address of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

TRAIN = Path(__file__).parents[1] / "train.py"
# Seconds: for more nodes to come, between signs of life, and how many may be missed. torch's 30, 5
# and 3 are patient.
QUICK = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
WAIT = 180  # seconds at most until all agents train
SHARED_STORE_OFF = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class ElasticRun:
    """A training under torchrun agents, which come and go.

    Args:
        place: a folder, in which they are started; their logs and, without `--output-dir`, the run
            go there.
        flags: of train.py.
        nodes: MIN:MAX.
        restarts: for `--max-restarts`.
        endpoint: HOST:PORT if the agent that is started first is to host the rendezvous; else a
            file is used.
    """

    def __init__(
        self,
        place: Path,
        flags: list[str],
        nodes: str = "1:2",
        restarts: int = 0,
        endpoint: str = "",
    ) -> None:
        self.place = place
        self.flags = flags
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.attempt = 0.0
        place.mkdir(parents=True, exist_ok=True)
        configuration = QUICK
        if not endpoint:
            endpoint = str(place / "store")
            configuration += ",store_type=file"
        self.command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nnodes={nodes}",
            "--nproc-per-node=1",
            f"--max-restarts={restarts}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
            f"--rdzv-conf={configuration}",
        ]

    def start(self, address: str, *options: str) -> None:
        """Start the agent of a node, which joins; with options of torchrun."""
        environment = SHARED_STORE_OFF | os.environ | {"OMP_NUM_THREADS": "1"}
        command = [*self.command, f"--local-addr={address}", *options]
        command += [str(TRAIN), *self.flags]
        with (self.place / f"{address}.log").open("ab") as log:
            self.agents[address] = subprocess.Popen(
                command,
                cwd=self.place,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def logs(self) -> str:
        """What the agents and their processes have said."""
        texts = []
        for log in sorted(self.place.glob("*.log")):
            texts.append(log.read_text(errors="replace"))
        return "".join(texts)

    def processes(self, address: str) -> list[psutil.Process]:
        """Those that train on a node."""
        return psutil.Process(self.agents[address].pid).children()

    def kill(self, address: str) -> None:
        """End a node as a power failure does."""
        agent = self.agents.pop(address)
        if agent.poll() is None:
            parent = psutil.Process(agent.pid)
            for process in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        agent.wait()

    def dismiss(self, address: str) -> None:
        """Ask a node's agent to end, as before a planned loss of the node."""
        agent = self.agents.pop(address)
        agent.send_signal(signal.SIGTERM)
        agent.wait(WAIT)

    def ended(self) -> bool:
        """Whether all agents have left."""
        return all(agent.poll() is not None for agent in self.agents.values())

    def noted(self) -> tuple[list[str], float]:
        """The launchers that the run's config.json notes, and when: it tells attempts apart."""
        for config in self.in_the_run("config.json"):
            job = json.loads(config.read_text())["job"]
            return job["launchers"], config.stat().st_mtime
        return [], 0.0

    def newest(self) -> str:
        """The name of the newest checkpoint, empty without one."""
        places = self.in_the_run("checkpoints/step-*")
        return max((place.name for place in places), default="")

    def in_the_run(self, pattern: str) -> list[Path]:
        """Files of the run, in whichever folder it is.

        It does not look into checkpoints, which are renamed meanwhile.
        """
        near = self.place.glob(f"*/{pattern}")
        further = self.place.glob(f"*/*/{pattern}")
        return [*near, *further]

    def are_noted(self, launchers: list[str]) -> bool:
        """Whether these launchers are all agents, and only they."""
        if len(launchers) != len(self.agents):
            return False
        names = " ".join(launchers)
        return all(f":{agent.pid}:" in names for agent in self.agents.values())

    def train_together(self) -> bool:
        """Wait until all agents, and only they, have written a checkpoint in a new attempt.

        An attempt is new after the one that was last waited for.

        Returns:
            False if the run has ended before.

        Raises:
            TimeoutError: they have not in time.
        """
        deadline = time.monotonic() + WAIT
        before = None
        while not self.ended():
            launchers, attempt = self.noted()
            if attempt == self.attempt or not self.are_noted(launchers):
                before = None
            elif before is None:
                before = self.newest()
            elif self.newest() > before:
                self.attempt = attempt
                return True
            if time.monotonic() > deadline:
                agents = ", ".join(self.agents)
                problem = f"do not train together after {WAIT} s, but {launchers}"
                raise TimeoutError(f"{agents} {problem}")
            time.sleep(0.05)
        return False
