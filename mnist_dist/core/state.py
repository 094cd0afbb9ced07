"""The state of a training run, written by `save_state` and read by `load_state`: plain data, any world size."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from . import files
from .agreement import all_or_none
from .errors import UserError
from .hooks import call_hooks
from .kernels import dtype_of, refuse_other_kernels
from .randomness import GeneratorStates

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator

# Exceptions that loading the state of a different training may raise.
WRONG_STATE = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)


def collect(accelerator: "ExactAccelerator") -> dict[str, Any]:
    """Everything needed to resume; call it on every process, because some parts communicate.

    Returns:
        Numbers, strings, tensors, and lists and dicts of these.
    """
    accelerator.check_weights()
    scaler = accelerator.scaler
    return {
        **resume_invariants(accelerator),
        "updates": accelerator.updates,
        "models": [state_of_model(accelerator, model) for model in accelerator.unwrapped_models],
        "optimizers": [optimizer.state_dict() for optimizer in accelerator._optimizers],
        "schedulers": [plain_scheduler_state(scheduler) for scheduler in accelerator._schedulers],
        "scaler": scaler.state_dict() if scaler else {},
        "loaders": [loader.state_dict() for loader in accelerator._dataloaders],
        "custom": [custom.state_dict() for custom in accelerator._custom_objects],
        # Those of the main process, which writes. In training they are alike on all processes.
        "generators": GeneratorStates(accelerator.device).state_dict(),
    }


def state_of_model(accelerator: "ExactAccelerator", model: nn.Module) -> dict[str, Tensor]:
    """A model's state, without what the shares of an update in progress have done to its buffers."""
    state = model.state_dict()
    buffers = accelerator.buffers_before_update(model)
    return state | {name: value for name, value in buffers.items() if name in state}


def resume_invariants(accelerator: "ExactAccelerator") -> dict[str, Any]:
    """Everything that must be unchanged when a training run is resumed."""
    # Without virtual processes, micro_batches and the precision affect only rounding.
    pieces = accelerator.micro_batches if accelerator.sharing.virtual else 0
    precision = precision_of(accelerator) if accelerator.sharing.virtual else ""
    return {
        "virtual_processes": accelerator.virtual_processes,
        "micro_batches": pieces,
        "precision": precision,
        "seed": accelerator.seed,
        "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
        "batch_sizes": [loader.batch_size for loader in accelerator._dataloaders],
        "samples": [loader.samples for loader in accelerator._dataloaders],
        "bits": accelerator.bits,
        "parameter_orders": accelerator.parameter_orders(),
        "kernels": accelerator.kernels.digest(),
    }


def precision_of(accelerator: "ExactAccelerator") -> str:
    """A description of the compute precision and the weights' dtype."""
    return (
        f"{accelerator.mixed_precision} mixed precision of {dtype_of(accelerator.unwrapped_models)}"
    )


def plain_scheduler_state(scheduler: Any) -> dict[str, Any]:
    """A scheduler's state without entries that are not plain data, such as the functions of `LambdaLR`."""
    return {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}


def restore(accelerator: "ExactAccelerator", found: dict[str, Any]) -> None:
    """Restore the state that `collect` returned.

    Raises:
        UserError: the state belongs to a different training.
    """
    refuse_another_training(accelerator, found)
    parts = {
        "models": accelerator.unwrapped_models,
        "optimizers": accelerator._optimizers,
        "schedulers": accelerator._schedulers,
        "loaders": accelerator._dataloaders,
        "custom": accelerator._custom_objects,
    }
    for kind, those in parts.items():
        for part, its_state in zip(those, found[kind], strict=True):
            if kind == "schedulers" and "lr_lambdas" in part.state_dict():
                its_state = {**its_state, "lr_lambdas": part.state_dict()["lr_lambdas"]}
            part.load_state_dict(its_state)
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(found["scaler"])
    accelerator.updates = found["updates"]
    if "generators" in found:  # checkpoints of before 30 November 2026 have none
        generators = GeneratorStates(accelerator.device)
        generators.load_state_dict(found["generators"])
        generators.restore()


def refuse_another_training(accelerator: "ExactAccelerator", found: dict[str, Any]) -> None:
    """Raise for a state that this training cannot resume from.

    Raises:
        UserError: names what differs.
    """
    now = resume_invariants(accelerator)
    names = {
        "batch_sizes": "the loaders' batch size",
        "samples": "the loaders' number of samples",
        "bits": "the numerical environment",
        "parameter_orders": "the parameter order",
    }
    for name, value in now.items():
        if name == "kernels" and value != found[name]:
            refuse_other_kernels("the kernels of this machine", "those that wrote the checkpoint")
        if value != found[name]:
            raise UserError(
                f"{names.get(name, name)} is {value}, but the checkpoint was written with {found[name]}: "
                "use that value, or start a new training"
            )


def save(accelerator: "ExactAccelerator", output_dir: str | os.PathLike[str] | None) -> str:
    """Write the state of a training into a folder; see `ExactAccelerator.save_state`."""
    project = accelerator.project_configuration
    automatic = project.automatic_checkpoint_naming
    if automatic:
        if not accelerator.project_dir:
            raise UserError(
                "automatic_checkpoint_naming needs a project_dir: give one to ExactAccelerator"
            )
        output_dir = (
            Path(accelerator.project_dir)
            / "checkpoints"
            / f"checkpoint_{accelerator.save_iteration}"
        )
    if output_dir is None:
        raise UserError(
            "save_state was given no folder: name one, or use automatic_checkpoint_naming"
        )
    place = Path(output_dir)
    call_hooks("checkpoint", accelerator)
    payload = collect(accelerator)
    with all_or_none():
        if accelerator.is_main_process:
            if automatic and place.exists():
                raise UserError(
                    f"{place} exists already: load_state first, or choose another project_dir"
                )
            files.write_folder(place, payload, {"updates": accelerator.updates})
            if automatic and project.total_limit is not None:
                files.remove(numbered(place.parent)[: -project.total_limit])
    project.iteration += 1
    accelerator.last_checkpoint = place
    return os.fspath(place)


def load(accelerator: "ExactAccelerator", input_dir: str | os.PathLike[str] | None) -> None:
    """Read the state of a training from a folder; see `ExactAccelerator.load_state`."""
    project = accelerator.project_configuration
    payload = place = None
    with all_or_none():
        if accelerator.is_main_process:
            place = (
                Path(input_dir).expanduser()
                if input_dir is not None
                else newest_by_number(accelerator)
            )
            payload = files.read_folder(place)
    payload, place = broadcast_object_list([payload, place])
    with all_or_none():
        try:
            restore(accelerator, payload)
        except WRONG_STATE as error:
            raise UserError(
                f"the checkpoint {place} belongs to a different training ({type(error).__name__}): "
                "prepare the same models, optimizers, schedulers and loaders in the same order"
            ) from error
    accelerator.last_checkpoint = place
    if project.automatic_checkpoint_naming and re.fullmatch(r"checkpoint_\d+", place.name):
        project.iteration = number_of(place) + 1


def number_of(place: Path) -> int:
    """The number in the name of an automatically named checkpoint."""
    return int(place.name.removeprefix("checkpoint_"))


def numbered(folder: Path) -> list[Path]:
    """The automatically named checkpoints in a folder, the oldest first."""
    found = [
        place
        for place in folder.glob("checkpoint_*")
        if re.fullmatch(r"checkpoint_\d+", place.name)
    ]
    return sorted(found, key=number_of)


def newest_by_number(accelerator: "ExactAccelerator") -> Path:
    """The newest automatically named checkpoint.

    Raises:
        UserError: there is none, or names are not automatic.
    """
    if (
        not accelerator.project_configuration.automatic_checkpoint_naming
        or not accelerator.project_dir
    ):
        raise UserError(
            "load_state was given no folder: name one, or use automatic_checkpoint_naming"
        )
    folder = Path(accelerator.project_dir) / "checkpoints"
    found = numbered(folder)
    if not found:
        raise UserError(f"there is no checkpoint in {folder}: save_state has written none there")
    return found[-1]
