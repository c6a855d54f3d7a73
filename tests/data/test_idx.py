"""The idx format: written here by its definition, read back, and damaged in every way."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from scoresde.data import DataError, idx_folder
from scoresde.data.idx import read_idx

STEMS = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write(path, array):
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder, prefix="", suffix="", test="t10k"):
    rng = np.random.default_rng(0)
    parts = []
    for part, n in (("train", 20), (test, 6)):
        x, y = rng.integers(0, 256, (n, 5, 7), np.uint8), np.arange(n, dtype=np.uint8) % 4
        write(folder / f"{prefix}{part}-images-idx3-ubyte{suffix}", x)
        write(folder / f"{prefix}{part}-labels-idx1-ubyte{suffix}", y)
        parts += [x, y]
    return parts


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (2, 1, 1)])
def test_arrays_come_back(tmp_path, shape, suffix):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / f"a-ubyte{suffix}"
    write(path, array)
    assert np.array_equal(read_idx(path, len(shape)), array)


@pytest.mark.parametrize("names", [{}, {"suffix": ".gz"}, {"prefix": "emnist-", "test": "test"}])
def test_folders_come_back(tmp_path, names):
    x, y, x_test, y_test = write_set(tmp_path, **names)
    data = idx_folder(tmp_path)
    assert data.shape == (1, 5, 7)
    assert data.scaling.levels == 256
    assert np.array_equal(data.train.x[:, 0], x)
    assert np.array_equal(data.test.x[:, 0], x_test)
    assert data.train.label.tolist() == y.tolist()
    assert data.test.label.tolist() == y_test.tolist()
    assert data.classes == ("0", "1", "2", "3")


def test_class_names_are_read(tmp_path):
    write_set(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\nfrog\nship\n", encoding="utf-8")
    assert idx_folder(tmp_path).classes == ("cat", "dog", "frog", "ship")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt is not UTF-8"):
        idx_folder(tmp_path)


IMAGES = np.zeros((4, 2, 2), np.uint8)
WHOLE = idx_bytes(IMAGES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b"<html>404</html>", "expected idx magic 00 00 08 03, found 3c 68 74 6d"),
        (WHOLE[:9], "found 00 00 08 03"),
        (idx_bytes(np.zeros(4, np.uint8)), "found 00 00 08 01"),
        (b"\0\0\x0d\x03" + WHOLE[4:], "found 00 00 0d 03"),
        (WHOLE[:-1], r"promises 16 bytes \(4, 2, 2\), found 15"),
        (WHOLE + b"\0", "promises 16 bytes .* found 17"),
        (WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], "found 16"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damage_is_named_with_the_file(tmp_path, data, message, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "images.gz"
    whole = gzip.compress(
        idx_bytes(np.random.default_rng(0).integers(0, 256, (4, 9, 9), np.uint8))
    )
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for data in (whole[: len(whole) // 2], whole[:-4], bytes(flipped), b"not gzip at all", WHOLE):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"images\.gz: damaged or unreadable"):
            read_idx(path, 3)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        idx_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte\[\.gz\]"):
        idx_folder(tmp_path)
    write_set(tmp_path)
    write(tmp_path / STEMS[1], np.zeros(19, np.uint8))
    with pytest.raises(DataError, match="20 images but 19 labels in train-labels-idx1-ubyte"):
        idx_folder(tmp_path)
    write(tmp_path / STEMS[0], np.zeros((0, 5, 7), np.uint8))
    write(tmp_path / STEMS[1], np.zeros(0, np.uint8))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: no examples"):
        idx_folder(tmp_path)
    write_set(tmp_path, prefix="other-")
    with pytest.raises(DataError, match="keep one data set a folder"):
        idx_folder(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_idx(tmp_path / "nothing", 3)


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)]
)
def test_the_real_sets(name, mean, std):
    folder = Path(os.environ.get("SCORESDE_DATA", "")) / name
    if "SCORESDE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"SCORESDE_DATA names no folder that holds {name}/")
    data = idx_folder(folder)
    assert (len(data.train), len(data.test), data.shape) == (60_000, 10_000, (1, 28, 28))
    # The published statistics of the training pixels.
    pixels = data.train.x.numpy()
    square = np.square(pixels, dtype=np.uint16).mean(dtype=np.float64) / 255**2
    average = pixels.mean(dtype=np.float64) / 255
    assert average == pytest.approx(mean, abs=1e-4)
    assert np.sqrt(square - average**2) == pytest.approx(std, abs=1e-4)
    assert data.train.label.bincount().min() > 5000


def test_original_bytes_of_mnist_labels():
    folder = Path(os.environ.get("SCORESDE_DATA", "")) / "mnist"
    file = folder / "t10k-labels-idx1-ubyte.gz"
    if "SCORESDE_DATA" not in os.environ or not file.is_file():
        pytest.skip("SCORESDE_DATA names no folder that holds mnist/")
    assert hashlib.md5(file.read_bytes()).hexdigest() == "ec29112dd5afa0611ce80d1b7f02629c"
    assert read_idx(file, 1)[:5].tolist() == [7, 2, 1, 0, 4]
