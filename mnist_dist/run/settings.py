"""The flags of train.py: the settings of a training, and those of its run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mnist_dist.core import Progress, UserError
from mnist_dist.run.command_line import flag
from mnist_dist.task.settings import GROUPS, MAY_CHANGE, Settings, UsageError, require, unset


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Train a digit classifier. The defaults are those of the original single-file script."""

    GROUPS: ClassVar[dict[str, str]] = GROUPS | {
        "run": "output-dir resume checkpoint-every cpu mixed-precision dtype compile log-every wandb wandb-project "
        "wandb-model help"
    }

    gradient_accumulation_steps: int = 1
    """Pieces in which a process works through its share of a batch, to need less memory; changes nothing else."""
    compile: bool = False
    """Compile the network with torch.compile, for 10 seconds or more; it did not pay on the CPUs we measured."""
    recipe: Annotated[
        Literal["original", "fast", "fast-cnn", "best", "best-cnn"] | None, unset("none, which is like original")
    ] = field(default=None, metadata=MAY_CHANGE)
    """Named settings; explicit flags win over them."""
    output_dir: Annotated[Path | None, unset("runs/<timestamp>-<dataset>-<model>")] = field(
        default=None, metadata=MAY_CHANGE
    )
    """The run's folder."""
    resume: bool = field(default=False, metadata=MAY_CHANGE)
    """Go on from the newest intact checkpoint in --output-dir; from scratch, saying so, if there is none."""
    checkpoint_every: int = field(default=0, metadata=MAY_CHANGE)
    """Updates between two checkpoints; 0: at the ends of epochs only."""
    log_every: int = field(default=50, metadata=MAY_CHANGE)
    """Updates between two points of the loss curve."""
    wandb: Literal["auto", "online", "offline", "disabled"] = field(default="auto", metadata=MAY_CHANGE)
    """Weights & Biases; auto: online if a key is configured, else offline."""
    wandb_project: str = field(default="mnist-dist", metadata=MAY_CHANGE)
    """Project that the run appears under in Weights & Biases."""
    wandb_model: bool = field(default=False, metadata=MAY_CHANGE)
    """Store the trained model in Weights & Biases as an artifact."""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        super().check()
        require(
            1 <= self.gradient_accumulation_steps <= self.batch_size,
            "--gradient-accumulation-steps",
            self.gradient_accumulation_steps,
            f"a number from 1 to the batch size, {self.batch_size}",
        )
        require(self.checkpoint_every >= 0, "--checkpoint-every", self.checkpoint_every, "a number of updates, or 0")
        if self.resume and self.output_dir is None:
            raise UsageError("--resume needs --output-dir: name the folder of the run to go on with")
        require(self.log_every >= 1, "--log-every", self.log_every, "at least 1 update")
        require(
            bool(re.fullmatch(r"[\w.-]{1,128}", self.wandb_project)),
            "--wandb-project",
            repr(self.wandb_project),
            "a name of letters, digits, '.', '_' and '-'",
        )

    @property
    def compile_mode(self) -> str | None:
        """The mode in which torch.compile is to work on the network, None for not at all."""
        if not self.compile:
            return None
        # On CUDA reduce-overhead makes graphs, without launches to wait for; but the next replay writes over the
        # gradients of the one before, which accumulation adds up (pytorch #169545).
        return "reduce-overhead" if self.gradient_accumulation_steps == 1 else "default"

    def check_progress(self, progress: Progress, folder: Path) -> None:
        """Refuse fewer epochs than a run has done.

        Raises:
            UserError: names what it has done.
        """
        if (progress.epoch, progress.step) > (self.epochs, 0):
            raise UserError(
                f"--epochs {self.epochs} is less than what {folder} has done: it is in epoch {progress.epoch + 1}"
            )

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
            if not field.metadata.get("may_change") and (field.name != "epochs" or moving)
        }
