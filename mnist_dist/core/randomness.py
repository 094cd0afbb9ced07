"""Random numbers that depend on what they are for, and not on the process that draws them."""

import random
from hashlib import sha256
from typing import Any

import numpy as np
import torch

Word = str | int | None
TORCH_GENERATORS = ("torch", "torch.cuda", "torch.mps")  # whose states are tensors


def seed_of(*words: Word) -> int:
    """A 64-bit seed that depends on these words alone."""
    text = repr(words).encode()
    digest = sha256(text).digest()
    return int.from_bytes(digest[:8], "little")


def seed_of_loader(seed: int, number: int) -> int:
    """The seed of a loader's orders and random numbers: that of the training for the first one.

    A loader that is prepared later, perhaps for new data in the middle of a training, does not
    repeat what the first one has drawn.

    Args:
        seed: seed of the training.
        number: index of the loader among its accelerator's loaders.
    """
    return seed if number == 0 else seed_of("loader", seed, number)


def generator_for(*words: Word, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded from these words; its numbers also depend on the device type and GPU model."""
    return torch.Generator(device).manual_seed(seed_of(*words))


def seed_generators(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed what layers, losses and transforms draw from: Python's, NumPy's and torch's global generators.

    `torch.manual_seed` would do for torch, but it also looks for devices that this process does not
    use.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed(seed)
    elif torch.device(device).type == "mps":
        torch.mps.manual_seed(seed)


class GeneratorStates:
    """A snapshot of the global random generators of this process.

    Args:
        device: this process's device; on a GPU, its generator is included.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.states = self.read()

    def read(self) -> dict[str, Any]:
        """The states of all generators now, by name."""
        states: dict[str, Any] = {
            "Python's random": random.getstate(),
            "NumPy": np.random.get_state(),
            "torch": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            states["torch.cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            states["torch.mps"] = torch.mps.get_rng_state()
        return states

    def restore(self) -> None:
        """Put all generators back to that moment."""
        random.setstate(self.states["Python's random"])
        np.random.set_state(self.states["NumPy"])
        torch.set_rng_state(self.states["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.states["torch.cuda"], self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(self.states["torch.mps"])

    def state_dict(self) -> dict[str, Any]:
        """The snapshot as plain data, for a checkpoint."""
        version, words, next_gauss = self.states["Python's random"]
        kind, key, position, has_gauss, gauss = self.states["NumPy"]
        states: dict[str, Any] = {
            "Python's random": [version, list(words), next_gauss],
            "NumPy": [kind, torch.from_numpy(key.astype(np.int64)), position, has_gauss, gauss],
        }
        for name in TORCH_GENERATORS:
            if name in self.states:
                states[name] = self.states[name]
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Take over the states of another snapshot; generators of another device stay as they are here."""
        version, words, next_gauss = states["Python's random"]
        kind, key, position, has_gauss, gauss = states["NumPy"]
        found = {
            "Python's random": (version, tuple(words), next_gauss),
            "NumPy": (kind, key.numpy().astype(np.uint32), position, has_gauss, gauss),
        }
        for name in TORCH_GENERATORS:
            if name in states and name in self.states:
                found[name] = states[name]
        self.states |= found

    def changed(self) -> list[str]:
        """The names of the generators that have been drawn from since the snapshot."""
        now = self.read()
        drawn_from = []
        for name, before in self.states.items():
            if not same_state(before, now[name]):
                drawn_from.append(name)
        return drawn_from


def same_state(one: Any, other: Any) -> bool:
    """Whether two states of one generator are equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        pairs = zip(one, other, strict=True)
        return len(one) == len(other) and all(same_state(*pair) for pair in pairs)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)
