"""The weights of models: saved, loaded as data, and compared."""

import hashlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import PartialState
from torch import Tensor, nn

from mnist_dist.core.agreement import all_or_none
from mnist_dist.core.errors import UserError
from mnist_dist.run.files import write_file
from mnist_dist.usage import MAX_PARAMETERS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_weights(path: Path, model: nn.Module) -> None:
    """Write an unwrapped model's `state_dict` as `torch.load(path, weights_only=True)` reads it.

    Every process must call this, and the first one writes.

    Args:
        path: the file.
        model: the model, on any device. Its weights are written as tensors on the CPU.

    Raises:
        UserError: on every process, if the file could not be written.
    """
    with all_or_none():
        if PartialState().is_main_process:
            weights = {}
            for name, tensor in model.state_dict().items():
                weights[name] = tensor.detach().cpu().contiguous()
            buffer = io.BytesIO()
            torch.save(weights, buffer)
            write_file(path, buffer.getvalue())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a `state_dict`, as torch.save or safetensors wrote it, as data: nothing in it can run.

    Args:
        path: the file. One whose name ends with .safetensors is read as such.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        UserError: the file cannot be read, or holds something else, more than `MAX_PARAMETERS`
            numbers, or numbers that are not finite.
    """
    weights = read_file(path)
    if not is_state_dict(weights):
        problem = f"the model file {path} does not hold a state_dict"
        raise UserError(f"{problem}: save `model.state_dict()`")
    # The size is judged before any value is looked at: with strides of 0 a small file holds
    # tensors of any size.
    numbers = sum(tensor.numel() for tensor in weights.values())
    if numbers > MAX_PARAMETERS:
        problem = f"the model file {path} holds {numbers:,} numbers"
        raise UserError(f"{problem}, and here a model has at most {MAX_PARAMETERS:,}")
    for name, tensor in weights.items():
        check_tensor(path, name, tensor)
    return dict(weights)


def read_file(path: Path) -> Any:
    """Read whatever a file of weights holds, without running anything in it.

    Args:
        path: as for `load_weights`.

    Returns:
        What the file holds.

    Raises:
        UserError: the file cannot be read, is damaged, or holds Python objects.
    """
    try:
        with warnings.catch_warnings():
            # torch warns of foreign files. The messages below say what matters.
            warnings.simplefilter("ignore")
            refuse_wrong_checksums(path)
            if path.suffix == ".safetensors":
                # Its own reader takes UTF-8 paths only.
                return safetensors.torch.load(path.read_bytes())
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the model file {path} cannot be read: {reason}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the model file {path} is damaged or holds Python objects, which are not loaded "
            "because they can run code: save the model's state_dict instead"
        ) from error
    except Exception as error:  # the file is foreign: whatever the parser trips over, it is bad
        problem = f"the model file {path} is damaged"
        raise UserError(f"{problem}: it is not what torch.save or safetensors write") from error


def refuse_wrong_checksums(path: Path) -> None:
    """Compare the checksums in a file that torch.save wrote, which torch.load does not do.

    Args:
        path: the file. One of another format is not looked into.

    Raises:
        UserError: a checksum is wrong.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged_member = archive.testzip()
    if damaged_member:
        raise UserError(f"the model file {path} is damaged: its checksums are wrong")


def is_state_dict(found: Any) -> bool:
    """Tell whether a value holds tensors by name, at least one."""
    if not isinstance(found, Mapping) or not found:
        return False
    names_are_texts = all(isinstance(name, str) for name in found)
    return names_are_texts and all(isinstance(tensor, Tensor) for tensor in found.values())


def check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor with which no network can compute.

    Args:
        path: the file that holds it.
        name: its name in there.
        tensor: the tensor.

    Raises:
        UserError: it has no values, is sparse or not floating-point, or has non-finite values.
    """
    holds = f"the model file {path} holds {name}"
    if tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(
            f"{holds} as a meta or sparse tensor: save it as a dense tensor with values"
        )
    if tensor.dtype not in DTYPES:
        raise UserError(f"{holds} as {tensor.dtype}: save it as float32")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{holds} with values that are not finite numbers: train it again")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Compute a digest that two `state_dict`s share only if they are equal to the bit.

    Args:
        weights: the tensors by name.

    Returns:
        SHA-256, hexadecimal.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        on_cpu = tensor.detach().cpu().contiguous()
        content = on_cpu.view(torch.uint8).numpy().tobytes()
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()
