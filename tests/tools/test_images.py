"""People's own pictures: any size, colour, shade and place give what MNIST would have made of them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PYTHON, call
from PIL import Image

from mnist_dist.core import UserError
from mnist_dist.task.data import load
from mnist_dist.task.layouts import layout_of
from mnist_dist.tools import predict
from mnist_dist.tools.pictures import digits as pictures
from mnist_dist.tools.pictures.digits import grey_values, read_picture
from mnist_dist.tools.pictures.ink import count_parts as parts


@pytest.fixture(scope="module")
def digits():
    """200 test digits as (28, 28) grey values in [0, 1], and their labels."""
    data = load("mnist-5k", Path())
    every_fifth = slice(None, None, 5)
    return data.pixels(data.test.images[every_fifth, 0]), data.test.labels[every_fifth]


def picture_of(
    digit: torch.Tensor, ink, paper, side: int, where: tuple[int, int], mode: str = "RGB"
) -> Image.Image:
    """A digit drawn in one colour on another, enlarged, somewhere on a larger sheet."""
    share = Image.fromarray((255 * digit.numpy()).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    sheet = Image.new(mode, (side * 2, side * 2 + 37), paper)
    sheet.paste(Image.new(mode, share.size, ink), where, share)
    return sheet


def test_an_mnist_digit_stays_nearly_what_it_is(digits, tmp_path):
    differences = []
    for digit in digits[0]:
        Image.fromarray((255 * digit.numpy()).astype(np.uint8)).save(tmp_path / "digit.png")
        again = read_picture(tmp_path / "digit.png")
        assert again.shape == (28, 28) and again.dtype == torch.float32
        assert again.min() >= 0 and again.max() <= 1
        differences.append((again - digit).abs().mean())
    # Where a faint edge is taken for paper, the digit is scaled by 20/19: one of these 200.
    assert torch.stack(differences).quantile(0.98) < 0.002


@pytest.mark.parametrize(
    ("ink", "paper", "side", "where", "format"),
    [
        ((0, 0, 0), (255, 255, 255), 28, (0, 0), "png"),
        ((255, 255, 255), (0, 0, 0), 300, (250, 280), "png"),
        ((20, 20, 120), (240, 230, 200), 150, (10, 100), "jpeg"),
        ((255, 220, 0), (10, 60, 30), 90, (80, 0), "png"),
        ((90, 90, 90), (160, 160, 160), 200, (30, 30), "jpeg"),
    ],
)
def test_size_colour_and_place_do_not_matter(
    digits, trained, tmp_path, ink, paper, side, where, format
):
    images, labels = digits
    paths = []
    for number, digit in enumerate(images):
        paths.append(tmp_path / f"{number}.{format}")
        picture_of(digit, ink, paper, side, where).save(paths[-1])
    from mnist_dist.run.weights import load_weights
    from mnist_dist.task.datasets import MNIST_NORMALIZATION
    from mnist_dist.task.networks import from_state_dict

    mean, std = MNIST_NORMALIZATION
    model = from_state_dict(load_weights(trained / "mnist_model.pth"))

    def accuracy(pixels: torch.Tensor) -> float:
        return (model((pixels[:, None] - mean) / std).argmax(1) == labels).float().mean().item()

    plain, ours = accuracy(images), accuracy(torch.stack([read_picture(path) for path in paths]))
    assert plain > 0.88  # a short training on 4,000 digits
    assert ours >= plain - 0.06


@pytest.mark.parametrize(
    ("ink", "mode"), [((0, 0, 0, 255), "RGBA"), ((255, 255, 255, 255), "RGBA")]
)
def test_transparent_pictures(digits, tmp_path, ink, mode):
    digit = digits[0][3]
    picture_of(digit, ink, (*ink[:3], 0), 112, (50, 60), mode).save(tmp_path / "digit.png")
    opaque = picture_of(digit, (0, 0, 0), (255, 255, 255), 112, (50, 60))
    opaque.save(tmp_path / "opaque.png")
    assert (
        read_picture(tmp_path / "digit.png") - read_picture(tmp_path / "opaque.png")
    ).abs().mean() < 0.02


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "CMYK", "LA"])
def test_other_kinds_of_pictures(digits, tmp_path, mode):
    grey = Image.fromarray((255 * digits[0][7].numpy()).astype(np.uint8)).resize((140, 140))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else grey.convert(mode)
    picture.save(tmp_path / "digit.tiff")
    assert (read_picture(tmp_path / "digit.tiff") - digits[0][7]).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("mode", "format"), [("RGB", "png"), ("RGB", "jpeg"), ("P", "png"), ("I;16", "tiff")]
)
def test_large_pictures_are_shrunk_first(digits, tmp_path, monkeypatch, mode, format):
    """As those of phones and scanners: hundreds of bytes a pixel were needed, and minutes."""
    picture, size = picture_of(digits[0][3], (0, 0, 0), (255, 255, 255), 600, (150, 250)), []
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / f"large.{format}")
    monkeypatch.setattr(pictures, "LARGE", 700)
    picture.resize((600, 618)).save(tmp_path / "small.png")

    def noting(shrunk):
        size.append(shrunk.size)
        return grey_values(shrunk)

    monkeypatch.setattr(pictures, "grey_values", noting)
    large, small = (read_picture(tmp_path / name) for name in (f"large.{format}", "small.png"))
    assert size == [(600, 619), (600, 618)]
    assert (large - small).abs().mean() < 0.01


@pytest.fixture
def garment() -> np.ndarray:
    """(28, 28) uint8: something wider than it is high, of two shades, as Fashion-MNIST has it."""
    picture = np.zeros((28, 28), np.uint8)
    picture[7:21, :] = 100
    picture[7:21, 4:10] = 180
    return picture


def test_a_garment_fills_its_picture_and_keeps_its_shades(garment, tmp_path):
    sheet = np.pad(garment, 5).repeat(10, axis=0).repeat(10, axis=1)
    for values in (sheet, 255 - sheet):
        Image.fromarray(values).save(tmp_path / "bag.png")
        found = read_picture(tmp_path / "bag.png", layout_of("fashion-mnist"), "garment")
        assert np.abs(255 * found.numpy() - garment).max() < 1
        as_a_digit = read_picture(tmp_path / "bag.png")
        assert np.ptp(np.flatnonzero(as_a_digit.numpy().any(axis=0))) + 1 == 20
    assert layout_of("kmnist") == layout_of("fashion-mnist")
    assert layout_of("mnist-5k") == layout_of("mnist") == layout_of("auto") != layout_of("kmnist")
    write_blank(tmp_path / "blank.png")
    with pytest.raises(UserError, match="shows no garment"):
        read_picture(tmp_path / "blank.png", layout_of("fashion-mnist"), "garment")


def test_the_command_prepares_pictures_as_the_model_was_trained(garment, trained, tmp_path, capsys):
    garment[:, 14:16] = 0  # the two parts of it are one garment all the same
    Image.fromarray(np.pad(garment, 5)).save(tmp_path / "bag.png")
    shutil.copytree(trained, tmp_path / "run")
    settings = json.loads((trained / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(
        json.dumps(settings | {"dataset": "fashion-mnist"})
    )
    predict.main(
        predict.Config(images=(tmp_path / "bag.png",), weights=tmp_path / "run", show=True)
    )
    said = capsys.readouterr()
    assert not said.err
    rows = [line for line in said.out.splitlines() if len(line) == 56]
    assert sum(line.strip(" ") != "" for line in rows) == 14
    assert all(line[0] != " " and line[-1] != " " for line in rows if line.strip(" "))


@pytest.mark.parametrize("stroke", [(1, 1), (1, 60), (60, 1), (200, 3)])
def test_thin_strokes_and_single_pixels_are_no_trouble(tmp_path, stroke):
    sheet = np.full((210, 210), 255, np.uint8)
    sheet[5 : 5 + stroke[0], 5 : 5 + stroke[1]] = 0
    Image.fromarray(sheet).save(tmp_path / "stroke.png")
    digit = read_picture(tmp_path / "stroke.png")
    assert digit.max() == pytest.approx(1, abs=1e-6) and digit.isfinite().all()


def write_blank(path):
    Image.new("L", (50, 50), 200).save(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("not a picture"), "not a picture"),
        (lambda path: path.write_bytes(b""), "not a picture"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "not a picture"),
        (lambda _: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (write_blank, "shows no digit"),
        (os.mkfifo, "a pipe or a device"),
        # PIL warns of this size.
        (lambda path: path.write_bytes(b"P5 10000 10000 255\n"), "more than 89,478,485 pixels"),
        # PIL refuses this size.
        (lambda path: path.write_bytes(b"P5 20000 20000 255\n"), "more than 89,478,485 pixels"),
    ],
)
def test_what_is_no_picture_of_a_digit_is_refused(tmp_path, make, reason):
    make(tmp_path / "digit.png")
    with pytest.raises(UserError, match=reason):
        read_picture(tmp_path / "digit.png")


def test_the_command_prints_class_and_probabilities(trained, digits, tmp_path):
    picture_of(digits[0][0], (0, 0, 0), (255, 255, 255), 112, (20, 20)).save(tmp_path / "zero.png")
    done = call(PYTHON, "-m", "mnist_dist", "predict", tmp_path / "zero.png", "--weights", trained)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"{tmp_path / 'zero.png'}: 0 (")
    shares = [float(line.split()[1].rstrip("%")) for line in lines[2:]]
    assert len(shares) == 10 and sum(shares) == pytest.approx(100, abs=0.1)

    done = call(PYTHON, "-m", "mnist_dist", "predict", "README.md", "--weights", trained)
    assert (
        done.returncode == 1
        and "README.md cannot be read" in done.stderr
        and done.stderr.count("\n") == 1
    )


ACROSS = np.linspace(0, 1, 168)
SHADOWS = {
    "even": np.ones((168, 168)),
    "from one side": (0.3 + 0.7 * ACROSS) * (0.8 + 0.2 * ACROSS[:, None]),
    "of something": np.broadcast_to(0.5 + 0.5 / (1 + np.exp(-30 * (ACROSS - 0.5))), (168, 168)),
}


@pytest.mark.parametrize("shadow", SHADOWS)
@pytest.mark.parametrize("light", [False, True])
def test_a_shadow_on_the_paper_does_no_harm(digits, tmp_path, light, shadow):
    plain: list[torch.Tensor] = []
    shaded: list[torch.Tensor] = []
    for digit in digits[0][::17]:
        sheet = 0.9 - 0.7 * np.pad(digit.numpy(), 14).repeat(3, axis=0).repeat(3, axis=1)
        for grey, found in ((sheet, plain), (sheet * SHADOWS[shadow], shaded)):
            grey = 1 - grey if light else grey
            Image.fromarray((255 * grey).round().astype(np.uint8)).save(tmp_path / "digit.png")
            found.append(read_picture(tmp_path / "digit.png"))
    # Without evening out the darker half of the paper is ink.
    assert (torch.stack(plain) - torch.stack(shaded)).abs().mean(dim=(1, 2)).quantile(0.9) < 0.05


def test_parts_are_counted(digits):
    # A bar that hangs beside its 5 is not a digit.
    assert np.mean([parts(digit) > 1 for digit in digits[0]]) < 0.02
    two = torch.zeros(28, 28)
    two[6:20, 4:9] = two[6:20, 16:21] = 1.0
    assert parts(two) == 2
    near = two.clone()
    near[6:20, 10:16] = 1.0  # a pixel beside the first
    assert parts(near) == 1
    two[12, 4:21] = 1.0
    assert parts(two) == 1


def test_a_bad_picture_does_not_end_the_list_and_doubts_are_named(
    trained, digits, tmp_path, capsys
):
    names = [tmp_path / name for name in ("blank.png", "nothing.png", "zero.png", "two.png")]
    write_blank(names[0])
    picture_of(digits[0][0], (0, 0, 0), (255, 255, 255), 112, (20, 20)).save(names[2])
    pair = torch.cat([digits[0][0], digits[0][150]], dim=1)
    Image.fromarray((255 * (1 - np.pad(pair.numpy(), 4))).astype(np.uint8)).save(names[3])
    with pytest.raises(UserError, match="2 of 4 pictures could not be read: the warnings say why"):
        predict.main(predict.Config(images=tuple(names), weights=trained, show=True))
    found = capsys.readouterr()
    assert f"{names[2]}: 0 (" in found.out and f"{names[3]}: " in found.out
    blank, nothing, apart = found.err.splitlines()
    assert (
        "shows no digit" in blank
        and "No such file" in nothing
        and f"{names[3]} shows 2 separate parts" in apart
    )
    drawn = [
        line
        for line in found.out.splitlines()
        if len(line) == 56 and not set(line) - set(" .:-=+*#%@")
    ]
    assert len(drawn) == 2 * 28 and any("@@" in line for line in drawn)
    flat = {"weight": torch.zeros(10, 784), "bias": torch.arange(10) / 10}
    torch.save({f"fc1.{name}": value for name, value in flat.items()}, tmp_path / "flat.pth")
    predict.main(predict.Config(images=(names[2],), weights=tmp_path / "flat.pth"))
    assert ": 9 (15.05%), in doubt: or 8?" in capsys.readouterr().out


DEEP = {
    "16 bits": (np.uint16, 65535, "png"),
    "16 bits, TIFF": (np.uint16, 65535, "tiff"),
    "8 bits in 32": (np.int32, 255, "tiff"),
    "16 bits in 32": (np.int32, 65535, "tiff"),
    "32 bits": (np.int32, 2**31 - 1, "tiff"),
    "a share": (np.float32, 1, "tiff"),
    "8 bits in a float": (np.float32, 255, "tiff"),
    "16 bits in a float": (np.float32, 65535, "tiff"),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("light", [False, True])
def test_pictures_with_more_bits_a_pixel_are_scaled_by_their_range(digits, tmp_path, kind, light):
    dtype, white, suffix = DEEP[kind]
    sheet = np.pad(digits[0][7].numpy().astype(np.float64), 14).repeat(3, axis=0).repeat(3, axis=1)
    sheet = sheet if light else 1 - sheet
    Image.fromarray((255 * sheet).round().astype(np.uint8)).save(tmp_path / "plain.png")
    Image.fromarray((white * sheet).astype(dtype)).save(tmp_path / f"deep.{suffix}")
    deep, plain = (read_picture(tmp_path / name) for name in (f"deep.{suffix}", "plain.png"))
    assert (deep - plain).abs().max() < 0.02
    # The noise of a sensor on blank paper is not a drawing.
    noise = 0.6 + 0.005 * np.random.default_rng(0).standard_normal(sheet.shape)
    Image.fromarray((white * noise).astype(dtype)).save(tmp_path / f"blank.{suffix}")
    with pytest.raises(UserError, match="shows no digit"):
        read_picture(tmp_path / f"blank.{suffix}")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.array([[0, 1e9]], np.float32), r"digit.tiff has values from 0 to 1e\+09 in mode F"),
        (np.array([[-1, 1]], np.float32), r"digit.tiff has values from -1 to 1 in mode F"),
        (np.array([[-7, 100]], np.int32), r"digit.tiff has values from -7 to 100 in mode I"),
        (np.array([[0, np.nan]], np.float32), "digit.tiff has grey values that are not finite"),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path, values, complaint):
    Image.fromarray(values.repeat(50, axis=0).repeat(25, axis=1)).save(tmp_path / "digit.tiff")
    with pytest.raises(UserError, match=complaint):
        read_picture(tmp_path / "digit.tiff")


def test_a_name_that_is_not_utf_8_does_no_harm(trained, digits, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    with open(name, "wb") as file:  # noqa: PTH123
        picture_of(digits[0][0], (0, 0, 0), (255, 255, 255), 112, (20, 20)).save(file, "png")
    done = call(
        PYTHON, "-m", "mnist_dist", "predict", name, "--weights", trained, PYTHONIOENCODING="utf-8"
    )
    assert done.returncode == 0 and "/?.png: 0 (" in done.stdout, done.stdout + done.stderr
