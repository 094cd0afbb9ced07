"""What a training is, written a second time: one process, whole batches, plain PyTorch, and nothing of the first.

It takes from the project the settings alone. `verify` holds every update of the real training
against it.
"""

import copy
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.task.settings import Settings

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


def generator(*words: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """The source of the random numbers that belong to these words."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


def order(samples: int, seed: int, epoch: int) -> Tensor:
    """(samples,) int64, the numbers of the samples in the order of an epoch."""
    return torch.randperm(samples, generator=generator("order", seed, epoch))


def rate(settings: Settings, update: int, updates: int) -> float:
    """The learning rate of an update, by its number from 0, in a run of so many."""
    warmup = settings.warmup
    if settings.schedule == "one-cycle":
        peak = (0.3 if warmup is None else warmup) * updates - 1
        low, end = settings.lr / 25, settings.lr / 250_000
        if update <= peak:
            return low + (settings.lr - low) * half_cosine(update / peak if peak > 0 else 1)
        peak = max(peak, 0)
        return settings.lr + (end - settings.lr) * half_cosine(
            (update - peak) / max(updates - 1 - peak, 1)
        )
    rising = round((warmup or 0) * updates)
    if update < rising:
        return settings.lr * (update + 1) / rising
    falling = (
        half_cosine((update - rising) / (updates - rising)) if settings.schedule == "cosine" else 0
    )
    return settings.lr * (1 - falling)


def half_cosine(share: float) -> float:
    """Half a cosine wave from 0 to 1."""
    return (1 - math.cos(math.pi * share)) / 2


def initial(settings: Settings) -> dict[str, Tensor]:
    """The first weights, float64 on the CPU, as PyTorch's layers draw them one after the other in float32."""
    torch.manual_seed(settings.seed)
    channels = settings.channels if settings.model == "cnn" else ()
    side = (0, 13, 5, *[3] * 6)[len(channels)]
    sizes = [side * side * channels[-1] if channels else 784, *settings.hidden, 10]
    layers: dict[str, nn.Module] = {
        f"fc{n}": nn.Linear(*pair) for n, pair in enumerate(itertools.pairwise(sizes), 1)
    }
    for n, (before, after) in enumerate(itertools.pairwise([1, *channels]), 1):
        layers |= {f"conv{n}": nn.Conv2d(before, after, 3), f"norm{n}": nn.LayerNorm(after)}
    return {
        f"{name}.{part}": tensor.detach().double()
        for name, layer in layers.items()
        for part, tensor in layer.named_parameters()
    }


def logits(weights: dict[str, Tensor], images: Tensor, dropped: Sequence[Tensor] = ()) -> Tensor:
    """(n, 10) of images (n, 1, 28, 28); `dropped` has a factor for each output of every layer but the last."""
    x, factors = images, iter(dropped)
    for n in itertools.takewhile(lambda n: f"conv{n}.weight" in weights, itertools.count(1)):
        kernel = weights[f"conv{n}.weight"]
        x = F.conv2d(x, kernel, weights[f"conv{n}.bias"], padding=0 if n <= 3 else 1)
        x = (F.max_pool2d(x, 2) if n <= 2 else x).permute(0, 2, 3, 1)
        x = F.layer_norm(
            x, kernel.shape[:1], weights[f"norm{n}.weight"], weights[f"norm{n}.bias"]
        ).relu()
        x = (x * next(factors, 1)).permute(0, 3, 1, 2)
    x, last = x.flatten(1), sum(name.startswith("fc") for name in weights) // 2
    for n in range(1, last):
        x = F.linear(x, weights[f"fc{n}.weight"], weights[f"fc{n}.bias"]).relu() * next(factors, 1)
    return F.linear(x, weights[f"fc{last}.weight"], weights[f"fc{last}.bias"])


def distorted(
    images: Tensor, affine: float, elastic: float, uniform: Tensor, normal: Tensor
) -> Tensor:
    """Images (n, 1, 28, 28), each rotated, sheared, scaled, shifted and bent by its random numbers.

    Args:
        uniform: (n, 6) float32 in [0, 1).
        normal: (n, 2, 49) float32.
    """
    amount = affine * (2 * uniform - 1).to(images.dtype)
    angle, shear = amount[:, 0] * 15 * math.pi / 180, amount[:, 1] * 0.15
    ones, none = torch.ones_like(angle), torch.zeros_like(angle)

    def matrices(*rows: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)

    turn = matrices((angle.cos(), -angle.sin()), (angle.sin(), angle.cos()))
    turn = turn @ matrices((ones, shear), (none, ones))
    turn = turn @ matrices(((0.15 * amount[:, 2]).exp(), none), (none, (0.15 * amount[:, 3]).exp()))
    theta = torch.cat([turn, amount[:, 4:, None] * 2 * 2 / 28], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Each of 7 x 7 knots moves the pixels around it, less with their distance.
    pixels, knots = (
        torch.arange(28, dtype=torch.float64),
        torch.arange(7, dtype=torch.float64) * 4 + 1.5,
    )
    near = torch.exp(-((pixels - knots[:, None]) ** 2) / 32)
    near = (near / near.square().sum(dim=0).sqrt()).to(images)
    bend = elastic * (2 / 28) * normal.to(images.dtype).view(-1, 2, 7, 7)
    grid = grid + torch.einsum("nckl,ky,lx->nyxc", bend, near, near)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def clipped(gradient: dict[str, Tensor], limit: float) -> dict[str, Tensor]:
    """A gradient whose norm is limited, as `clip_grad_norm_` does it; unless the limit is 0."""
    if not limit:
        return gradient
    norm = float(sum(tensor.square().sum() for tensor in gradient.values())) ** 0.5
    return {name: tensor * min(1, limit / (norm + 1e-6)) for name, tensor in gradient.items()}


@dataclass
class Reference:
    """A training on one process, an update at a time.

    Attributes:
        settings: what is trained.
        images, labels: (N, 1, 28, 28) float64 and (N,) int64, the training samples.
        weights: by name.
        moments: the means of the gradient and of its square that Adam keeps, by name.
        averaged: the moving average of the weights; none before the first update or without `ema`.
        updates: made so far.
        loss: the sum over the samples of the epoch in progress, each at the time of its update
            (nats).
        losses: for each update so far the sum over its samples (nats), and how many they were.
    """

    settings: Settings
    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        device = self.images.device
        self.weights = {name: tensor.to(device) for name, tensor in initial(self.settings).items()}
        self.moments = [
            {name: torch.zeros_like(w) for name, w in self.weights.items()} for _ in BETAS
        ]
        self.averaged: dict[str, Tensor] = {}
        self.updates, self.loss = 0, 0.0
        self.losses: list[tuple[float, int]] = []

    def snapshot(self) -> "Reference":
        """The training as it is now, whatever becomes of this one; the samples are shared."""
        taken = copy.copy(self)
        taken.weights = {name: tensor.clone() for name, tensor in self.weights.items()}
        taken.moments = [
            {name: tensor.clone() for name, tensor in moment.items()} for moment in self.moments
        ]
        taken.averaged = dict(self.averaged)
        taken.losses = list(self.losses)
        return taken

    def batch(self, epoch: int, number: int) -> Tensor:
        """(n,) int64, the samples of one global batch, in order."""
        start = number * self.settings.batch_size
        whole = order(len(self.labels), self.settings.seed, epoch)
        return whole[start : start + self.settings.batch_size].to(self.labels.device)

    def gradient(self, epoch: int, number: int) -> dict[str, Tensor]:
        """The gradient of the mean loss over one global batch, clipped, by name; the loss is noted."""
        loss, found = self.loss_and_gradient(epoch, number, self.settings)
        rows = len(self.batch(epoch, number))
        self.loss = loss * rows + (self.loss if number else 0.0)
        self.losses.append((loss * rows, rows))
        return found

    def loss_and_gradient(
        self,
        epoch: int,
        number: int,
        has: Settings,
        row_weights: Tensor | None = None,
        drawn_by: Tensor | None = None,
    ) -> tuple[float, dict[str, Tensor]]:
        """The loss (nats) of one global batch and its gradient, clipped, by name.

        Args:
            epoch, number: of the batch, from 0.
            has: the settings; others than the training's to see what they would give.
            row_weights: (n,) float64, what the loss of each row is multiplied by in the sum; without it
                it is the mean.
            drawn_by: (n,) int64, for each row who draws its random numbers, each for its own rows
                from the same seed; without it they are drawn for the whole batch.
        """
        index, device = self.batch(epoch, number), self.labels.device
        sources = torch.zeros_like(index) if drawn_by is None else drawn_by.to(device)

        def draw(purpose: str, *shape: int, normal: bool = False) -> Tensor:
            drawn = torch.empty(len(index), *shape, device=device)
            for source in sources.unique():
                seeded = generator(purpose, has.seed, epoch, number, device=device)
                rows = int((sources == source).sum())
                drawn[sources == source] = (torch.randn if normal else torch.rand)(
                    rows, *shape, generator=seeded, device=device
                )
            return drawn

        images = self.images[index]
        if has.affine or has.elastic:
            numbers = draw("affine 0", 6), draw("elastic 0", 2, 49, normal=True)
            images = distorted(images, has.affine, has.elastic, *numbers)
        dropped: list[Tensor] = []
        if has.dropout:
            sides = [13, 5, *[3] * 6]
            maps = has.channels if has.model == "cnn" else ()
            shapes = [
                *[(side, side, count) for side, count in zip(sides, maps, strict=False)],
                *[(n,) for n in has.hidden],
            ]
            sizes = [math.prod(shape) for shape in shapes]
            kept = (draw("dropout", sum(sizes)) >= has.dropout).float() / (1 - has.dropout)
            parts = kept.split(sizes, dim=1)
            dropped = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        weights = {name: tensor.clone().requires_grad_() for name, tensor in self.weights.items()}
        surprise = -logits(weights, images, dropped).log_softmax(dim=1)
        right = surprise.gather(1, self.labels[index, None]).squeeze(1)
        losses = (1 - has.label_smoothing) * right + has.label_smoothing * surprise.mean(dim=1)
        loss = losses.mean() if row_weights is None else losses @ row_weights.to(losses)
        found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        return loss.item(), clipped(found, has.clip_norm)

    def update(self, gradient: dict[str, Tensor], rate: float) -> None:
        """Move the weights by AdamW."""
        self.updates += 1
        for name, slope in gradient.items():
            mean, square = (moment[name] for moment in self.moments)
            mean.mul_(BETAS[0]).add_(slope, alpha=1 - BETAS[0])
            square.mul_(BETAS[1]).add_(slope.square(), alpha=1 - BETAS[1])
            step = mean / (1 - BETAS[0] ** self.updates)
            step = step / ((square / (1 - BETAS[1] ** self.updates)).sqrt() + EPSILON)
            self.weights[name] = (
                self.weights[name] * (1 - rate * self.settings.weight_decay) - rate * step
            )

    def follow(self) -> None:
        """Move the average after the weights."""
        decay = self.settings.ema
        for name, tensor in self.weights.items() if decay else ():
            before = self.averaged.get(name, tensor)
            self.averaged[name] = decay * before + (1 - decay) * tensor

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """The mean loss (nats) of the trained model over samples, and how many it has right."""
        with torch.no_grad():
            found = torch.cat(
                [logits(self.averaged or self.weights, part) for part in images.split(1000)]
            )
        return F.cross_entropy(found, labels).item(), int((found.argmax(dim=1) == labels).sum())
