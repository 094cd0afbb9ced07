"""People's own pictures of digits, made into what the networks were trained on."""

import errno
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from mnist_dist.core.processes import UserError

BOX, SIDE = 20, 28  # MNIST's digits are scaled to fit 20x20 and centred by mass in 28x28 (LeCun et al. 1998)
LARGE = 2000  # pixels a side beyond which a picture is shrunk before it is looked at
UNEVEN = 0.05  # difference of light and dark at the edge of a picture, of the full grey range, that is no noise
SMALL = 64  # pixels a side at which the shade of the paper is looked for
FAINTEST = 0.1  # least difference of ink and background, of the full grey range, that counts as a drawing


def read_digit(path: Path) -> Tensor:
    """Read a picture of one digit: any size, colour or grey, dark on light or light on dark, transparent or not.

    Returns:
        (28, 28) float32 grey values in [0, 1], ink 1 on background 0, scaled and centred the way MNIST was made.

    Raises:
        UserError: the file is no picture, or too large a one, or there is nothing on it.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is a pipe or a device")  # which may never say anything
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.draft(picture.mode, (LARGE, LARGE))  # shrinks a JPEG while it is decoded
                grey = grey_values(shrunk(ImageOps.exif_transpose(picture)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = "it is not a picture, or a damaged one"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
            reason = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise UserError(
            f"the picture {path} cannot be read ({reason}): give a PNG or JPEG file of one digit"
        ) from error
    if not np.isfinite(grey).all():
        raise UserError(f"the picture {path} has grey values that are not finite: give a PNG or JPEG file of one digit")
    ink = difference_from_paper(grey)
    if ink.max() < FAINTEST:
        raise UserError(f"the picture {path} shows no digit: it is all of one shade")
    ink /= ink.max()
    drawn = ink > 0.2  # paper and compression noise stay below a fifth of the ink
    rows, columns = np.nonzero(drawn.any(axis=1))[0], np.nonzero(drawn.any(axis=0))[0]
    return torch.from_numpy(centred(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))


def difference_from_paper(grey: np.ndarray) -> np.ndarray:
    """How much each pixel is lighter or darker than the paper, also in a shadow: (height, width), 0 or more."""
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if np.ptp(np.quantile(edge, [0.1, 0.9])) < UNEVEN:
        return np.abs(grey - np.median(edge))
    small = Image.fromarray((255 * grey).astype(np.uint8))
    small.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
    window = max(3, min(small.size) // 7 | 1)  # wider than a stroke: filters of this size see the paper beside it
    contrast = np.asarray(small, float) - np.asarray(small.filter(ImageFilter.MedianFilter(3 * window)), float)
    dark = (contrast**3).mean() < 0  # the ink, for it is what differs most
    first, second = (ImageFilter.MaxFilter, ImageFilter.MinFilter)[:: 1 if dark else -1]
    paper = small.filter(first(window)).filter(second(window)).filter(ImageFilter.BoxBlur(window // 4))
    light = np.asarray(paper.resize(grey.shape[::-1], Image.Resampling.BILINEAR), float) / 255
    if not dark:
        grey, light = 1 - grey, 1 - light
    ink = np.maximum(light - grey, 0) / np.maximum(light, 0.1)  # in a shadow ink differs by less
    return ink * away_from_edge(ink)


def away_from_edge(ink: np.ndarray) -> np.ndarray:
    """(height, width): 1 for what is drawn without touching the edge of the picture, as shadows do, 0 for the rest."""
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((SMALL, SMALL), Image.Resampling.BOX))
    part = numbered(small > 0.1 * small.max())
    kept = (part > 0) & ~np.isin(part, [part[0], part[-1], part[:, 0], part[:, -1]])
    if small[kept].sum() < 0.2 * small.sum():
        return np.ones_like(ink)  # the digit itself is at the edge
    mask = Image.fromarray(kept).convert("L").filter(ImageFilter.MaxFilter(3))
    return np.asarray(mask.resize(ink.shape[::-1], Image.Resampling.BILINEAR), float) / 255


def numbered(drawn: np.ndarray) -> np.ndarray:
    """A number for each connected part of what is drawn, (height, width) of bool, and 0 elsewhere."""
    height, width = drawn.shape
    part = np.where(drawn, np.arange(1, drawn.size + 1).reshape(drawn.shape), 0)
    while True:  # every pixel takes the largest number beside it, until each part has one of its own
        wide = np.pad(part, 1)
        around = [wide[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        larger = np.where(drawn, np.maximum.reduce(around), 0)
        if (larger == part).all():
            return part
        part = larger


def parts(digit: Tensor) -> int:
    """In how many separate parts a digit (28, 28) is drawn, of a tenth of its ink or more each."""
    ink = digit.numpy()
    # Parts one pixel apart are one: many write the bar of a 5 so.
    near = np.asarray(Image.fromarray(ink > 0.2).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    part = numbered(near)
    return sum(ink[part == number].sum() >= 0.1 * ink.sum() for number in np.unique(part[near]))


def as_text(digit: Tensor) -> str:
    """A picture (28, 28) with values in [0, 1] for a terminal: 28 lines of 56 letters."""
    shades = " .:-=+*#%@"
    return "\n".join("".join(2 * shades[min(int(10 * value), 9)] for value in row) for row in digit.tolist())


def shrunk(picture: Image.Image) -> Image.Image:
    """A picture with at most `LARGE` pixels a side, each the mean of a square of the original's."""
    factor = math.ceil(max(picture.size) / LARGE)
    if factor == 1:
        return picture
    if picture.mode[0] in "1P":  # numbers in a palette have no mean
        picture = picture.convert("RGBA")
    elif picture.mode.startswith("I;16"):
        picture = picture.convert("I")
    return picture.reduce(factor)


def grey_values(picture: Image.Image) -> np.ndarray:
    """A picture's grey values, (height, width), float64 in [0, 1]; what is transparent becomes background."""
    if picture.mode in ("I", "F", "I;16", "I;16B", "I;16L"):  # more than 8 bits a pixel: scaled by what is there
        values = np.asarray(picture, dtype=np.float64)
        return (values - values.min()) / max(np.ptp(values), 1e-9)
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float64) / 255
    grey, alpha = rgba[..., :3] @ (0.299, 0.587, 0.114), rgba[..., 3]  # ITU-R BT.601 luma
    opaque = grey[alpha > 0.5]
    background = 0.0 if opaque.size and opaque.mean() > 0.5 else 1.0
    return alpha * grey + (1 - alpha) * background


def centred(ink: np.ndarray) -> np.ndarray:
    """Ink cut to its edges, scaled so that its longer side is 20 and moved so that its centre of mass is the middle.

    Args:
        ink: (height, width), at least 1x1, values in [0, 1] with some above 0.

    Returns:
        (28, 28) float32 in [0, 1].
    """
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = np.asarray(
        Image.fromarray(ink.astype(np.float32)).resize(
            (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
        )
    )
    small = np.clip(small / small.max(), 0, 1)
    mass = small.sum()
    row = (small.sum(axis=1) @ np.arange(height)) / mass
    column = (small.sum(axis=0) @ np.arange(width)) / mass
    # The centre of mass goes to pixel (14, 14), where MNIST's digits have theirs (mean over its training set 13.99 and
    # 14.00), as far as the digit then stays inside the field.
    top = min(max(round(SIDE / 2 - row), 0), SIDE - height)
    left = min(max(round(SIDE / 2 - column), 0), SIDE - width)
    field = np.zeros((SIDE, SIDE), np.float32)
    field[top : top + height, left : left + width] = small
    return field
