"""Checks against anything that would make results silently depend on the number of processes."""

import os
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import nn

from .batch_norm import GlobalBatchNorm
from .errors import UserError
from .output import warn

WARNED_OF: set[str] = set()  # parameters whose gradient hooks the user knows of
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
DIVIDED = {
    "deepspeed": ("deepspeed_plugin", "deepspeed_plugins"),
    "fsdp": ("fsdp_plugin",),
    "megatron_lm": ("megatron_lm_plugin",),
    "tensor or context parallelism": ("torch_tp_plugin", "parallelism_config"),
}
SWITCHES = {
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_FSDP": "fsdp",
    "ACCELERATE_USE_MEGATRON_LM": "megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def refuse_divided_models(options: dict[str, Any]) -> None:
    """Raise for settings that shard the model, or that let the first process dispatch batches.

    Args:
        options: the arguments for Accelerate's `Accelerator`, by name.

    Raises:
        UserError: names what was asked for.
    """
    asked = [
        kind
        for kind, names in DIVIDED.items()
        if any(options.get(name) is not None for name in names)
    ]
    asked += [
        kind for name, kind in SWITCHES.items() if os.environ.get(name, "").lower() in ("1", "true")
    ]
    if asked:
        raise UserError(
            f"{asked[0]} shards the model over processes, but ExactAccelerator needs the whole "
            "model on each: leave it out, or launch with a configuration without it"
        )
    dataloader_config = options.get("dataloader_config")
    if dataloader_config is not None and dataloader_config.dispatch_batches:
        raise UserError(
            "dispatch_batches makes the first process read all data, but with ExactAccelerator "
            "each process reads its own rows: leave it out"
        )
    precision = options.get("mixed_precision") or os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if precision == "fp8":
        raise UserError("mixed_precision='fp8' is not exact yet: use 'no', 'fp16' or 'bf16'")
    plugin = options.get("gradient_accumulation_plugin")
    if plugin is not None and not plugin.sync_with_dataloader:
        raise UserError(
            "sync_with_dataloader=False lets an update span two epochs, which ExactAccelerator "
            "does not support: leave it at True"
        )


def refuse_sparse_optimizers(optimizer: torch.optim.Optimizer) -> None:
    """Raise for an optimizer that takes no dense gradients, because gradients are added up dense.

    Raises:
        UserError: names a replacement.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if isinstance(inner, torch.optim.SparseAdam):
        raise UserError(
            "SparseAdam needs sparse gradients, and ExactAccelerator adds gradients up as dense tensors: use Adam"
        )


def refuse_communication_hooks(handler: DistributedDataParallelKwargs | None) -> None:
    """Raise for a DDP communication hook, even if no model will be wrapped in DDP.

    Raises:
        UserError: names the hook.
    """
    if handler is not None and handler.comm_hook != DDPCommunicationHookType.NO:
        raise UserError(
            f"the DDP communication hook {handler.comm_hook.value} cannot be used, because "
            "ExactAccelerator registers its own: leave comm_hook out of "
            "DistributedDataParallelKwargs"
        )


def refuse_no_sync() -> None:
    """Replaces the method `no_sync` of prepared models, which `LocalSGD` also calls.

    Raises:
        UserError: always.
    """
    raise UserError(
        "model.no_sync (which LocalSGD also uses) would leave gradients unsynchronised: leave it "
        "out, and pass gradient_accumulation_steps=N to ExactAccelerator to accumulate several "
        "batches"
    )


def refuse_layers_that_depend_on_sharing(model: nn.Module) -> None:
    """Refuse layers that compute over, or draw random numbers for, just the samples that a process holds.

    Args:
        model: unwrapped, in training.

    Raises:
        UserError: names the layer and what to do.
    """
    so = "each process's own samples, so the trained model would depend on the number of processes"
    for name, layer in model.named_modules():
        if not layer.training:
            continue
        kind = f"{type(layer).__name__} {name}"
        if isinstance(layer, GlobalBatchNorm):
            continue
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(
            layer, "track_running_stats", False
        ):
            raise UserError(
                f"{kind} computes statistics over {so}: use torch's own BatchNorm, GroupNorm or "
                "LayerNorm, or set virtual_processes"
            )
        if draws(layer):
            raise UserError(
                f"{kind} draws random numbers for {so}: set its probability to 0 and use a mask "
                "from accelerator.micro_batch.rand, or set virtual_processes"
            )
        if (
            getattr(layer, "scale_grad_by_freq", False)
            or getattr(layer, "max_norm", None) is not None
        ):
            raise UserError(
                f"{kind} rescales gradients or weights based on {so}: leave out scale_grad_by_freq "
                "and max_norm"
            )


def draws(layer: nn.Module) -> bool:
    """Whether a layer draws random numbers in training."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
        return layer.dropout > 0
    return False


def refuse_layers_that_reach_beyond_a_share(model: nn.Module) -> None:
    """Raise, even with virtual processes, for layers whose output depends on shares other than their own.

    Raises:
        UserError: names the layer.
    """
    for name, layer in model.named_modules():
        kind = f"{type(layer).__name__} {name}"
        if isinstance(layer, EMBEDDINGS) and layer.max_norm is not None:
            raise UserError(
                f"{kind} rescales its weights in the forward pass based on each process's own "
                "samples, so the trained model would depend on the number of processes: leave out "
                "max_norm"
            )
        if isinstance(layer, nn.SyncBatchNorm):
            raise UserError(
                f"{kind} computes statistics over all processes at once, so the trained model "
                "would depend on their number: use BatchNorm with virtual_processes"
            )


def refuse_options(method: str, options: dict[str, Any]) -> None:
    """Raise for options of Accelerate's checkpoint functions, which are not used here.

    Args:
        method: the name of the method that was given them.
        options: the options by name.

    Raises:
        UserError: there are any; it names the first one.
    """
    for name in options:
        raise UserError(
            f"{method} was given {name}, but ExactAccelerator reads and writes checkpoints in a format of its "
            "own, which has no such option: leave it out"
        )


def refuse_state_hooks(method: str) -> NoReturn:
    """Raise for hooks that would change what Accelerate saves or loads.

    Args:
        method: that was given the hook.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{method} was given a hook, but ExactAccelerator saves models and everything else in a format of its own, "
        "without calling hooks: give what has a state_dict, such as an average of the weights, to "
        "accelerator.register_for_checkpointing, and write other files next to the checkpoint yourself"
    )


def refuse_gradient_hooks(models: list[nn.Module]) -> None:
    """Raise for hooks that are called within a backward pass when a gradient is complete, as for optimizer steps.

    Args:
        models: unwrapped.

    Raises:
        UserError: names the parameter.
    """
    for name, parameter in named_parameters(models):
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UserError(
                f"the parameter {name} has a hook (register_post_accumulate_grad_hook), which is called before the "
                "gradient is summed over the processes: do its work after accelerator.backward, under "
                "`if accelerator.sync_gradients:`"
            )


def warn_of_gradient_hooks(models: list[nn.Module]) -> None:
    """Warn once of hooks that are called with the gradient of a part of the batch.

    Hooks that only read gradients, such as those of `wandb.watch`, do no harm.

    Args:
        models: unwrapped.
    """
    names = [name for name, parameter in named_parameters(models) if parameter._backward_hooks]
    if names and names[0] not in WARNED_OF and PartialState().is_main_process:
        WARNED_OF.add(names[0])
        warn(
            f"the parameter {names[0]} has a gradient hook, which is called with the gradient of a part of the batch: "
            "if it clips or adds noise, do that after accelerator.backward, under `if accelerator.sync_gradients:`, "
            "because the trained model would depend on the number of processes"
        )


def named_parameters(models: list[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of all models with their names."""
    for model in models:
        yield from model.named_parameters()


def parameter_indices(
    models: list[nn.Module], optimizers: list[torch.optim.Optimizer]
) -> list[list[int]]:
    """Raise if an optimizer holds parameters outside the prepared models, as they would not be saved.

    Returns:
        For each optimizer, the indices of its parameters among all parameters of the models.

    Raises:
        UserError: there is such a parameter.
    """
    parameters = [parameter for model in models for parameter in model.parameters()]
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    orders = []
    for optimizer in optimizers:
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        orders.append([numbers.get(id(parameter), -1) for parameter in own])
    if any(-1 in order for order in orders):
        raise UserError(
            "the optimizer has parameters that are not the model's, so they would not be saved: "
            "make them part of the model, and pass both to prepare"
        )
    return orders
