"""A fingerprint of this machine's kernels for a model, used with virtual processes.

The exact result of a matrix product depends on the kernels that MKL, oneDNN or cuDNN choose for a
processor, and on settings such as MKL_CBWR. No list of these is complete, so fixed inputs are run
through the operations of the model's layers, and the results are compared.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor, nn

from .digests import digest
from .errors import UserError
from .randomness import generator_for

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator

Convolution = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._BatchNorm

# Side lengths of test images by number of spatial dimensions; small, to save time.
SIDES = {1: 64, 2: 8, 3: 4}
SMALL_SIDES = {1: 16, 2: 4, 3: 4}
LARGE = 1 << 20  # weights with more elements than this get the small side lengths
LARGEST = 1 << 22  # of weights with more elements than this, only the first rows are used
WORK = 1 << 29  # multiplications in all forward passes; above this, fewer rows are used
IMAGES = 1 << 18  # elements in a layer's input; above this, fewer rows are used
DIFFERENT = 64  # at most this many distinct layers are run
# Random numbers that are drawn and repeated; a prime, so that no two rows are alike.
PERIOD = 65_521
WIDTH = 64  # numbers in a row that functions are computed of

FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.exp,
    torch.tanh,
    torch.sigmoid,
    F.gelu,
    lambda rows: F.log_softmax(rows, 1),
    lambda rows: F.layer_norm(rows, (WIDTH,)),
    lambda rows: rows.sum(1),
    lambda rows: F.scaled_dot_product_attention(rows[None], rows[None], rows[None]),
)
# Prefixes of environment variables that affect the choice of kernels.
SETTINGS = (
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "ATEN_",
    "CUBLAS",
    "CUDNN",
    "NVIDIA_TF32",
    "TORCH_ALLOW_TF32",
)
COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by the name of a mixed precision

Layer = tuple  # its kind, and what decides which kernels it takes


class Kernels:
    """The kernels of this process for the models of an accelerator, under virtual processes.

    Args:
        accelerator: with what was prepared so far.
    """

    def __init__(self, accelerator: "ExactAccelerator") -> None:
        self.accelerator = accelerator
        self.looked_at: tuple[int, int] | None = None  # models, and samples in a share
        self.found = ""

    def digest(self) -> str:
        """Return the digest for the models prepared so far; empty without virtual processes."""
        accelerator = self.accelerator
        if not accelerator.sharing.virtual:
            return ""
        models = accelerator.unwrapped_models
        looked_at = len(models), self.samples_of_a_share()
        if looked_at != self.looked_at:
            self.looked_at = looked_at
            self.found = kernel_digest(
                models, looked_at[1], accelerator.device, accelerator.mixed_precision
            )
        return self.found

    def samples_of_a_share(self) -> int:
        """Give the samples in a micro-batch of the first loader with a batch size; 1 if there is none."""
        accelerator = self.accelerator
        parts = accelerator.sharing.shares * accelerator.micro_batches
        for loader in accelerator._dataloaders:
            if loader.batch_size:
                return max(1, loader.batch_size // parts)
        return 1

    def compare(self) -> None:
        """Check that all processes have the same kernels; call it on every process after each `prepare`.

        Raises:
            UserError: on every process, if the kernels of any process differ.
        """
        before = self.looked_at
        own = self.digest()
        if self.looked_at == before:
            return
        first, *others = gather_object([own])
        for rank, other in enumerate(others, 1):
            if other != first:
                refuse_other_kernels(f"the kernels of process {rank}", "those of process 0")


def refuse_other_kernels(whose: str, others: str) -> NoReturn:
    """Raise because two sets of kernels do not give bit-identical results.

    Args:
        whose: the kernels that were checked, such as "the kernels of this machine".
        others: the kernels they were compared with.

    Raises:
        UserError: names the settings that are commonly responsible.
    """
    names = sorted(name for name in os.environ if name.startswith(SETTINGS))
    here = ", ".join(f"{name}={os.environ[name]}" for name in names)
    raise UserError(
        f"{whose} are not bit-identical to {others} for this model's layers, as virtual processes "
        "require: use the same kind of processor and the same environment variables, such as "
        "MKL_CBWR, MKL_ENABLE_INSTRUCTIONS and ONEDNN_MAX_CPU_ISA (set here: "
        f"{here or 'none'}), or start a new training without virtual processes"
    )


def kernel_digest(
    models: list[nn.Module], rows: int, device: torch.device, mixed_precision: str
) -> str:
    """Compute a digest of what this machine's kernels give for the layers of models.

    Neither the models nor the random generators are touched.

    Args:
        models: unwrapped. Only the shapes and the dtype of their parameters matter.
        rows: samples in a share.
        device: of this process.
        mixed_precision: "no", "bf16" or "fp16", in which layers with weights are computed.

    Returns:
        A hexadecimal digest of outputs and gradients.
    """
    kept_in = dtype_of(models)
    computed_in = COMPUTED_IN.get(mixed_precision, kept_in)
    different = list(dict.fromkeys(layer for model in models for layer in layers_of(model)))
    different = different[:DIFFERENT]
    numbers = FixedNumbers(device, work=WORK // max(len(different), 1))
    found = []
    with undisturbed(device):
        for layer in different:
            found.append(digest(LAYERS[layer[0]](numbers, computed_in, rows, *layer[1:])))
        for function in FUNCTIONS:
            found.append(digest(results(function, [numbers.leaf(kept_in, rows, WIDTH)], numbers)))
    return hashlib.sha256("".join(found).encode()).hexdigest()


def dtype_of(models: list[nn.Module]) -> torch.dtype:
    """Give the dtype of the first parameter of floating-point numbers; float32 without one."""
    for model in models:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.float32


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Compute with gradients, and without the autocast that may surround the caller."""
    with ExitStack() as around:
        around.enter_context(torch.inference_mode(False))
        around.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled(device.type):
            around.enter_context(torch.autocast(device.type, enabled=False))
        yield


class FixedNumbers:
    """Makes tensors filled with the same pseudo-random numbers on every machine.

    Args:
        device: the device of the tensors.
        work: multiplications per forward pass above which `fewer` reduces the number of rows.
    """

    def __init__(self, device: torch.device, work: int) -> None:
        self.work = work
        drawn = torch.randn(
            PERIOD, generator=generator_for("kernels"), dtype=torch.float32, device="cpu"
        )
        self.numbers = drawn.to(device)

    def leaf(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Make a tensor whose gradient will be computed, in memory of its own."""
        return self.tensor(dtype, *shape).requires_grad_()

    def tensor(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Make a tensor in memory of its own."""
        count = math.prod(shape)
        repeated = self.numbers.repeat(-(-count // len(self.numbers)))
        return repeated[:count].reshape(shape).to(dtype, copy=True)

    def fewer(self, rows: int, work: int, size: int) -> int:
        """Return a number of rows that keeps the running time bounded.

        Args:
            rows: the number wanted.
            work: multiplications that a row takes.
            size: numbers in a row.
        """
        return max(1, min(rows, self.work // max(work, 1), IMAGES // max(size, 1)))


def results(
    function: Callable[..., Tensor], inputs: list[Tensor], numbers: FixedNumbers
) -> list[Tensor]:
    """Run a function forward and backward.

    Args:
        function: a function of the inputs.
        inputs: the tensors whose gradients are computed.
        numbers: supplies the gradient of the output.

    Returns:
        The output, and the gradients.
    """
    output = function(*inputs)
    gradients = torch.autograd.grad(
        output, inputs, numbers.tensor(output.dtype, *output.shape), allow_unused=True
    )
    return [output, *(gradient for gradient in gradients if gradient is not None)]


# ------------------------------------------------------------------------------------------- layers


def layers_of(model: nn.Module) -> Iterator[Layer]:
    """Yield, for each layer with parameters, everything that determines its kernels."""
    for layer in model.modules():
        shapes = [tuple(each.shape) for each in layer.parameters(recurse=False)]
        if isinstance(layer, Convolution):
            yield (
                "convolution",
                tuple(layer.weight.shape),
                layer.stride,
                padding_of(layer),
                layer.dilation,
                layer.transposed,
                layer.output_padding,
                layer.groups,
            )
        elif isinstance(layer, BatchNorm):
            yield "batch_norm", layer.num_features
        elif isinstance(layer, nn.GroupNorm):
            yield "group_norm", layer.num_groups, layer.num_channels
        else:
            # Any other layer multiplies by its weight matrices; this covers attention and recurrent
            # layers.
            for shape in shapes:
                if len(shape) == 2:
                    yield "linear", *shape


def padding_of(layer: Convolution) -> tuple[int, ...]:
    """Give the padding of each side in numbers."""
    if layer.padding == "valid":
        return tuple(0 for _ in layer.kernel_size)
    if layer.padding == "same":
        sides = zip(layer.dilation, layer.kernel_size, strict=True)
        return tuple(dilation * (size - 1) // 2 for dilation, size in sides)
    return tuple(layer.padding)  # type: ignore[arg-type]  # numbers, if it is not text


def linear(
    numbers: FixedNumbers, dtype: torch.dtype, rows: int, outputs: int, inputs: int
) -> list[Tensor]:
    """Run fixed inputs through a linear layer, with its number of outputs capped."""
    outputs = max(1, min(outputs, LARGEST // max(inputs, 1)))
    rows = numbers.fewer(rows, outputs * inputs, inputs)
    leaves = [
        numbers.leaf(dtype, rows, inputs),
        numbers.leaf(dtype, outputs, inputs),
        numbers.leaf(dtype, outputs),
    ]
    return results(F.linear, leaves, numbers)


def convolution(
    numbers: FixedNumbers,
    dtype: torch.dtype,
    rows: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
) -> list[Tensor]:
    """Run fixed numbers through a convolution, over small images."""
    weights = math.prod(shape)
    kernel = shape[2:]
    side = (SMALL_SIDES if weights > LARGE else SIDES)[len(kernel)]
    reach = [by * (size - 1) + 1 for by, size in zip(dilation, kernel, strict=True)]
    sides = [max(side, least) for least in reach]
    channels = shape[0] if transposed else shape[1] * groups
    outputs = shape[1] * groups if transposed else shape[0]
    rows = numbers.fewer(rows, weights * math.prod(sides), channels * math.prod(sides))

    def convolve(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.convolution(
            images, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        )

    leaves = [
        numbers.leaf(dtype, rows, channels, *sides),
        numbers.leaf(dtype, *shape),
        numbers.leaf(dtype, outputs),
    ]
    return results(convolve, leaves, numbers)


def batch_norm(numbers: FixedNumbers, dtype: torch.dtype, rows: int, channels: int) -> list[Tensor]:
    """Run fixed numbers through batch normalisation in training."""

    def normalize(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(images, None, None, weight, bias, training=True)

    return results(normalize, norm_leaves(numbers, dtype, rows, channels), numbers)


def group_norm(
    numbers: FixedNumbers, dtype: torch.dtype, rows: int, groups: int, channels: int
) -> list[Tensor]:
    """Run fixed numbers through group normalisation."""

    def normalize(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(images, groups, weight, bias)

    return results(normalize, norm_leaves(numbers, dtype, rows, channels), numbers)


def norm_leaves(
    numbers: FixedNumbers, dtype: torch.dtype, rows: int, channels: int
) -> list[Tensor]:
    """Make small images, and the weights and biases of a normalisation."""
    side = SMALL_SIDES[2]
    size = channels * side * side
    return [
        numbers.leaf(dtype, numbers.fewer(rows, size, size), channels, side, side),
        numbers.leaf(dtype, channels),
        numbers.leaf(dtype, channels),
    ]


LAYERS: dict[str, Callable[..., list[Tensor]]] = {
    "linear": linear,
    "convolution": convolution,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
}
