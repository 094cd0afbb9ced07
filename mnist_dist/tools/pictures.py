"""People's own pictures of digits, made into what the networks were trained on."""

import errno
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mnist_dist.core.processes import UserError
from mnist_dist.tools.ink import centred, cut_out, difference_from_paper

LARGE = 2000  # pixels a side beyond which a picture is shrunk first
FAINTEST = 0.1  # least difference of ink and paper, of the grey range, that is a drawing
ADVICE = "give a PNG or JPEG file of one digit"
LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey (ITU-R BT.601)
# Kinds of pictures with more than 8 bits a pixel, and the values that white may have in them. A
# file of the last two kinds does not say which: it is the least that no pixel exceeds.
DEEP = {
    "I;16": (2**16 - 1,),
    "I;16L": (2**16 - 1,),
    "I;16B": (2**16 - 1,),
    "I;16N": (2**16 - 1,),
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


def read_digit(path: Path) -> Tensor:
    """Read a picture of one digit.

    It may have any size, be in colour or grey, dark on light or light on dark, transparent or not.

    Args:
        path: the file.

    Returns:
        (28, 28) float32 grey values in [0, 1], ink 1 on background 0, scaled and centred the way
        MNIST was made.

    Raises:
        UserError: the file is no picture, or too large a one, or there is nothing on it.
    """
    grey = read_grey(path)
    ink = difference_from_paper(grey)
    if ink.max() < FAINTEST:
        raise UserError(f"the picture {path} shows no digit: it is all of one shade")
    ink /= ink.max()
    return torch.from_numpy(centred(cut_out(ink)))


def read_grey(path: Path) -> np.ndarray:
    """Read the grey values of a picture of any kind.

    Args:
        path: the file.

    Returns:
        (height, width), at most `LARGE` each, float64 in [0, 1].

    Raises:
        UserError: the file is no picture, or too large a one, or its values mean no shade of grey.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Reading it may never end.
            raise OSError(errno.EINVAL, "it is a pipe or a device")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.draft(picture.mode, (LARGE, LARGE))  # shrinks a JPEG while it is decoded
                upright = ImageOps.exif_transpose(picture)
                shallow = scaled(upright, path) if upright.mode in DEEP else upright
                return grey_values(shrunk(shallow))
    except UNREADABLE as error:
        reason = why_unreadable(error)
        raise UserError(f"the picture {path} cannot be read ({reason}): {ADVICE}") from error


def why_unreadable(error: Exception) -> str:
    """Return why a picture cannot be read, in words."""
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is not a picture, or a damaged one"


def scaled(picture: Image.Image, path: Path) -> Image.Image:
    """Scale a grey picture with more than 8 bits a pixel by the value of white.

    Args:
        picture: of one of the kinds in `DEEP`.
        path: its file, for messages.

    Returns:
        The picture in mode F, values in [0, 1].

    Raises:
        UserError: it has values that are not finite, or outside of the range from black to white.
    """
    values = np.asarray(picture)
    if not np.isfinite(values).all():
        raise UserError(f"the picture {path} has grey values that are not finite: {ADVICE}")
    least = values.min()
    greatest = values.max()
    white = next((value for value in DEEP[picture.mode] if greatest <= value), None)
    if white is None or least < 0:
        raise UserError(
            f"the picture {path} has values from {least:g} to {greatest:g} in mode {picture.mode}, "
            f"of which nobody knows the shade: {ADVICE}",
        )
    return Image.fromarray(values.astype(np.float32) / np.float32(white))


def shrunk(picture: Image.Image) -> Image.Image:
    """Return a picture with at most `LARGE` pixels a side, each the mean of a square of pixels."""
    factor = math.ceil(max(picture.size) / LARGE)
    if factor == 1:
        return picture
    if picture.mode[0] in "1P":  # numbers in a palette have no mean
        picture = picture.convert("RGBA")
    return picture.reduce(factor)


def grey_values(picture: Image.Image) -> np.ndarray:
    """Return a picture's grey values; what is transparent becomes background.

    Args:
        picture: of 8 bits a channel, or of mode F with values in [0, 1].

    Returns:
        (height, width), float64 in [0, 1].
    """
    if picture.mode == "F":
        return np.asarray(picture, dtype=np.float64)
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float64) / 255
    grey = rgba[..., :3] @ LUMA
    alpha = rgba[..., 3]
    opaque = grey[alpha > 0.5]
    ink_is_light = opaque.size > 0 and opaque.mean() > 0.5
    background = 0.0 if ink_is_light else 1.0
    return alpha * grey + (1 - alpha) * background
