"""Random distortions and dropout, the same however a batch is shared; and shifted images."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# A function like `MicroBatch.rand`: (purpose, *shape, normal=False) -> a tensor with random numbers
# for each sample of a batch.
Rand = Callable[..., Tensor]

SIZE = 28  # pixels per side
# Maxima at strength 1.
ROTATION = 15.0  # degrees
SCALE = 0.15  # of the logarithm of the size
SHEAR = 0.15
SHIFT = 2.0  # pixels
ELASTIC = 1.0  # pixels at strength 1: the standard deviation of the displacement in each direction
KNOTS = 7  # a side, of the elastic field
# Pixels: the standard deviation of the Gaussian that smooths it (Simard et al. 2003).
SMOOTHNESS = 4.0


def distort(images: Tensor, rand: Rand, *, affine: float, elastic: float, copy: int = 0) -> Tensor:
    """Rotate, scale, shear, shift and bend each image at random, all in one interpolation.

    Args:
        images: (n, 1, 28, 28); beyond the border, edge pixels are repeated.
        rand: draws 6 + 98 random numbers for each of them, whatever the strengths.
        affine: strength of rotation, scale, shear and shift; 0 for none.
        elastic: strength of the bending; 0 for none.
        copy: index of the copy; each copy is distorted differently.

    Returns:
        Images of the same shape and dtype.
    """
    uniform = 2 * rand(f"affine {copy}", 6) - 1
    turn = affine_maps(affine * uniform.to(images.dtype))
    displacements = rand(f"elastic {copy}", 2, KNOTS**2, normal=True).to(images.dtype)
    bend = elastic * (2 * ELASTIC / SIZE) * displacements
    # The point that each pixel of the result is taken from is linear in a few fixed fields, so one
    # matrix product gives all points (`F.affine_grid` takes 10 times as long).
    coefficients = torch.cat([turn, bend], dim=2)
    points = coefficients @ fields(images.dtype, images.device)
    grid = points.view(-1, 2, SIZE, SIZE).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def affine_maps(strengths: Tensor) -> Tensor:
    """Rotation x shear x scale, and the shift, of each image.

    Args:
        strengths: (n, 6), in [-1, 1] at strength 1: the angle, the shear, the scale across and down,
            and the shift in x and y.

    Returns:
        (n, 2, 3): the coefficients by x, y and 1, for x and for y.
    """
    angle = math.radians(ROTATION) * strengths[:, 0]
    shear = SHEAR * strengths[:, 1]
    across = (SCALE * strengths[:, 2]).exp()
    down = (SCALE * strengths[:, 3]).exp()
    x, y = (2 * SHIFT / SIZE * strengths[:, 4:]).unbind(1)
    cos = angle.cos()
    sin = angle.sin()
    of_x = [cos * across, (cos * shear - sin) * down, x]
    of_y = [sin * across, (sin * shear + cos) * down, y]
    return torch.stack(of_x + of_y, dim=1).view(-1, 2, 3)


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Shift images (n, 1, 28, 28) by whole pixels (negative: up, left), repeating the edge pixels."""
    pixels = torch.arange(SIZE, device=images.device)
    rows = (pixels - down).clamp(0, SIZE - 1)
    columns = (pixels - right).clamp(0, SIZE - 1)
    return images[:, :, rows[:, None], columns]


def dropout(shapes: Sequence[tuple[int, ...]], rand: Rand, *, share: float) -> list[Tensor]:
    """Draw dropout masks for the outputs of each layer (Srivastava et al. 2014).

    Each process draws a float32 number for every output that the whole global batch has, also if
    gradients are accumulated.

    Args:
        shapes: of the outputs of each layer for a sample.
        rand: draws for n samples.
        share: of the outputs that are dropped, in [0, 1).

    Returns:
        For each layer a mask (n, *shape), float32: 0 for what is dropped, 1 / (1 - share) for the
        rest.
    """
    sizes = [math.prod(shape) for shape in shapes]
    # In place, for fresh memory costs more than the arithmetic.
    masks = rand("dropout", sum(sizes)).ge_(share).div_(1 - share)
    parts = masks.split(sizes, dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


@cache
def fields(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3 + 49, 784): x, y (both from -1 to 1, as `grid_sample` counts), 1, and a bump around each knot.

    The bumps are scaled such that with independent coefficients of deviation 1 their sum has
    deviation 1 at each pixel.
    """
    pixels = torch.arange(SIZE, dtype=torch.float64)
    line = (2 * pixels + 1) / SIZE - 1
    knots = (torch.arange(KNOTS, dtype=torch.float64) + 0.5) * SIZE / KNOTS - 0.5
    distances = pixels - knots[:, None]
    bumps = (-(distances**2) / (2 * SMOOTHNESS**2)).exp()
    bumps /= bumps.norm(dim=0)
    x = line.expand(SIZE, SIZE)
    y = line[:, None].expand(SIZE, SIZE)
    affine = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    return torch.cat([affine, torch.kron(bumps, bumps)]).to(dtype=dtype, device=device)
