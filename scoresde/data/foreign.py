"""Examples judged as those of a known data set: pictures in a folder, arrays, own samples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.data.arrays import read_arrays
from scoresde.data.dataset import DataError, Split, reading
from scoresde.data.images import read_picture
from scoresde.data.labels import MOST_CLASSES, label_values
from scoresde.data.picture_sources import picture_files
from scoresde.data.scaling import Scaling

RECORD, ARRAYS = "sample.json", "samples.npz"
PICTURE = re.compile(r"\d{6,}\.png")
SUFFIXES = (".npz", ".npy")
SHADES = 256


def examples(path: Path | str, shape: tuple[int, ...], scaling: Scaling) -> Split:
    """The examples at a path, as levels or numbers of a data set of this shape and scaling.

    A folder of pictures or ``samples.npz``; of one written by ``scoresde sample`` those that its
    record lists and that were finished, with their labels; or a file of arrays ``x`` (``arr_0``)
    and ``y`` (``arr_1``). Shades become levels again. Raises DataError for other shapes, shades
    between the levels, numbers that are not finite, and whatever cannot be read.
    """
    path, shape = Path(path), tuple(shape)
    with reading(path):
        if not path.exists():
            raise DataError("no such file or folder; check the path")
    found = _of_folder(path, shape) if path.is_dir() else _of_arrays(path, shape)
    with reading(path):
        split = Split(_as_data(found.x, scaling), found.label)
        finished = len(split) - unfinished(path, len(split))
        if not finished:
            raise DataError("no finished samples; draw them anew")
        return split.take(torch.arange(finished))


def sample_record(path: Path) -> dict[str, Any]:
    """What ``scoresde sample`` noted in the folder, or beside the file; empty if nothing."""
    try:
        record = (path if path.is_dir() else path.parent) / RECORD
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(found, dict) and isinstance(found.get("files"), list)
    return found if ours and (path.is_dir() or path.name in found["files"]) else {}


def unfinished(path: Path, n: int) -> int:
    """How many of ``n`` samples, the last ones, an interrupted run left unfinished."""
    noted = sample_record(path).get("unfinished", 0)
    if not isinstance(noted, int) or noted < 0:
        raise DataError(f"{RECORD}: unfinished is {noted!r}; draw the samples anew")
    return min(noted, n)


def levels_of(pictures: Tensor, scaling: Scaling) -> Tensor:
    """The levels that ``Scaling.to_uint8`` made the pictures from. Raises DataError for others."""
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


def _of_folder(folder: Path, shape: tuple[int, ...]) -> Split:
    record = sample_record(folder)
    files = [folder / name for name in record.get("files", ()) if PICTURE.fullmatch(str(name))]
    if not files and (folder / ARRAYS).is_file():
        return _of_arrays(folder / ARRAYS, shape)
    files = files or [file for _, file in picture_files(folder)]
    pictures = [read_picture(file) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != shape:
            raise DataError(f"{file}: (C, H, W) is {picture.shape}, the data has {shape}")
    with reading(folder):
        return Split(torch.from_numpy(np.stack(pictures)), _labels(record, len(files)))


def _labels(record: dict[str, Any], n: int) -> Tensor | None:
    labels = record.get("labels")
    if not isinstance(labels, list) or len(labels) != n:
        return None
    if not all(isinstance(label, int) and 0 <= label < MOST_CLASSES for label in labels):
        raise DataError(f"{RECORD}: labels are not 0, 1, ...; draw the samples anew")
    return torch.tensor(labels)


def _of_arrays(file: Path, shape: tuple[int, ...]) -> Split:
    with reading(file):
        if file.suffix not in SUFFIXES:
            raise DataError(f"neither a folder nor one of {' '.join(SUFFIXES)}; check the path")
        found = read_arrays(file)
        label = torch.from_numpy(label_values(found["y"])) if "y" in found else None
        return Split(torch.from_numpy(_like(found["x"], shape)), label)


def _like(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Examples (N, *shape), channels first; images may have them last, or none for one."""
    if x.ndim == 4 and (x.shape[-1], *x.shape[1:-1]) == shape:
        x = np.moveaxis(x, -1, 1)
    elif x.ndim == 3 and (1, *x.shape[1:]) == shape:
        x = x[:, None]
    if x.shape[1:] != shape or len(x) == 0:
        raise DataError(f"examples are {x.shape}, the data has {shape}; give alike")
    if x.dtype.kind not in "uif":
        raise DataError(f"values are {x.dtype}; give numbers")
    whole = x.dtype.kind != "f" and x.dtype != np.uint8
    return np.ascontiguousarray(x.astype(np.int64) if whole else x)


def _as_data(x: Tensor, scaling: Scaling) -> Tensor:
    """Levels of shades or of levels, numbers as they are."""
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
