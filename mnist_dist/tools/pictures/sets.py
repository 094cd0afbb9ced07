"""Sets of labelled pictures, each read when it is due: a folder for each class, or a .npz file."""

import os
import unicodedata
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from mnist_dist.tools.pictures.files import read_rgb, refuse_pipes
from mnist_dist.usage import UsageError

FEWEST = 6  # pictures of a set
LEFT_BY_A_MAC = "__MACOSX"  # a folder in .zip files
CHANNELS = ((), (1,), (2,), (3,), (4,))  # last sizes of an array of pictures; none for grey
ADVICE = "give a folder with one for each class, or a .npz file of `images` and `labels`"
NPZ_ADVICE = "save them as uint8, uint16, or floating-point numbers from 0 to 1"


class PictureFolder:
    """Pictures in a folder for each class.

    Args:
        root: the folder that holds those of the classes.

    Attributes:
        classes: their names, in order.
        labels: the number of the class of each picture.
        digest: of the pictures' names and sizes: to read them all would take too long.

    Raises:
        UsageError: it holds no such folders, or some that are one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = class_folders(root)
        self.classes = list(folders)
        self.paths: list[Path] = []
        self.labels: list[int] = []
        seen: dict[str, Path] = {}
        for label, folder in enumerate(folders.values()):
            found = list(picture_paths(folder, seen))
            if not found:
                raise UsageError(f"--data: the class folder {folder} holds no picture: {ADVICE}")
            self.paths += found
            self.labels += [label] * len(found)
        refuse_too_few(root, self.labels, self.classes)
        self.digest = self.compute_digest()

    def compute_digest(self) -> str:
        """A hexadecimal digest of the names, sizes and classes of all pictures."""
        digest = sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            name = path.relative_to(self.root).as_posix()
            size = path.stat().st_size
            about = repr((name, size, label))
            digest.update(about.encode())
        return digest.hexdigest()

    def read(self, number: int, side: int) -> Image.Image:
        """Read a picture.

        Args:
            number: its number.
            side: pixels per side that are needed.

        Returns:
            The picture in mode RGB, of any size.

        Raises:
            UserError: it cannot be read, or its values mean no known shade.
        """
        return read_rgb(self.paths[number], side)


class PictureArray:
    """Pictures in an array, as it is in a .npz file.

    Args:
        images: (N, height, width) or (N, height, width, channels) of uint8, uint16 or
            floating-point numbers in [0, 1]; one channel is grey, three are RGB, a further one is
            opacity.
        labels: (N,) numbers or names of classes.
        source: what they are from, for messages.

    Attributes:
        classes: their names, in order.
        labels: the number of the class of each picture.
        digest: of images and labels.

    Raises:
        UsageError: they are not pictures of known shades, or not one label for each.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, source: Path | str) -> None:
        self.white = white_of(images, source)
        self.images = images[..., 0] if images.shape[3:] == (1,) else images
        if labels.shape != (len(images),):
            found = f"labels of shape {labels.shape} for {len(images)} pictures"
            raise UsageError(f"--data {source} has {found}: give one each")
        names, numbers = np.unique(labels, return_inverse=True)
        self.classes = [str(name) for name in names]
        self.labels: list[int] = numbers.tolist()
        refuse_too_few(source, self.labels, self.classes)
        form = images.shape, str(images.dtype), self.labels, self.classes
        digest = sha256(repr(form).encode())
        digest.update(np.ascontiguousarray(images).data)
        self.digest = digest.hexdigest()

    def read(self, number: int, _: int) -> Image.Image:
        """Take out a picture; arguments and result are those of `PictureFolder.read`."""
        pixels = self.images[number]
        if pixels.dtype != np.uint8:
            shades = pixels.astype(np.float64) / self.white
            pixels = np.rint(255 * shades).astype(np.uint8)
        return Image.fromarray(pixels).convert("RGB")


PictureSet = PictureFolder | PictureArray


def open_pictures(path: Path) -> PictureSet:
    """Open what `--data` names.

    Args:
        path: a folder with a folder for each class, or a .npz file.

    Raises:
        UsageError: it is neither, or cannot be read.
    """
    try:
        refuse_pipes(path)
        if path.suffix != ".npz" or path.is_dir():
            return PictureFolder(path)
        with np.load(path) as file:
            images = file["images"]
            labels = file["labels"]
    except UsageError:
        raise
    except Exception as error:  # whatever the parsers trip over, these are not pictures
        raise UsageError(f"--data {path} cannot be read ({why(error)}): {ADVICE}") from error
    return PictureArray(images, labels, path)


def why(error: Exception) -> str:
    """Say in words why something cannot be read, and which file if the system has refused one."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if not error.filename:
        return error.strerror
    return f"{error.strerror}: {error.filename}"


def class_folders(root: Path) -> dict[str, Path]:
    """Find the folders of the classes.

    Args:
        root: the folder that holds them.

    Returns:
        The folders by name, in order.

    Raises:
        UsageError: two of them are one folder, or have one name in two forms of Unicode.
        OSError: `root` is not a folder, or cannot be read.
    """
    folders: dict[str, Path] = {}
    name_of_place: dict[str, str] = {}
    name_of_form: dict[str, str] = {}
    for folder in sorted(root.iterdir()):
        name = folder.name
        if is_left_by_programs(name):
            continue
        if not folder.exists():
            raise UsageError(f"--data {root}: {name} links to what is not there: remove the link")
        if not folder.is_dir():
            continue
        place = os.path.realpath(folder)
        same_place = name_of_place.setdefault(place, name)
        if same_place != name:
            raise UsageError(
                f"--data {root}: the class folders {same_place} and {name} are one folder, to "
                "which one of them links: remove the link"
            )
        form = unicodedata.normalize("NFC", name)
        same_form = name_of_form.setdefault(form, name)
        if same_form != name:
            raise UsageError(
                f"--data {root}: the class {name} has two folders, with two forms of its name in "
                f"Unicode ({same_form!a} and {name!a}): move all its pictures into one"
            )
        folders[name] = folder
    return folders


def picture_paths(folder: Path, seen: dict[str, Path]) -> Iterator[Path]:
    """Find all pictures in a folder and those within it, in order.

    Args:
        folder: where to look.
        seen: folders that have been looked into, by their real path; this adds to them.

    Raises:
        UsageError: a folder is there twice, so its pictures would be counted twice.
    """
    place = os.path.realpath(folder)
    if place in seen:
        both = f"{seen[place]} and {folder} are one folder"
        raise UsageError(f"--data: {both}, to which one of them links: remove the link")
    seen[place] = folder
    for path in sorted(folder.iterdir()):
        if is_left_by_programs(path.name):
            continue
        if path.is_dir():
            yield from picture_paths(path, seen)
        elif path.name.lower().endswith(IMG_EXTENSIONS):
            yield path


def is_left_by_programs(name: str) -> bool:
    """Whether a file or folder is hidden, such as .ipynb_checkpoints and ._x.jpg, or a Mac's."""
    return name.startswith(".") or name == LEFT_BY_A_MAC


def white_of(images: np.ndarray, source: Path | str) -> int:
    """Find the value of white in an array of pictures.

    Args:
        images: the pictures.
        source: what they are from, for messages.

    Raises:
        UsageError: nobody can know it, or these are not pictures.
    """
    problem = f"--data {source} has images of"
    if images.ndim < 3 or images.shape[3:] not in CHANNELS or not images.size:
        raise UsageError(f"{problem} shape {images.shape}: give (N, height, width, 3)")
    kind = images.dtype.kind
    if kind == "u" and images.dtype.itemsize <= 2:
        bits = 8 * images.dtype.itemsize
        return 2**bits - 1
    if kind not in "biuf":
        raise UsageError(f"{problem} {images.dtype}: {NPZ_ADVICE}")
    least = images.min()
    greatest = images.max()
    is_share_of_white = kind in "bf" and least >= 0 and greatest <= 1  # not if any of them is NaN
    if not is_share_of_white:
        values = f"{images.dtype} from {least:g} to {greatest:g}"
        raise UsageError(f"{problem} {values}, of which nobody knows the shade: {NPZ_ADVICE}")
    return 1


def refuse_too_few(source: Path | str, labels: list[int], classes: list[str]) -> None:
    """Refuse a set from which nothing can be learnt.

    Raises:
        UsageError: it has too few pictures or classes.
    """
    if len(labels) < FEWEST or len(classes) < 2:
        found = f"{len(labels)} pictures of {len(classes)} classes"
        expected = f"{FEWEST} pictures of 2 classes or more"
        raise UsageError(f"--data {source} holds {found}: give {expected}")
