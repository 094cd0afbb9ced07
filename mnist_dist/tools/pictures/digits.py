"""People's own pictures, made into what the networks were trained on."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnist_dist.core import UserError
from mnist_dist.task.layouts import DIGITS, Layout
from mnist_dist.tools.pictures.files import GUESSED, open_picture, refusing_unreadable, scaled
from mnist_dist.tools.pictures.ink import (
    cut_out,
    difference_from_edge,
    difference_from_paper,
    laid_out,
)

LARGE = 2000  # pixels per side beyond which a picture is shrunk first
FAINTEST = 0.1  # least difference of ink and paper, of the grey range, that is a drawing
ADVICE = "give a PNG or JPEG file of one {noun}"
LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey (ITU-R BT.601)


def read_picture(path: Path, layout: Layout = DIGITS, noun: str = "digit") -> Tensor:
    """Read a picture of one digit, garment or character.

    It may have any size, be in colour or grey, dark on light or light on dark, transparent or not.
    `pictureOfImage` in the page of a run does the same in a browser.

    Args:
        path: the file.
        layout: how the pictures were made that a network was trained on.
        noun: what they show.

    Returns:
        (28, 28) float32 grey values in [0, 1] on background 0, scaled and centred in that way.

    Raises:
        UserError: the file is not a picture, or too large a one, or there is nothing on it.
    """
    grey = read_grey(path, ADVICE.format(noun=noun))
    ink = difference_from_edge(grey) if layout.keeps_shades else difference_from_paper(grey)
    if ink.max() < FAINTEST:
        raise UserError(f"the picture {path} shows no {noun}: it is all of one shade")
    if not layout.keeps_shades:
        ink /= ink.max()
    return torch.from_numpy(laid_out(cut_out(ink), layout))


def read_grey(path: Path, advice: str) -> np.ndarray:
    """Read the grey values of a picture of any kind.

    Args:
        path: the file.
        advice: what to do if it is none.

    Returns:
        (height, width), at most `LARGE` each, float64 in [0, 1].

    Raises:
        UserError: the file is not a picture, or too large a one, or its values mean no shade of grey.
    """
    with refusing_unreadable(path, advice):
        picture = open_picture(path, LARGE)
        if picture.mode in GUESSED:
            picture = scaled(picture, path, GUESSED, advice)
        return grey_values(shrunk(picture))


def shrunk(picture: Image.Image) -> Image.Image:
    """Return a picture with at most `LARGE` pixels per side, each the mean of a square of pixels."""
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
