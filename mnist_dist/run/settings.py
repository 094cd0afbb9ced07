"""The flags of train.py: the settings of a training, and those of its run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mnist_dist.run.command_line import flag
from mnist_dist.task.settings import GROUPS, Settings
from mnist_dist.usage import MAY_CHANGE, UsageError, require, unset


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where a run goes and how it is recorded: the flags of any training, those in examples/ too."""

    output_dir: Annotated[Path | None, unset("a new folder in runs")] = field(default=None, metadata=MAY_CHANGE)
    """The run's folder."""
    resume: bool = field(default=False, metadata=MAY_CHANGE)
    """Go on from the newest intact checkpoint in --output-dir; from scratch, saying so, if there is none."""
    checkpoint_every: int = field(default=0, metadata=MAY_CHANGE)
    """Updates between two checkpoints; 0: at the ends of epochs only."""
    wandb: Literal["auto", "online", "offline", "disabled"] = field(default="auto", metadata=MAY_CHANGE)
    """Weights & Biases; auto: online if a key is configured, else offline."""
    wandb_project: str = field(default="mnist-dist", metadata=MAY_CHANGE)
    """Project that the run appears under in Weights & Biases."""

    def check_run(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        require(self.checkpoint_every >= 0, "--checkpoint-every", self.checkpoint_every, "a number of updates, or 0")
        if self.resume and self.output_dir is None:
            raise UsageError("--resume needs --output-dir: name the folder of the run to go on with")
        require(
            bool(re.fullmatch(r"[\w.-]{1,128}", self.wandb_project)),
            "--wandb-project",
            repr(self.wandb_project),
            "a name of letters, digits, '.', '_' and '-'",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunFlags, Settings):
    """Train a digit classifier. The defaults are those of the original single-file script."""

    GROUPS: ClassVar[dict[str, str]] = GROUPS | {
        "run": "output-dir resume checkpoint-every cpu mixed-precision dtype tf32 compile cuda-graph log-every "
        "wandb wandb-project wandb-model help"
    }

    gradient_accumulation_steps: int = 1
    """Pieces in which a process works through its share of a batch, to need less memory; changes nothing else."""
    compile: bool = False
    """Compile the network with torch.compile, for 10 seconds or more; it did not pay on the CPUs we measured."""
    cuda_graph: bool = False
    """Launch each update on an NVIDIA GPU as one CUDA graph, for small networks; not yet run on a GPU."""
    recipe: Annotated[
        Literal["original", "fast", "fast-cnn", "best", "best-cnn"] | None, unset("none, which is like original")
    ] = field(default=None, metadata=MAY_CHANGE)
    """Named settings; explicit flags win over them."""
    output_dir: Annotated[Path | None, unset("runs/<timestamp>-<dataset>-<model>")] = field(
        default=None, metadata=MAY_CHANGE
    )
    """The run's folder."""
    log_every: int = field(default=50, metadata=MAY_CHANGE)
    """Updates between two points of the loss curve."""
    wandb_model: bool = field(default=False, metadata=MAY_CHANGE)
    """Store the trained model in Weights & Biases as an artifact."""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        self.check_run()
        require(
            1 <= self.gradient_accumulation_steps <= self.batch_size,
            "--gradient-accumulation-steps",
            self.gradient_accumulation_steps,
            f"a number from 1 to the batch size, {self.batch_size}",
        )
        if self.compile and self.cuda_graph:
            raise UsageError("--compile and --cuda-graph do not go together: leave one of them out")
        require(self.log_every >= 1, "--log-every", self.log_every, "at least 1 update")

    @property
    def compile_mode(self) -> str | None:
        """The mode in which torch.compile is to work on the network, None for not at all."""
        if not self.compile:
            return None
        # On CUDA reduce-overhead makes graphs, without launches to wait for; but the next replay writes over the
        # gradients of the one before, which accumulation adds up (pytorch #169545).
        return "reduce-overhead" if self.gradient_accumulation_steps == 1 else "default"

    @property
    def unused(self) -> set[str]:
        """Fields that decide nothing, given the others."""
        return super().unused | (set() if self.cuda_graph else {"cuda_graph"})  # runs of before have not heard of it

    def fixed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What may not differ when a run goes on, by flag.

        Args:
            values: the settings by field, as `as_json` gives them, the automatic ones resolved.
        """
        if self.model == "mlp":  # it has no channels, whatever the flag says
            values = {**values, "channels": TrainConfig.channels}
        moving = self.schedule != "constant" or self.warmup  # then the number of epochs decides every update's rate
        return {
            flag(field.name): values[field.name]
            for field in fields(self)
            if not field.metadata.get("may_change")
            and field.name not in self.unused
            and (field.name != "epochs" or moving)
        }


@dataclass(frozen=True, kw_only=True)
class OwnConfig(RunFlags):
    """The flags of a training of your own, as in examples/: add what else it has."""

    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 32
    """Samples an update, over all processes together."""
    seed: int = 0
    """Decides the first weights, the order of the samples and those held out."""
    virtual_processes: int = 0
    """Shares of a batch, for the same bits on 1 to so many processes, a thread each; 0: a share for each process."""
    dtype: Literal["float32", "float64"] = "float32"
    """Arithmetic."""
    cpu: bool = field(default=False, metadata=MAY_CHANGE)
    """Force the CPU."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        self.check_run()
        for name, least in {"epochs": 1, "batch_size": 1, "seed": 0, "virtual_processes": 0}.items():
            value = getattr(self, name)
            require(least <= value < 2**32, flag(name), value, f"a number from {least} to {2**32 - 1:,}")
