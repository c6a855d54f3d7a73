"""Examples in the format of a known data set: pictures in a folder, arrays, samples."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.arrays import shard_of
from scoresde.data.dataset import DataError, Split, reading, require_there
from scoresde.data.images import picture_levels
from scoresde.data.labels import MOST_CLASSES, label_values, placed
from scoresde.data.picture_sources import FolderAlbum, album
from scoresde.data.scaling import Scaling
from scoresde.data.sources import array_of, pair_of

RECORD, EDITED, ARRAYS = "sample.json", "edit.json", "samples.npz"
PICTURE = re.compile(r"\d{6,}\.png")
SHADES = 256


def examples(
    source: Any,
    shape: tuple[int, ...],
    scaling: Scaling,
    *,
    label: Any = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
) -> Split:
    """All examples of a source, as pixel levels or real numbers of a known data set.

    A path is a folder or .zip of pictures, a folder with ``samples.npz``, or a file of arrays
    ``x`` (``arr_0``) and ``y`` (``arr_1``). A folder written by ``scoresde sample`` yields the
    finished samples of its record. Files store shades, uint8 over 0 .. 255, which become levels
    again; integers in memory are levels.

    Args:
        source: path, or data in memory as for ``dataset_of``.
        shape: shape of one example, (C, H, W) or (D,).
        scaling: scaling of the data set; real numbers stay in units of the data.
        label: class of every example, or one for all, for a source in memory.
        classes: class names of the data set, into which labels are mapped; None for unnamed ones.
        size: side to which pictures are cropped and resized; None leaves their size.
        channels: 1 or 3 converts pictures to grey or colour; None leaves their channels.

    Raises DataError for other shapes, shades that are no levels, numbers that are not finite, or
    files that cannot be read.
    """
    shape = tuple(shape)
    if not isinstance(source, str | Path):
        return _in_memory(source, label, shape, scaling, classes)
    path = Path(source).expanduser()
    with reading(path):
        require_there(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        x, values = _of_folder(path, shape, size, channels)
    else:
        x, values = _of_arrays(path, shape)
    with reading(path):
        # Labels written by scoresde are indices into the classes.
        ours = bool(sample_record(path))
        split = Split(_as_data(x, scaling), _placed(values, None if ours else classes))
        finished = len(split) - unfinished(path, len(split))
        if not finished:
            raise DataError("no finished samples; draw them anew")
        return split.take(torch.arange(finished))


def sample_record(path: Path) -> dict[str, Any]:
    """The record of ``scoresde sample`` or ``edit`` for a folder or a file in it; else empty."""
    folder = path if path.is_dir() else path.parent
    for name in (RECORD, EDITED):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("files"), list):
            return found if path.is_dir() or path.name in found["files"] else {}
    return {}


def picture_files(path: Path) -> list[Path]:
    """The pictures of a folder, those of ``scoresde sample`` and ``edit`` without the grid; or a
    picture itself. Raises DataError for a path with neither."""
    path = path.expanduser()
    with reading(path):
        require_there(path)
        if not path.is_dir():
            return [path]
        listed = [n for n in sample_record(path).get("files", ()) if PICTURE.fullmatch(str(n))]
        return [path / name for name in listed or FolderAlbum(path).names]


def unfinished(path: Path, n: int) -> int:
    """The number of samples, the last of ``n``, that an interrupted run left unfinished."""
    noted = sample_record(path).get("unfinished", 0)
    if not isinstance(noted, int) or noted < 0:
        raise DataError(f"{RECORD}: unfinished is {noted!r}; draw the samples anew")
    return min(noted, n)


def levels_of(pictures: Tensor, scaling: Scaling) -> Tensor:
    """The inverse of ``Scaling.to_uint8``. Raises DataError for shades that it cannot produce."""
    levels = scaling.levels
    if levels is None or levels > SHADES:
        kind = "real numbers" if levels is None else f"{levels} levels"
        raise DataError(f"pictures of {SHADES} levels do not hold {kind}; give arrays of them")
    shades = scaling.to_uint8(scaling.encode(torch.arange(levels))).long()
    level = torch.full((SHADES,), -1).index_put((shades,), torch.arange(levels))[pictures.long()]
    if bool((level < 0).any()):
        wrong = int(pictures[level < 0][0])
        few = ", ".join(map(str, shades[:3].tolist()))
        raise DataError(
            f"holds the shade {wrong}, none of the {levels} of the data ({few}, ...); "
            "give examples of this data set"
        )
    return level.to(torch.uint8)


def _in_memory(
    source: Any,
    label: Any,
    shape: tuple[int, ...],
    scaling: Scaling,
    classes: Sequence[str] | None,
) -> Split:
    if isinstance(source, Split):
        source, label = source.x, source.label
        classes = None  # its labels are indices
    x, label, _ = pair_of(source, label)
    with reading("x"):
        found = torch.from_numpy(_like(array_of(x), shape))
        if isinstance(label, str | int) or getattr(label, "ndim", 1) == 0:
            label = np.full(len(found), label.item() if hasattr(label, "item") else label)
        if found.dtype == torch.uint8 and scaling.levels is not None:
            found = found.int()
        found = _as_data(found, scaling)
        if (scaling.levels or 257) <= 256:
            found = found.to(torch.uint8)
    with reading("label"):
        places = _placed(label, classes)
    with reading("x"):
        return Split(found, places)


def _placed(label: Any, classes: Sequence[str] | None) -> Tensor | None:
    if label is None:
        return None
    if classes is not None:
        return placed(label, classes)
    values = label_values(label)  # names are meaningless without the classes
    return None if values.dtype.kind == "U" else torch.from_numpy(values)


def _of_folder(
    folder: Path, shape: tuple[int, ...], size: int | None, channels: Literal[1, 3] | None
) -> tuple[Tensor, np.ndarray | None]:
    record = sample_record(folder)
    names = [name for name in record.get("files", ()) if PICTURE.fullmatch(str(name))]
    if not names and (folder / ARRAYS).is_file():
        return _of_arrays(folder / ARRAYS, shape)
    found = []
    with album(folder) as pictures:
        if not names:
            with reading(folder):
                names = list(pictures.names)
        for name in names:
            with reading(pictures.where(name)):
                found.append(picture_levels(pictures.read(name), size, channels))
                if found[-1].shape != shape:
                    raise DataError(f"(C, H, W) is {found[-1].shape}, the data has {shape}")
    with reading(folder):
        return torch.from_numpy(np.stack(found)), _labels(record, len(names))


def _labels(record: dict[str, Any], n: int) -> np.ndarray | None:
    labels = record.get("labels")
    if not isinstance(labels, list) or len(labels) != n:
        return None
    if not all(isinstance(label, int) and 0 <= label < MOST_CLASSES for label in labels):
        raise DataError(f"{RECORD}: labels are not 0, 1, ...; draw the samples anew")
    return np.array(labels, np.int64)


def _of_arrays(file: Path, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray | None]:
    with reading(file):
        found = shard_of(file).read(("x", "y"))
        return torch.from_numpy(_like(found["x"], shape)), found.get("y")


def _like(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Examples as (N, *shape); images may be NHWC, or NHW for one channel, numbers (N,)."""
    if x.ndim == 1 and shape == (1,):
        x = x[:, None]
    elif x.ndim == 4 and (x.shape[-1], *x.shape[1:-1]) == shape:
        x = np.moveaxis(x, -1, 1)
    elif x.ndim == 3 and (1, *x.shape[1:]) == shape:
        x = x[:, None]
    if x.ndim and not len(x):
        raise DataError(f"no examples in an array of shape {x.shape}; give some")
    if x.shape[1:] != shape or not x.ndim:
        wanted = ", ".join(["N", *map(str, shape)])
        raise DataError(f"shape {x.shape}, but the data needs ({wanted}); give alike")
    if x.dtype.kind not in "buif":
        raise DataError(f"values are {x.dtype}; give numbers")
    whole = x.dtype.kind != "f" and x.dtype != np.uint8
    return np.ascontiguousarray(x.astype(np.int64) if whole else x)


def _as_data(x: Tensor, scaling: Scaling) -> Tensor:
    """Shades (uint8) as levels; checked levels and real numbers unchanged."""
    levels = scaling.levels
    if x.dtype == torch.uint8:
        return levels_of(x, scaling)
    if (levels is None) != x.is_floating_point():
        wanted = "real numbers" if levels is None else f"{levels} levels"
        raise DataError(f"values are {x.dtype}, the data has {wanted}; convert them")
    if levels is None:
        return x.float()
    if int(x.min()) < 0 or int(x.max()) >= levels:
        found = f"{int(x.min())}..{int(x.max())}"
        raise DataError(f"levels run over {found}, expected 0..{levels - 1}; correct them")
    return x.int()
