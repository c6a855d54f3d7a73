"""Examples judged as those of a known data set: pictures in a folder, arrays, own samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.arrays import channels_first, integer_labels, read_arrays
from scoresde.data.dataset import DataError, Split, reading
from scoresde.data.images import picture_files, read_picture
from scoresde.data.scaling import Scaling

SHADES = 256
ARRAYS = (".npz", ".npy")


def examples(path: Path | str, shape: tuple[int, ...], scaling: Scaling) -> Split:
    """The examples at a path, as levels or numbers of a data set of this shape and scaling.

    A folder of pictures, of which one written by ``scoresde sample`` lists its own; or arrays
    ``x`` (``arr_0``) and labels ``y``. Pictures and uint8 arrays show fewer levels than 256
    stretched over all shades, as the samples of this program are. Raises DataError for other
    shapes, shades between the levels, numbers that are not finite, and whatever cannot be read.
    """
    path = Path(path)
    with reading(path):
        if not path.exists():
            raise DataError("no such file or folder; check the path")
        if path.is_dir() and len(shape) != 3:
            return examples(path / "samples.npz", shape, scaling)
    found = _pictures(path, shape) if path.is_dir() else _arrays(path)
    with reading(path):
        if found.x.shape[1:] != torch.Size(shape):
            raise DataError(
                f"examples are {tuple(found.x.shape[1:])}, those of the model {tuple(shape)}; "
                "give the same kind of data"
            )
        return Split(_leveled(found.x, scaling), found.label)


def _pictures(folder: Path, shape: tuple[int, ...]) -> Split:
    channels: Literal[1, 3] = 1 if shape[0] == 1 else 3
    files = _listed(folder) or [file for _, file in picture_files(folder)]
    pixels = [read_picture(file, channels=channels) for file in files]
    for file, picture in zip(files, pixels, strict=True):
        if picture.shape != tuple(shape):
            raise DataError(f"{file}: (C, H, W) is {picture.shape}, expected {tuple(shape)}")
    return Split(torch.from_numpy(np.stack(pixels)), _labels_of(folder, len(files)))


def _listed(folder: Path) -> list[Path]:
    """The pictures of single samples that a ``sample.json`` there lists."""
    names = _record(folder).get("files", [])
    return sorted(folder / name for name in names if Path(str(name)).stem.isdecimal())


def _labels_of(folder: Path, n: int) -> Tensor | None:
    labels = _record(folder).get("labels")
    return torch.tensor(labels) if isinstance(labels, list) and len(labels) == n else None


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _arrays(path: Path) -> Split:
    with reading(path):
        if path.suffix not in ARRAYS:
            raise DataError(f"neither a folder nor one of {' '.join(ARRAYS)}; check the path")
        found = read_arrays(path)
        x = found["x"]
        if x.dtype.kind not in "uif" or x.ndim < 2 or not x.size:
            raise DataError(f"an array of {x.dtype} {x.shape}; expected examples (N, ...)")
        x = channels_first(x, None) if x.ndim > 2 and x.dtype.kind != "f" else x
        if x.dtype.kind != "f" and x.dtype != np.uint8:
            x = x.astype(np.int32)
        label = integer_labels(found["y"]) if "y" in found else None
        return Split(torch.from_numpy(np.ascontiguousarray(x)), label)


def _leveled(x: Tensor, scaling: Scaling) -> Tensor:
    """Levels of shades or of levels, numbers as they are."""
    levels = scaling.levels
    if (levels is None) != x.is_floating_point():
        wanted = "real numbers" if levels is None else f"{levels} levels"
        raise DataError(f"values are {x.dtype}, the model is of {wanted}; convert them")
    if levels is None:
        return x.float()
    if x.dtype == torch.uint8 and levels < SHADES:
        k = (x.double() * (levels - 1) / (SHADES - 1)).round()
        if not bool(((k * (SHADES - 1) / (levels - 1)).round() == x).all()):
            raise DataError(f"shades between the {levels} levels of the model; give its own kind")
        return k.to(torch.uint8)
    if int(x.min()) < 0 or int(x.max()) >= levels:
        found = f"{int(x.min())}..{int(x.max())}"
        raise DataError(f"levels run over {found}, expected 0..{levels - 1}; correct them")
    return x
