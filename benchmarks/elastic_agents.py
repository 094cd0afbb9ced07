"""An elastic run on this machine: each torchrun plays a node, at an address of its own, and nodes come and go."""

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
# Seconds: for more nodes to come, between signs of life, and how many may be missed. torch's 30, 5 and 3 are patient.
QUICK = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
WAIT = 180  # seconds at most until all agents train


class ElasticRun:
    """A training under torchrun agents.

    Args:
        place: a folder, in which they are started; their logs and, without `--output-dir`, the run go there.
        flags: of train.py.
        nodes: MIN:MAX.
        restarts: for `--max-restarts`.
        endpoint: HOST:PORT if the agent that is started first is to host the rendezvous; else a file is used.
    """

    def __init__(self, place: Path, flags: list[str], nodes: str = "1:2", restarts: int = 0, endpoint: str = ""):
        self.place, self.flags, self.agents = place, flags, dict[str, subprocess.Popen[bytes]]()
        self.attempt = 0.0
        place.mkdir(parents=True, exist_ok=True)
        self.command = [
            *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1"),
            *(f"--max-restarts={restarts}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint or place / 'store'}"),
            f"--rdzv-conf={QUICK}" + ("" if endpoint else ",store_type=file"),
        ]

    def start(self, address: str, *options: str) -> None:
        """Start the agent of a node, which joins; with options of torchrun."""
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | os.environ | {"OMP_NUM_THREADS": "1"}
        command = [*self.command, f"--local-addr={address}", *options, str(TRAIN), *self.flags]
        with (self.place / f"{address}.log").open("ab") as log:
            self.agents[address] = subprocess.Popen(command, cwd=self.place, env=environment, stdout=log, stderr=log)

    def logs(self) -> str:
        """What the agents and their processes have said."""
        return "".join(log.read_text(errors="replace") for log in sorted(self.place.glob("*.log")))

    def processes(self, address: str) -> list[psutil.Process]:
        """Those that train on a node."""
        return psutil.Process(self.agents[address].pid).children()

    def kill(self, address: str) -> None:
        """End a node as a power failure does."""
        agent = self.agents.pop(address)
        if agent.poll() is None:
            for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
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
        """The launchers that the run's config.json notes, and when, which tells one attempt from another."""
        for config in self.in_the_run("config.json"):
            return json.loads(config.read_text())["job"]["launchers"], config.stat().st_mtime
        return [], 0.0

    def newest(self) -> str:
        """The name of the newest checkpoint, empty without one."""
        return max((place.name for place in self.in_the_run("checkpoints/step-*")), default="")

    def in_the_run(self, pattern: str) -> list[Path]:
        """Files of the run, in whichever folder it is; without a look into checkpoints, which are renamed meanwhile."""
        return [*self.place.glob(f"*/{pattern}"), *self.place.glob(f"*/*/{pattern}")]

    def train_together(self) -> bool:
        """Wait until all agents, and only they, have written a checkpoint in an attempt after the one last waited for.

        Returns:
            False if the run has ended before.

        Raises:
            TimeoutError: they have not in time.
        """
        deadline, before = time.monotonic() + WAIT, None
        while not self.ended():
            names, attempt = self.noted()
            mine = [f":{agent.pid}:" for agent in self.agents.values()]
            if attempt == self.attempt or len(names) != len(mine) or not all(any(m in n for n in names) for m in mine):
                before = None
            elif before is None:
                before = self.newest()
            elif self.newest() > before:
                self.attempt = attempt
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"{', '.join(self.agents)} do not train together after {WAIT} s, but {names}")
            time.sleep(0.05)
        return False
