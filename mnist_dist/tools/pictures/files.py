"""Pictures of any kind in files: opened upright, with values of known shade, or refused by name."""

import errno
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mnist_dist.core import UserError

# Kinds of pictures with more than 8 bits a pixel, and the values that white may have in them.
SURE = {
    "I;16": (2**16 - 1,),
    "I;16L": (2**16 - 1,),
    "I;16B": (2**16 - 1,),
    "I;16N": (2**16 - 1,),
    "I": (),
    "F": (1,),
}
# A file of the last two kinds does not say which value is white. For one picture by itself it may
# be guessed to be the least that no pixel exceeds; but not for many: a dark one would become light.
GUESSED = SURE | {
    "I": (2**8 - 1, 2**16 - 1, 2**31 - 1),
    "F": (1, 2**8 - 1, 2**16 - 1),
}
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)
RGB_ADVICE = "leave it out, or save it with 8 bits a channel or as 16-bit grey"


def read_rgb(path: Path, side: int) -> Image.Image:
    """Read one of many pictures.

    Args:
        path: the file.
        side: pixels per side that are needed, so that a larger JPEG need not be decoded in full.

    Returns:
        The picture in mode RGB, not yet resized.

    Raises:
        UserError: the file is not a picture, damaged or too large, or its values mean no known shade.
    """
    with refusing_unreadable(path, RGB_ADVICE):
        picture = open_picture(path, side)
        if picture.mode in SURE:
            picture = in_eight_bits(scaled(picture, path, SURE, RGB_ADVICE))
        return picture.convert("RGB")


@contextmanager
def refusing_unreadable(path: Path, advice: str) -> Iterator[None]:
    """Refuse a picture by its name if it cannot be read.

    Args:
        path: its file.
        advice: what to do instead.

    Raises:
        UserError: the block has met something that is not a picture.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = why_unreadable(error)
        raise UserError(f"the picture {path} cannot be read ({reason}): {advice}") from error


def why_unreadable(error: Exception) -> str:
    """Return why a picture cannot be read, in words."""
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is not a picture, or a damaged one"


def open_picture(path: Path, side: int) -> Image.Image:
    """Open and decode a picture.

    Args:
        path: the file.
        side: pixels per side that are needed; JPEGs are shrunk to no less while they are decoded.

    Returns:
        The picture, upright if the file says how it was taken.

    Raises:
        one of `UNREADABLE`: the file is not a picture, or damaged, or too large to be decoded.
    """
    refuse_pipes(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            picture.draft(picture.mode, (side, side))
            return ImageOps.exif_transpose(picture)


def refuse_pipes(path: Path) -> None:
    """Refuse what is neither file nor folder: reading it may never end.

    Raises:
        OSError: it is a pipe or a device.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device")


def scaled(
    picture: Image.Image,
    path: Path,
    whites: Mapping[str, tuple[int, ...]],
    advice: str,
) -> Image.Image:
    """Scale a grey picture with more than 8 bits a pixel by the value of white.

    Args:
        picture: of one of the kinds in `whites`.
        path: its file, for messages.
        whites: the values that white may have, by kind of picture: `SURE` or `GUESSED`.
        advice: what to give instead, for messages.

    Returns:
        The picture in mode F, values in [0, 1].

    Raises:
        UserError: it has values that are not finite, or outside of the range from black to white.
    """
    values = np.asarray(picture)
    if not np.isfinite(values).all():
        raise UserError(f"the picture {path} has grey values that are not finite: {advice}")
    least = values.min()
    greatest = values.max()
    white = next((value for value in whites[picture.mode] if greatest <= value), None)
    if white is None or least < 0:
        raise UserError(
            f"the picture {path} has values from {least:g} to {greatest:g} in mode {picture.mode}, "
            f"of which nobody knows the shade: {advice}",
        )
    return Image.fromarray(values.astype(np.float32) / np.float32(white))


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """Turn a picture in mode F, values in [0, 1], into one in mode L."""
    values = np.asarray(picture)
    return Image.fromarray(np.rint(255 * values).astype(np.uint8))
