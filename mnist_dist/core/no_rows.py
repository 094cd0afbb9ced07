"""Models that fail on a batch without rows, as those of transformers do, compute a stand-in of zeros for it.

A process has no rows where a global batch is smaller than the number of shares. Most layers of torch
compute nothing from nothing. A model whose `forward` does not is given two rows of zeros, and what
it makes of them is cut to no rows again. Its gradient is not looked at, as that of any micro-batch
without rows.
"""

from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batch_norm import GlobalBatchNorm
from .buffers import put
from .errors import SingleProcessError
from .randomness import GeneratorStates

ROWS = 2  # batch normalisation needs more than one


class StandIns:
    """Watches models during micro-batches without rows, and only then."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def begin_micro_batch(self, models: list[nn.Module], *, empty: bool) -> None:
        """Watch models if the micro-batch that begins has no rows; otherwise leave them alone."""
        self.end()
        if not empty:
            return
        for model in models:
            stand_in = StandIn()
            before = model.register_forward_pre_hook(stand_in.before_forward, with_kwargs=True)
            after = model.register_forward_hook(stand_in.after_forward)
            self.handles += [before, after]

    def end(self) -> None:
        """Leave the models alone."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


class StandIn:
    """The hooks of one model during one micro-batch without rows."""

    def __init__(self) -> None:
        self.in_place = False

    def before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give the model rows of zeros if it fails without rows; None leaves its arguments as they are.

        Raises:
            SingleProcessError: it fails with these, too.
        """
        self.in_place = False
        if torch.compiler.is_compiling() or waits_for_other_processes(model):
            return None
        if not has_no_rows(args, kwargs) or computes(model, args, kwargs):
            return None
        self.in_place = True
        args = recursively_apply(rows_of_zeros, args)
        kwargs = recursively_apply(rows_of_zeros, kwargs)
        if not computes(model, args, kwargs):
            raise SingleProcessError(
                f"{type(model).__name__} fails on a batch without rows, which a process has where a batch has fewer "
                "rows than there are processes or virtual processes: set drop_last=True, or choose a batch size whose "
                "last batch in an epoch is larger"
            )
        return args, kwargs

    def after_forward(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """Cut what the model makes of rows of zeros to no rows."""
        return recursively_apply(cut_to_no_rows, output) if self.in_place else output


def waits_for_other_processes(model: nn.Module) -> bool:
    """Whether a second forward pass would exchange statistics with processes that make only one."""
    return any(isinstance(layer, GlobalBatchNorm) and layer.training for layer in model.modules())


def has_no_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether some of a model's arguments are tensors without rows."""
    tensors: list[Tensor] = []
    recursively_apply(tensors.append, (args, kwargs))
    return any(is_without_rows(tensor) for tensor in tensors)


def is_without_rows(tensor: Tensor) -> bool:
    """Whether a tensor has a first dimension, of size 0."""
    return tensor.ndim > 0 and len(tensor) == 0


@torch.no_grad()
def computes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a model's forward pass works as it is; it is tried, and leaves buffers and generators as they were."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    generators = GeneratorStates()
    try:
        model.forward(*args, **kwargs)
    except Exception:
        return False
    finally:
        put(buffers, before)
        generators.restore()
    return True


def rows_of_zeros(tensor: Tensor) -> Tensor:
    """(ROWS, ...) zeros for a tensor without rows, but ones for whole numbers, one a row; another tensor as it is.

    Whole numbers may be lengths of sequences, which torch does not let be 0.
    """
    if not is_without_rows(tensor):
        return tensor
    is_a_number_a_row = tensor.ndim == 1 and not tensor.is_floating_point()
    fill = tensor.new_ones if is_a_number_a_row else tensor.new_zeros
    return fill((ROWS, *tensor.shape[1:]))


def cut_to_no_rows(tensor: Tensor) -> Tensor:
    """No rows of a tensor with one for every row of zeros; another tensor as it is."""
    return tensor[:0] if tensor.ndim and len(tensor) == ROWS else tensor
