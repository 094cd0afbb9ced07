"""What is drawn on a picture: told from the paper, counted, and laid out as a data set's pictures are."""

import numpy as np
from numpy import ndarray
from PIL.Image import Image, Resampling, fromarray
from PIL.ImageFilter import BoxBlur, MaxFilter, MedianFilter, MinFilter
from torch import Tensor

from mnist_dist.task.layouts import SIDE, Layout

UNEVEN = 0.05  # difference of light and dark at the edge that is no noise, of the grey range
SMALL = 64  # pixels per side at which the shade of the paper is looked for
DARKEST_PAPER = 0.1  # shade, of the grey range, below which a shadow is not evened out further
PAPER = 0.2  # share of the strongest ink below which there are only paper and compression noise
NEGLIGIBLE = 0.1  # share of the ink, or of the strongest, that is not part of a digit by itself


def difference_from_paper(grey: ndarray) -> ndarray:
    """Return by how much each pixel is lighter or darker than the paper, also in a shadow.

    Args:
        grey: (height, width), grey values in [0, 1].

    Returns:
        (height, width), 0 or more.
    """
    edge = edge_of(grey)
    dark_edge, light_edge = np.quantile(edge, [0.1, 0.9])
    if light_edge - dark_edge < UNEVEN:
        return np.abs(grey - np.median(edge))
    return difference_in_shadow(grey)


def difference_from_edge(grey: ndarray) -> ndarray:
    """Return by how much each pixel differs from the edge of the picture, of what is possible.

    Args:
        grey: (height, width), grey values in [0, 1].

    Returns:
        (height, width), values in [0, 1].
    """
    paper = np.median(edge_of(grey))
    return np.abs(grey - paper) / max(paper, 1 - paper)


def edge_of(pixels: ndarray) -> ndarray:
    """Return the outermost pixels of (height, width), in a row."""
    top, bottom = pixels[[0, -1]]
    left, right = pixels[:, [0, -1]].T
    return np.concatenate([top, bottom, left, right])


def difference_in_shadow(grey: ndarray) -> ndarray:
    """Return what `difference_from_paper` does for paper that is not of one shade."""
    small = fromarray((255 * grey).astype(np.uint8))
    small.thumbnail((SMALL, SMALL), Resampling.BOX)
    # Filters of this size, which must be odd, see the paper beside a stroke.
    seventh = min(small.size) // 7
    window = max(3, seventh | 1)
    ink_is_dark = has_dark_ink(small, window)
    paper = resized(without_ink(small, window, ink_is_dark), grey.shape)
    if not ink_is_dark:
        grey = 1 - grey
        paper = 1 - paper
    # In a shadow ink differs from its paper by less.
    darkening = np.maximum(paper - grey, 0)
    ink = darkening / np.maximum(paper, DARKEST_PAPER)
    return ink * away_from_edge(ink)


def has_dark_ink(picture: Image, window: int) -> bool:
    """Return whether what differs most from its surroundings is darker than they are.

    Args:
        picture: a grey picture.
        window: pixels, wider than a stroke.
    """
    surroundings = picture.filter(MedianFilter(3 * window))
    contrast = np.asarray(picture, float) - np.asarray(surroundings, float)
    skewness = np.mean(contrast**3)
    return bool(skewness < 0)


def without_ink(picture: Image, window: int, ink_is_dark: bool) -> Image:
    """Return a grey picture with the paper's shade in the place of strokes."""
    lightest = MaxFilter(window)
    darkest = MinFilter(window)
    filters = (lightest, darkest) if ink_is_dark else (darkest, lightest)
    for one in filters:
        picture = picture.filter(one)
    return picture.filter(BoxBlur(window // 4))


def resized(picture: Image, shape: tuple[int, ...]) -> ndarray:
    """Return the values of an 8-bit grey picture in [0, 1], resized to (height, width)."""
    height, width = shape
    larger = picture.resize((width, height), Resampling.BILINEAR)
    return np.asarray(larger, float) / 255


def away_from_edge(ink: ndarray) -> ndarray:
    """Find what is drawn without touching the edge of the picture, as shadows do.

    Args:
        ink: (height, width), 0 or more.

    Returns:
        (height, width), 1 for what is drawn so and 0 for the rest.
    """
    picture = fromarray(ink.astype(np.float32))
    small_picture = picture.resize((SMALL, SMALL), Resampling.BOX)
    small = np.asarray(small_picture)
    part = connected_parts(small > NEGLIGIBLE * small.max())
    touches_edge = np.isin(part, edge_of(part))
    kept = (part > 0) & ~touches_edge
    if small[kept].sum() < 0.2 * small.sum():
        return np.ones_like(ink)  # the digit itself is at the edge
    return resized(widened(kept), ink.shape)


def widened(drawn: ndarray) -> Image:
    """Return what is drawn, (height, width) of bool, white on black, and a pixel wider."""
    mask = fromarray(drawn).convert("L")
    return mask.filter(MaxFilter(3))


def connected_parts(drawn: ndarray) -> ndarray:
    """Number the connected parts of what is drawn.

    Args:
        drawn: (height, width) of bool.

    Returns:
        (height, width) of int: the number of each pixel's part, 0 where nothing is drawn.
    """
    numbers = np.arange(1, drawn.size + 1)
    part = np.where(drawn, numbers.reshape(drawn.shape), 0)
    # Every pixel takes the largest number beside it, until each part has one of its own.
    while True:
        wide = np.pad(part, 1)
        windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3))
        largest = windows.max(axis=(2, 3))
        larger = np.where(drawn, largest, 0)
        if (larger == part).all():
            return part
        part = larger


def count_parts(digit: Tensor) -> int:
    """Count the separate parts in which a digit is drawn, with a tenth of its ink or more each.

    Args:
        digit: (28, 28), values in [0, 1].
    """
    ink = digit.numpy()
    # Parts one pixel apart are one: many write the bar of a 5 so.
    near = np.asarray(widened(ink > PAPER)) > 0
    part = connected_parts(near)
    numbers = np.unique(part[near])
    amounts = [ink[part == number].sum() for number in numbers]
    least = NEGLIGIBLE * ink.sum()
    large = [amount for amount in amounts if amount >= least]
    return len(large)


def cut_out(ink: ndarray) -> ndarray:
    """Return the smallest rectangle of a picture with all that is drawn on it.

    Args:
        ink: (height, width), values in [0, 1] with some above 0.
    """
    drawn = ink > PAPER * ink.max()
    rows = extent(np.asarray(drawn.any(axis=1)))
    columns = extent(np.asarray(drawn.any(axis=0)))
    return ink[rows, columns]


def extent(is_drawn: ndarray) -> slice:
    """Return the part of (size,) from the first to the last that is true."""
    numbers = np.flatnonzero(is_drawn)
    return slice(numbers[0], numbers[-1] + 1)


def laid_out(ink: ndarray, layout: Layout) -> ndarray:
    """Scale what is drawn to the size of the layout, and put it into the middle of the field.

    Args:
        ink: (height, width), at least 1x1, cut out, values in [0, 1] with some above 0.
        layout: how the pictures were made that a network was trained on.

    Returns:
        (28, 28) float32 in [0, 1].
    """
    scale = layout.box / max(ink.shape)
    sides = [round(side * scale) for side in ink.shape]
    height, width = np.maximum(sides, 1).tolist()
    method = Resampling.BOX if scale < 1 else Resampling.BICUBIC
    picture = fromarray(ink.astype(np.float32))
    values = np.asarray(picture.resize((width, height), method))
    strongest = 1.0 if layout.keeps_shades else values.max()
    small = np.clip(values / strongest, 0, 1)
    top = first_pixel(small.sum(axis=1), layout)
    left = first_pixel(small.sum(axis=0), layout)
    field = np.zeros((SIDE, SIDE), np.float32)
    field[top : top + height, left : left + width] = small
    return field


def first_pixel(masses: ndarray, layout: Layout) -> int:
    """Return where what is drawn begins in the field, in one direction.

    Args:
        masses: (size,), the ink of its rows, or of its columns.
        layout: whether its mass is to be in the middle, or else its sides.
    """
    size = len(masses)
    if not layout.by_mass:
        return (SIDE - size + 1) // 2  # as the page rounds
    # The centre of mass goes to pixel (14, 14), where MNIST's digits have theirs (mean over its
    # training set 13.99 and 14.00), as far as the digit then stays inside the field.
    centre = (masses @ np.arange(size)) / masses.sum()
    begin = round(SIDE / 2 - centre)
    return min(max(begin, 0), SIDE - size)
