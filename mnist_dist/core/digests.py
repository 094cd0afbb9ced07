"""Digests of tensors, to compare them between processes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN."""
    return bool(torch.equal(one, other)) or digest([one]) == digest([other])


def digest(tensors: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of the bytes of some tensors, one after the other."""
    found = hashlib.sha256()
    for tensor in tensors:
        on_the_cpu = tensor.detach().cpu().contiguous()
        found.update(on_the_cpu.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
