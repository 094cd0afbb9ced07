"""The flags of any training: where its run goes and how it is recorded.

They know nothing of what is trained. Those of train.py are in `digits.config`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mnist_dist.run.command_line import flag
from mnist_dist.usage import MAY_CHANGE, UsageError, require, unset

FolderOfRun = Annotated[Path | None, unset("a new folder in runs")]
WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where a run goes and how it is recorded, in any training, those in examples/ too."""

    output_dir: FolderOfRun = field(default=None, metadata=MAY_CHANGE)
    """The run's folder."""
    resume: bool = field(default=False, metadata=MAY_CHANGE)
    """Resume from the newest intact checkpoint in --output-dir, or start from scratch if there is none."""
    checkpoint_every: int = field(default=0, metadata=MAY_CHANGE)
    """Number of updates between checkpoints; 0: only at the end of each epoch."""
    wandb: WandbMode = field(default="auto", metadata=MAY_CHANGE)
    """Weights & Biases mode; auto: online if an API key is configured, else offline."""
    wandb_project: str = field(default="mnist-dist", metadata=MAY_CHANGE)
    """Project that the run appears under in Weights & Biases."""

    def check_run(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        require(
            self.checkpoint_every >= 0,
            "--checkpoint-every",
            self.checkpoint_every,
            "a number of updates, or 0",
        )
        if self.resume and self.output_dir is None:
            problem = "--resume needs --output-dir"
            raise UsageError(f"{problem}: name the folder of the run to resume")
        require(
            bool(re.fullmatch(r"[\w.-]{1,128}", self.wandb_project)),
            "--wandb-project",
            repr(self.wandb_project),
            "a name of letters, digits, '.', '_' and '-'",
        )


@dataclass(frozen=True, kw_only=True)
class ScriptConfig(RunFlags):
    """Base class for the flags of your own training script, as in examples/; add your own fields."""

    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 32
    """Global batch size: samples per update, over all processes."""
    seed: int = 0
    """Random seed for the initial weights, the sample order and the held-out samples."""
    virtual_processes: int = 0
    """Split each batch into V shares: bit-identical results on 1 to V processes, one thread each; 0: off."""
    dtype: Literal["float32", "float64"] = "float32"
    """Data type of the weights and the computation."""
    cpu: bool = field(default=False, metadata=MAY_CHANGE)
    """Force the CPU."""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UsageError: names the flag, its value and what to give instead.
        """
        self.check_run()
        smallest = {"epochs": 1, "batch_size": 1, "seed": 0, "virtual_processes": 0}
        for name, least in smallest.items():
            value = getattr(self, name)
            expected = f"a number from {least} to {2**32 - 1:,}"
            require(least <= value < 2**32, flag(name), value, expected)
