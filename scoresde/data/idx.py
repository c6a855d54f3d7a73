"""The idx format of MNIST and its family (Fashion-MNIST, KMNIST, EMNIST), gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from scoresde.data.dataset import (
    DataError,
    Dataset,
    Split,
    listed_classes,
    reading,
    require_folder,
)
from scoresde.data.labels import numbered, placed
from scoresde.data.scaling import Scaling


def read_idx(path: Path | str, rank: int) -> np.ndarray:
    """The uint8 array in an idx file: magic 00 00 08 ``rank``, ``rank`` big-endian sizes, bytes.

    Raises DataError for a missing or damaged file, another magic number, or a wrong size.
    """
    path = Path(path)
    with reading(path):
        raw = _bytes(path)
        head = 4 * (rank + 1)
        if raw[:4] != bytes([0, 0, 8, rank]) or len(raw) < head:
            found = raw[:4].hex(" ") or "an empty file"
            raise DataError(f"expected idx magic 00 00 08 {rank:02x}, found {found}; get it anew")
        shape = struct.unpack(f">{rank}I", raw[4:head])
        if len(raw) - head != math.prod(shape):
            raise DataError(
                f"the header promises {math.prod(shape)} bytes {shape}, found {len(raw) - head}; "
                f"get the file anew"
            )
        return np.frombuffer(raw, np.uint8, offset=head).reshape(shape).copy()


def idx_folder(path: Path | str) -> Dataset:
    """Images (1, H, W) of 256 levels and their labels, from the four idx files of MNIST's family.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
    ``t10k`` or ``test``; a prefix such as ``emnist-letters-``, ``.idx3-ubyte`` and ``.gz`` are
    allowed. Class names are the lines of ``classes.txt``, if present, or the labels.

    Args:
        path: folder with the four idx files of a set such as MNIST.

    Raises DataError for files that are missing, damaged or do not belong together.
    """
    path = Path(path).expanduser()
    with reading(path):
        require_folder(path)
    parts = [_part(path, ("train",)), _part(path, ("t10k", "test"))]
    with reading(path):
        return labelled_images(path, parts)


def labelled_images(folder: Path, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """The data set of pictures of 256 levels (N, C, H, W) with labels, for training and testing.

    The lines of ``classes.txt`` in the folder name the labels in ascending order.
    """
    labels, classes, notes = numbered(*(y for _, y in parts))
    if listed := listed_classes(folder):
        values = [y for _, y in parts]
        if all(y.dtype.kind == "i" for y in values):
            least, most = min(y.min() for y in values), max(y.max() for y in values)
            shift = least if len(listed) == most - least + 1 else 0  # EMNIST's letters are 1..26
            labels = tuple(torch.from_numpy(y - shift) for y in values)
        else:
            labels = tuple(placed(y, listed) for y in values)
        classes, notes = listed, ()
    train, test = (
        Split(torch.from_numpy(x), label) for (x, _), label in zip(parts, labels, strict=True)
    )
    return Dataset(folder.resolve().name, train, test, Scaling(256), classes, notes)


def _part(folder: Path, parts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _find(folder, parts, "images", 3), _find(folder, parts, "labels", 1)
    x, y = read_idx(images, 3), read_idx(labels, 1)
    with reading(images):
        if len(x) != len(y):
            raise DataError(f"{len(x)} images but {len(y)} labels in {labels.name}; get both anew")
        if not len(x):
            raise DataError(f"no examples in an array of shape {x.shape}; check it")
        return x[:, None], y.astype(np.int64)


def _find(folder: Path, parts: tuple[str, ...], what: str, rank: int) -> Path:
    patterns = [f"*{part}-{what}?idx{rank}-ubyte" for part in parts]
    found = sorted(p for pattern in patterns for p in folder.glob(pattern))
    found = found or sorted(p for pattern in patterns for p in folder.glob(f"{pattern}.gz"))
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{folder}: {', '.join(p.name for p in found)}; keep one data set a folder"
        )
    raise DataError(
        f"{folder}: no {parts[0]}-{what}-idx{rank}-ubyte[.gz]; put the four idx files there"
    )


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise DataError("no such file; check the path") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"damaged or unreadable ({error}); get the file anew") from error
