"""Image folders and sheets: order, classes, conversions, and what is refused."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, cifar_subset, image_folder


def picture(path, value=0, shape=(6, 5), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (*shape, 3) if mode == "RGB" else shape
    noise = np.random.default_rng(value).integers(0, 250, size, np.uint8)
    noise.flat[0] = value
    Image.fromarray(noise).save(path)
    return noise


def test_classes_are_the_sorted_folders_and_pixels_come_back(tmp_path):
    expected = {}
    for k, name in enumerate(["zebra/b.png", "zebra/a.png", "äpfel/1.png", "Bär/x/y.PNG"]):
        expected[k] = (name.split("/")[0], picture(tmp_path / name, k))
    data = image_folder(tmp_path, holdout=1)
    assert data.classes == ("Bär", "zebra", "äpfel")
    x = torch.cat([data.train.x, data.test.x])
    label = torch.cat([data.train.label, data.test.label])
    assert x.shape == (4, 1, 6, 5)
    for image, y in zip(x, label, strict=True):
        name, pixels = expected[int(image[0, 0, 0])]
        assert data.classes[y] == name
        assert np.array_equal(image[0], pixels)


def test_order_depends_on_names_alone(tmp_path):
    names = [f"c{k % 2}/{k:02d}.png" for k in range(12)]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            picture(tmp_path / folder / name, names.index(name))
    one, two = (image_folder(tmp_path / name, holdout=0.25) for name in ("one", "two"))
    assert torch.equal(one.train.x, two.train.x)
    assert torch.equal(one.test.x, two.test.x)
    assert torch.equal(one.train.label, two.train.label)


def test_train_and_test_folders_are_the_splits(tmp_path):
    for k, name in enumerate(["train/a/1.png", "train/b/1.png", "train/b/2.png", "test/b/1.png"]):
        picture(tmp_path / name, k)
    data = image_folder(tmp_path)
    assert data.train.x[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.train.label.tolist() == [0, 1, 1]
    assert data.test.label.tolist() == [1]
    (tmp_path / "test/b/1.png").rename(tmp_path / "test/1.png")
    with pytest.raises(DataError, match="only one of train/ and test/ has class folders"):
        image_folder(tmp_path)


def test_pictures_without_classes_and_what_is_passed_over(tmp_path):
    for k in range(3):
        picture(tmp_path / f"{k}.png", k)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    picture(tmp_path / ".cache/a.png")
    data = image_folder(tmp_path, holdout=1)
    assert data.classes is None
    assert data.train.label is None
    assert len(data.train) + len(data.test) == 3
    picture(tmp_path / "cats/a.png")
    with pytest.raises(DataError, match="3 pictures beside the class folders"):
        image_folder(tmp_path)


def test_colour_grey_and_size(tmp_path):
    for k in range(2):
        picture(tmp_path / f"{k}.png", k, shape=(8, 12), mode="RGB")
    assert image_folder(tmp_path, holdout=1).shape == (3, 8, 12)
    assert image_folder(tmp_path, channels=1, holdout=1).shape == (1, 8, 12)
    assert image_folder(tmp_path, size=4, holdout=1).shape == (3, 4, 4)
    picture(tmp_path / "2.png", 2, shape=(9, 9), mode="RGB")
    with pytest.raises(DataError, match=r"2\.png: \(C, H, W\) is \(3, 9, 9\) but \(3, 8, 12\)"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, size=16, holdout=1).shape == (3, 16, 16)


def test_the_middle_square_is_kept(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    for k in range(2):
        Image.fromarray(wide).save(tmp_path / f"{k}.png")
    assert image_folder(tmp_path, size=4, holdout=1).train.x.unique().tolist() == [200]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK"])
def test_other_modes_need_a_word(tmp_path, mode):
    for k in range(2):
        picture(tmp_path / f"{k}.png", k, mode="RGB")
        suffix = "tif" if mode == "CMYK" else "png"
        with Image.open(tmp_path / f"{k}.png") as image:
            other = image.convert("L" if mode == "LA" else "RGB").convert(mode)
        (tmp_path / f"{k}.png").unlink()
        other.save(tmp_path / f"{k}.{suffix}")
    with pytest.raises(DataError, match=f"mode {mode} is neither .*; save it .*give channels"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, channels=3, holdout=1).shape == (3, 6, 5)


@pytest.mark.parametrize("values", [np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.float32)])
def test_deep_pictures_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    Image.fromarray(values).save(tmp_path / "deeper.tif")
    with pytest.raises(DataError, match=r"deep\w*\.tif: mode .* more than 256 levels"):
        image_folder(tmp_path, channels=1)


def png_of_16_bits(channels):
    """Noise in one (grey), two (with alpha), three (RGB) or four channels of 16 bits."""
    noise = np.random.default_rng(0).integers(0, 2**16, (4, 4 * channels)).astype(">u2")

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise))
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_low_bits_of_deep_colours_are_not_dropped_in_silence(tmp_path, channels):
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes(png_of_16_bits(channels))
    with pytest.raises(DataError, match=r"[01]\.png: mode .*;16B? has more than 256 .*; save it"):
        image_folder(tmp_path, channels=3)


def test_a_bitmap_of_five_bits_a_colour_has_shades(tmp_path):
    """Pillow calls BGR;16 what fits into 16 bits in all."""
    head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    content = head + masks + np.random.default_rng(0).bytes(32)
    start = struct.pack("<IHHI", 14 + len(content), 0, 0, 14 + 40 + 12)
    for k in range(2):
        (tmp_path / f"{k}.bmp").write_bytes(b"BM" + start + content)
    assert image_folder(tmp_path, holdout=1).shape == (3, 4, 4)


def test_an_upright_picture_is_taken_as_a_viewer_shows_it(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8] = 250  # bright on the left, which a quarter turn clockwise brings to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(2):
        Image.fromarray(wide).save(tmp_path / f"{k}.png", exif=exif)
    x = image_folder(tmp_path, holdout=1).train.x
    assert x.shape[1:] == (3, 16, 8)
    assert x[0, 0, :8].min() == 250
    assert x[0, 0, 8:].max() == 0


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/deep/2.png", "b/1.png"):
        picture(tmp_path / name)
    scandir = os.scandir

    def refusing(path="."):
        if Path(os.fspath(path)).name == "deep":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="deep"):
        image_folder(tmp_path)


def test_names_that_no_terminal_takes_are_written_out(tmp_path):
    for k in range(3):
        picture(tmp_path / f"{k}.png", k)
    for name in (b"\xff.png", b"\x1b[31m.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    (note,) = image_folder(tmp_path, on_error="skip").notes
    assert note == r"left out 2 damaged pictures: \x1b[31m.png, \udcff.png"


def damaged(content):
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    return {"empty": b"", "text": b"hello", "cut": content[:half], "flipped": flipped}


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_pictures_are_named(tmp_path, damage):
    picture(tmp_path / "a.png", shape=(30, 30))
    picture(tmp_path / "b.png", shape=(30, 30))
    (tmp_path / "b.png").write_bytes(damaged((tmp_path / "b.png").read_bytes())[damage])
    with pytest.raises(DataError, match=r"b\.png: not a usable picture") as error:
        image_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_jpeg_is_named(tmp_path):
    picture(tmp_path / "a.jpg", shape=(64, 64))
    picture(tmp_path / "b.jpg", shape=(64, 64))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-500])
    with pytest.raises(DataError, match=r"a\.jpg: not a usable picture"):
        image_folder(tmp_path)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, shape=(30, 30))
    for limit in (800, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"[ab]\.png: not a usable picture .*limit"):
            image_folder(tmp_path)


def test_folders_without_pictures(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        image_folder(tmp_path)
    picture(tmp_path / "cats/only.png")
    with pytest.raises(DataError, match=r"cannot hold out 0\.1 of 1"):
        image_folder(tmp_path)


def write_sheets(folder, n=8):
    tiles = np.random.default_rng(0).integers(0, 256, (2 * n, 32, 32, 3), np.uint8)
    for k, part in enumerate(("train", "test")):
        mine = tiles[k * n : (k + 1) * n]
        for sheet, images in enumerate(np.split(mine, 2)):
            rows = images.reshape(2, n // 4, 32, 32, 3).transpose(0, 2, 1, 3, 4)
            flat = rows.reshape(64, n * 8, 3)
            Image.fromarray(flat).save(
                folder / f"{part}-{sheet:02d}.webp", lossless=True, exact=True
            )
        np.save(folder / f"{part}-labels.npy", np.arange(n, dtype=np.uint8) % 3)
    return np.moveaxis(tiles, -1, 1)


def test_sheets_come_back(tmp_path):
    tiles = write_sheets(tmp_path)
    data = cifar_subset(tmp_path)
    assert np.array_equal(data.train.x, tiles[:8])
    assert np.array_equal(data.test.x, tiles[8:])
    assert data.train.label.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_sheets_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        cifar_subset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train-\*\.webp"):
        cifar_subset(tmp_path)
    write_sheets(tmp_path)
    np.save(tmp_path / "test-labels.npy", np.zeros(7, np.uint8))
    with pytest.raises(
        DataError, match=r"test-labels\.npy: 8 examples but labels of shape \(7,\)"
    ):
        cifar_subset(tmp_path)
    Image.new("RGB", (64, 40)).save(tmp_path / "train-00.webp", lossless=True)
    with pytest.raises(
        DataError, match=r"train-00\.webp: sides \(40, 64\) are no multiples of 32"
    ):
        cifar_subset(tmp_path)


def test_the_real_subset():
    folder = Path(os.environ.get("SCORESDE_DATA", "")) / "cifar10-subset"
    if "SCORESDE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("SCORESDE_DATA names no folder that holds cifar10-subset/")
    data = cifar_subset(folder)
    assert data.classes is not None
    assert len(data.classes) == 10
    # The digests that the set's own description states for the decoded bytes, channels last.
    for split, digest in ((data.train, "a0e2"), (data.test, "2f97")):
        pixels = np.ascontiguousarray(np.moveaxis(split.x.numpy(), 1, -1))
        assert hashlib.md5(pixels.tobytes()).hexdigest().startswith(digest)
        assert len(split.label.bincount().unique()) == 1
