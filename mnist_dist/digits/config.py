"""The flags of train.py: the settings of a training, and those of its run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mnist_dist.run.command_line import flag
from mnist_dist.run.settings import RunFlags
from mnist_dist.task.recipes import RECIPES
from mnist_dist.task.settings import GROUPS, Settings
from mnist_dist.usage import MAY_CHANGE, require, unset

Recipe = Literal["original", "fast", "fast-cnn", "best", "best-cnn"]
RecipeOrNone = Annotated[Recipe | None, unset("none, the same as original")]
FolderOfRun = Annotated[Path | None, unset("runs/<timestamp>-<dataset>-<model>")]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunFlags, Settings):
    """Train a digit classifier. The defaults are those of --recipe original: an MLP, 5 epochs."""

    GROUPS: ClassVar[dict[str, str]] = GROUPS | {
        "run": "output-dir resume checkpoint-every cpu mixed-precision dtype tf32 compile "
        "log-every no-plots no-report wandb wandb-project wandb-model help"
    }
    RECIPES: ClassVar[dict[str, dict[str, Any]]] = RECIPES

    gradient_accumulation_steps: int = 1
    """Micro-batches that each process splits its part of a batch into, to save memory; changes only rounding."""
    compile: bool = False
    """Compile the network with torch.compile, which takes 10 s or more; no gain on the CPUs we measured."""
    recipe: RecipeOrNone = field(default=None, metadata=MAY_CHANGE)
    """Preset of settings; explicit flags override it."""
    output_dir: FolderOfRun = field(default=None, metadata=MAY_CHANGE)
    """Folder that the run writes to."""
    log_every: int = field(default=50, metadata=MAY_CHANGE)
    """Number of updates between points on the loss curve."""
    plots: bool = field(default=True, metadata=MAY_CHANGE)
    """Plots of learning curves, confusion matrix and mistakes at the end; --no-plots skips them."""
    report: bool = field(default=True, metadata=MAY_CHANGE)
    """The page report.html, which shows the run and classifies digits you draw; --no-report skips it."""
    wandb_model: bool = field(default=False, metadata=MAY_CHANGE)
    """Store the trained model in Weights & Biases as an artifact."""

    def check(self) -> None:
        """Validate the settings, before anything is loaded.

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
        require(self.log_every >= 1, "--log-every", self.log_every, "at least 1 update")

    @property
    def compile_mode(self) -> str | None:
        """The mode in which torch.compile is to work on the network, or None for not at all."""
        if not self.compile:
            return None
        # On CUDA, reduce-overhead uses CUDA graphs, which cut launch overhead. But each replay
        # overwrites the gradients of the previous one, which breaks accumulation (pytorch #169545).
        if self.gradient_accumulation_steps == 1:
            return "reduce-overhead"
        return "default"

    def fixed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Collect what may not differ when a run is resumed.

        Args:
            values: the settings by field, as `as_json` gives them, the automatic ones resolved.

        Returns:
            The values by flag.
        """
        skipped = set(self.unused)
        rate_is_constant = self.schedule == "constant" and not self.warmup
        if rate_is_constant:  # otherwise the number of epochs decides the rate of every update
            skipped.add("epochs")
        fixed = {}
        for each in fields(self):
            may_change = each.metadata.get("may_change")
            if not may_change and each.name not in skipped:
                fixed[flag(each.name)] = values[each.name]
        if self.model == "mlp":  # it has no channels, whatever the flag says
            fixed[flag("channels")] = TrainConfig.channels
        return fixed
