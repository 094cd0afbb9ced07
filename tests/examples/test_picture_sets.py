"""Pictures of one's own, as examples/pictures.py reads them: of any kind, or refused by name."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import PYTHON, REPOSITORY, call
from PIL import Image

from mnist_dist.core import UserError
from mnist_dist.tools.pictures.files import read_rgb
from mnist_dist.tools.pictures.sets import PictureArray, open_pictures
from mnist_dist.usage import UsageError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def folder_of(place: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> Path:
    """A folder of pictures for each class."""
    for name in classes:
        (place / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(RAMP).save(place / name / f"{number}.png")
    return place


def npz_of(place: Path, images: np.ndarray) -> Path:
    """A .npz file of images, of two classes."""
    np.savez(place / "pictures.npz", images=images, labels=np.arange(len(images)) % 2)
    return place / "pictures.npz"


def assert_ramp(picture: Image.Image) -> None:
    """It is the grey ramp, as it is on 8 bits."""
    assert picture.mode == "RGB"
    pixels = np.asarray(picture).astype(int)
    assert np.abs(pixels - RAMP[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        (RAMP, "8.png"),
        (RAMP.astype(np.uint16) * 257, "16.png"),
        (RAMP.astype(np.uint16) * 257, "16.tiff"),
        (RAMP.astype(">u2") * 257, "16.tif"),
        (RAMP.astype(np.float32) / 255, "float.tiff"),
    ],
)
def test_a_picture_of_any_depth_is_scaled_by_the_range_of_its_type(pixels, name, tmp_path):
    Image.fromarray(pixels).save(tmp_path / name)
    assert_ramp(read_rgb(tmp_path / name, 16))


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (RAMP.astype(np.int32), "mode I"),  # is 255 white, or nearly black?
        (RAMP.astype(np.int32) * 2**23, "mode I"),
        (RAMP.astype(np.float32), "mode F"),
        (np.where(RAMP, 1, np.nan).astype(np.float32), "not finite"),
    ],
)
def test_a_picture_of_unknown_shades_is_refused_by_name(pixels, mode, tmp_path):
    path = tmp_path / "deep.tiff"
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError) as refused:
        read_rgb(path, 16)
    assert str(path) in str(refused.value) and mode in str(refused.value)


def test_what_is_no_picture_or_too_large_a_one_is_refused_by_name(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(RAMP).save(tmp_path / "bomb.png")
    Image.fromarray(RAMP).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[:-20])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    for name, reason in {
        "pipe.png": "pipe",
        "text.png": "not a picture",
        "bomb.png": "more than 200 pixels",
    }.items():
        with pytest.raises(UserError, match=reason) as refused:
            read_rgb(tmp_path / name, 16)
        assert str(tmp_path / name) in str(refused.value)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"cut\.jpg cannot be read"):
        read_rgb(tmp_path / "cut.jpg", 16)


@pytest.mark.parametrize(
    "images",
    [
        np.stack([RAMP] * 6),
        np.stack([RAMP] * 6)[..., None],
        np.stack([np.stack([RAMP] * 3, axis=2)] * 6),
        np.stack([RAMP] * 6).astype(np.uint16) * 257,
        np.stack([RAMP] * 6).astype(">u2") * 257,
        np.stack([RAMP] * 6) / 255,
        np.stack([np.stack([RAMP] * 3, axis=2)] * 6).astype(np.float32) / 255,
    ],
)
def test_an_array_of_any_known_range_is_scaled(images, tmp_path):
    pictures = open_pictures(npz_of(tmp_path, images))
    assert pictures.labels == [0, 1, 0, 1, 0, 1] and pictures.classes == ["0", "1"]
    assert_ramp(pictures.read(5, 16))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.stack([RAMP] * 6).astype(np.int32), "int32 from 0 to 255"),
        (np.stack([RAMP] * 6).astype(np.int8), "int8 from -128 to 127"),
        (np.stack([RAMP] * 6).astype(np.float32), "float32 from 0 to 255"),
        (np.where(np.stack([RAMP] * 6), 0.5, np.nan), "float64 from nan"),
        (np.stack([RAMP] * 6).astype(complex), "complex128"),
        (np.zeros((6, 5)), "shape"),
        (np.zeros((6, 5, 5, 7), np.uint8), "shape"),
        (np.zeros((6, 0, 5), np.uint8), "shape"),
    ],
)
def test_an_array_of_unknown_shades_is_refused_by_name(images, words, tmp_path):
    path = npz_of(tmp_path, images)
    with pytest.raises(UsageError, match=words) as refused:
        open_pictures(path)
    assert str(path) in str(refused.value)


def test_labels_must_be_one_for_each():
    with pytest.raises(UsageError, match="give one each"):
        PictureArray(np.stack([RAMP] * 6), np.arange(5), "x.npz")
    with pytest.raises(UsageError, match="2 classes"):
        PictureArray(np.stack([RAMP] * 6), np.zeros(6), "x.npz")


def test_a_folder_holds_its_classes_and_their_pictures_in_order(tmp_path):
    pictures = open_pictures(folder_of(tmp_path / "data", ("b", "a")))
    assert pictures.classes == ["a", "b"] and pictures.labels == [0] * 4 + [1] * 4
    assert_ramp(pictures.read(7, 16))
    Image.fromarray(RAMP).resize((40, 40)).save(tmp_path / "data" / "a" / "0.png")
    assert open_pictures(tmp_path / "data").digest != pictures.digest


def test_what_programs_leave_behind_is_ignored(tmp_path):
    data = folder_of(tmp_path / "data")
    before = open_pictures(data)
    for name in (
        ".ipynb_checkpoints",
        "__MACOSX",
        "cat/.ipynb_checkpoints",
        "cat/__MACOSX",
        ".git",
    ):
        (data / name).mkdir()
        Image.fromarray(RAMP).save(data / name / "0.png")
    (data / "cat" / "._0.png").write_bytes(b"no picture")
    (data / "cat" / "Thumbs.db").write_bytes(b"no picture")
    after = open_pictures(data)
    assert (after.classes, after.labels, after.digest) == (
        before.classes,
        before.labels,
        before.digest,
    )


def test_a_class_that_is_there_twice_is_refused_by_name(tmp_path):
    data = folder_of(tmp_path / "sibling")
    (data / "hound").symlink_to("dog")
    with pytest.raises(UsageError, match="dog and hound are one folder"):
        open_pictures(data)
    data = folder_of(tmp_path / "nested")
    (data / "cat" / "more").symlink_to("../dog")
    with pytest.raises(UsageError, match=r"cat/more and .*dog are one folder"):
        open_pictures(data)
    data = folder_of(tmp_path / "loop")
    (data / "cat" / "all").symlink_to("..")
    with pytest.raises(UsageError, match="are one folder"):
        open_pictures(data)
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    data = folder_of(tmp_path / "forms", (name, unicodedata.normalize("NFD", name)))
    with pytest.raises(UsageError, match="two forms of its name") as refused:
        open_pictures(data)
    assert r"caf\xe9" in str(refused.value) and r"cafe\u0301" in str(refused.value)


def test_links_to_nothing_and_empty_classes_are_refused_by_name(tmp_path):
    data = folder_of(tmp_path / "class")
    (data / "gone").symlink_to("nowhere")
    with pytest.raises(UsageError, match="gone links to what is not there"):
        open_pictures(data)
    data = folder_of(tmp_path / "picture")
    (data / "cat" / "9.png").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"9\.png"):
        open_pictures(data)
    data = folder_of(tmp_path / "empty")
    (data / "eel").mkdir()
    with pytest.raises(UsageError, match="eel holds no picture"):
        open_pictures(data)


@pytest.mark.parametrize("name", ["pipe", "pipe.npz", "nothing", "text.npz", "text"])
def test_what_is_no_set_of_pictures_is_refused_and_nothing_hangs(name, tmp_path):
    path = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    elif name.startswith("text"):
        path.write_text("no pictures")
    with pytest.raises(UsageError, match="cannot be read") as refused:
        open_pictures(path)
    assert str(path) in str(refused.value)


def test_the_example_says_so_with_status_2(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    flags = [
        "--data",
        tmp_path / "pipe.npz",
        "--cpu",
        "--wandb",
        "disabled",
        "--output-dir",
        tmp_path / "run",
    ]
    done = call(PYTHON, REPOSITORY / "examples" / "pictures.py", *flags, timeout=120)
    assert done.returncode == 2 and "it is a pipe or a device" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
