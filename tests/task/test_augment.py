"""Random distortions: what they do to an image, and that they do not depend on how a batch is shared."""

import pytest
import torch
from conftest import PYTHON, call

from mnist_dist.core import MicroBatch, generator_for
from mnist_dist.core.microbatches import MicroBatchSampler
from mnist_dist.core.orders import EqualBatches
from mnist_dist.core.sampler import ExactSampler
from mnist_dist.core.sharing import Sharing
from mnist_dist.task.distortions import distort, dropout, fields, shift
from mnist_dist.tools.explore import unused


def share(data: torch.Tensor, rank: int = 0, processes: int = 1, seed: int = 0) -> MicroBatch:
    """A process's share of all of the data as one batch, in their order."""
    sharing = Sharing(shares=processes, world=processes, rank=rank)
    sampler = ExactSampler(data, sharing, shuffle=False, seed=seed)
    orders = EqualBatches(sampler, len(data))
    ((micro_batch,),) = MicroBatchSampler(orders, sharing, seed=seed).epoch(0)
    return micro_batch


def distorted(images, *, affine=0.0, elastic=0.0, **which):
    micro_batch = share(images, **which)
    return distort(images[micro_batch.index], micro_batch.rand, affine=affine, elastic=elastic)


@pytest.fixture
def digits():
    """Smooth blobs away from the border: (64, 1, 28, 28), background -0.4."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    centres = 11 + 6 * torch.rand(64, 2, 1, 1, generator=generator_for(7))
    return (2.8 * (-((x - centres[:, :1]) ** 2 + (y - centres[:, 1:]) ** 2) / 18).exp() - 0.4).view(
        64, 1, 28, 28
    )


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_a_share_is_distorted_as_in_the_whole_batch(digits, processes):
    whole = distorted(digits.double(), affine=1, elastic=1)
    for rank in range(processes):
        part = distorted(digits.double(), affine=1, elastic=1, rank=rank, processes=processes)
        assert torch.allclose(part, whole[rank::processes], atol=1e-12)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_dropout_drops_its_share_of_every_layer_and_the_same_however_a_batch_is_shared(processes):
    shapes, data = [(13, 13, 4), (50,)], torch.zeros(100)
    whole = dropout(shapes, share(data).rand, share=0.2)
    for layer, shape in zip(whole, shapes, strict=True):
        assert layer.shape == (100, *shape)
        assert set(layer.unique().tolist()) == {0, 1.25}
        assert layer.mean() == pytest.approx(1, abs=0.05)
        assert len(layer.flatten(1).unique(dim=0)) == 100  # each sample is without others
    for rank in range(processes):
        part = dropout(shapes, share(data, rank, processes).rand, share=0.2)
        assert all(
            torch.equal(mine, layer[rank::processes])
            for mine, layer in zip(part, whole, strict=True)
        )
    assert dropout([], share(data).rand, share=0.2) == []  # a linear classifier


@pytest.mark.parametrize(("down", "right"), [(1, 0), (-1, 0), (0, 1), (0, -2)])
def test_a_shifted_image_goes_on_beyond_its_border_as_it_ends_there(down, right):
    images = torch.rand(2, 1, 28, 28, generator=generator_for(3))
    wide = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    assert torch.equal(
        shift(images, down, right), wide[:, :, 2 - down : 30 - down, 2 - right : 30 - right]
    )


def test_strength_0_changes_nothing_and_the_seed_decides_the_rest(digits):
    assert torch.allclose(distorted(digits), digits, atol=1e-5)
    assert torch.equal(distorted(digits, affine=1, seed=1), distorted(digits, affine=1, seed=1))
    assert not torch.allclose(
        distorted(digits, affine=1, seed=1), distorted(digits, affine=1, seed=2), atol=0.1
    )


@pytest.mark.parametrize(
    "strength", [{"affine": 1.0}, {"elastic": 1.0}, {"affine": 1.0, "elastic": 1.0}]
)
def test_images_change_but_stay_in_range_with_their_background_and_most_of_their_ink(
    digits, strength
):
    result = distorted(digits, **strength)
    assert result.shape == digits.shape and result.dtype == digits.dtype
    assert (result - digits).abs().amax(dim=(1, 2, 3)).min() > 0.05  # each one
    assert result.min() >= digits.min() - 1e-5 and result.max() <= digits.max() + 1e-5
    ink, before = ((image + 0.4).sum(dim=(1, 2, 3)) for image in (result, digits))
    assert (ink / before).min() > 0.5 and (ink / before).max() < 2


def test_the_centre_moves_by_at_most_the_shift_and_what_turning_about_the_middle_adds(digits):
    def centres(images):
        mass = (images + 0.4).squeeze(1)
        mass = mass / mass.sum(dim=(1, 2), keepdim=True)
        place = torch.arange(28.0)
        return torch.stack([(mass.sum(1) * place).sum(1), (mass.sum(2) * place).sum(1)], dim=1)

    moved = (centres(distorted(digits, affine=1)) - centres(digits)).abs()
    assert 1.0 < moved.max() < 2.0 + 3.5  # pixels
    assert moved.mean() > 0.5


def test_an_elastic_field_has_the_same_deviation_at_every_pixel():
    bumps = fields(torch.float64, torch.device("cpu"))[3:]
    assert torch.allclose(bumps.norm(dim=0), torch.ones(784, dtype=torch.float64))


def test_the_fields_are_those_of_torchs_affine_grid():
    theta = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator_for(3))
    expected = torch.nn.functional.affine_grid(theta, [5, 1, 28, 28], align_corners=False)
    points = theta @ fields(torch.float64, torch.device("cpu"))[:3]
    assert torch.allclose(points.view(5, 2, 28, 28).permute(0, 2, 3, 1), expected)


def test_explore_draws_them(tmp_path):
    done = call(
        PYTHON,
        "-m",
        "mnist_dist",
        "explore",
        "--dataset",
        "mnist-5k",
        "--output",
        tmp_path / "d.png",
    )
    assert done.returncode == 0, done.stderr
    assert "4,000 samples, images 4000 x 1 x 28 x 28" in done.stdout
    for name in ("d.png", "d-distorted.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_explore_makes_no_mistyped_folder(tmp_path):
    done = call(PYTHON, "-m", "mnist_dist", "explore", "--data-dir", tmp_path / "dta")
    assert done.returncode == 1 and "dta does not exist: name another" in done.stderr
    assert not (tmp_path / "dta").exists()


def test_explore_writes_over_no_picture_that_it_was_not_told_to(tmp_path):
    for there, free in (("", "a.png"), ("a.png", "a-2.png"), ("a-2-distorted.png", "a-3.png")):
        if there:
            (tmp_path / there).touch()
        assert unused(tmp_path / "a.png") == tmp_path / free
