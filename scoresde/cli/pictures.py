"""The folder that ``scoresde sample`` writes: pictures, a grid, arrays and their settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.data import Scaling
from scoresde.evaluation import image_grid, scatter

OWN = re.compile(r"\d{6,}\.png|grid\.png|scatter\.png|samples\.npz|sample\.json")
GRID_ROWS = 16
GRID_COLUMNS = 16


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if the folder holds samples that may not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, not a folder; give another --out")
    if next(_earlier(folder), None) is not None and not overwrite:
        raise ValueError(f"{folder}: holds samples; give another --out, or --overwrite")


def write(
    folder: Path,
    x: Tensor,
    scaling: Scaling,
    seeds: Sequence[int],
    labels: Tensor | None,
    settings: Mapping[str, Any],
    *,
    npz: bool,
) -> None:
    """Replace the samples in the folder by ``x``: images (N, C, H, W) or vectors (N, D)."""
    for path in list(_earlier(folder)):
        path.unlink()
    chosen = None if labels is None else labels.tolist()
    if x.ndim == 4 and x.shape[1] in (1, 3):
        images = scaling.to_uint8(x)
        _write_images(folder, images, labels, _each(settings, seeds, chosen))
        _save(folder / "grid.png", _grid(images, labels), settings)
        x = images.permute(0, 2, 3, 1)
    else:
        npz = True
        if x.ndim == 2 and x.shape[1] == 2:
            scatter(folder / "scatter.png", {"samples": x})
    if npz:
        _save_arrays(folder / "samples.npz", x, labels)
    record = dict(settings) | {"seeds": list(seeds), "labels": chosen}
    (folder / "sample.json").write_text(json.dumps(record, indent=2) + "\n")


def _save_arrays(path: Path, x: Tensor, labels: Tensor | None) -> None:
    """The names of guided-diffusion: arr_0 the samples, arr_1 the labels."""
    if labels is None:
        np.savez(path, x.numpy())
    else:
        np.savez(path, x.numpy(), labels.numpy())


def _earlier(folder: Path) -> Iterator[Path]:
    """The files of an earlier ``write``."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if OWN.fullmatch(path.name))


def _each(
    settings: Mapping[str, Any], seeds: Sequence[int], labels: Sequence[int] | None
) -> Iterator[dict[str, Any]]:
    for i, seed in enumerate(seeds):
        yield dict(settings) | {"seed": seed, "label": None if labels is None else labels[i]}


def _write_images(
    folder: Path, images: Tensor, labels: Tensor | None, settings: Iterator[Mapping[str, Any]]
) -> None:
    for i, (image, own) in enumerate(zip(images, settings, strict=True)):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        _save(folder / f"{i:06d}.png", pixels.numpy(), own)


def _grid(images: Tensor, labels: Tensor | None) -> np.ndarray:
    """A square of the first images, or a row a class."""
    if labels is None or len(labels.unique()) == 1:
        columns = min(math.ceil(math.sqrt(len(images))), GRID_COLUMNS)
        return image_grid(images[: columns * GRID_ROWS], columns)
    rows = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    columns = min(GRID_COLUMNS, *(len(row) for row in rows))
    return image_grid(images[torch.cat([row[:columns] for row in rows])], columns)


def _save(path: Path, pixels: np.ndarray, settings: Mapping[str, Any]) -> None:
    """Write a PNG that carries its settings as JSON text under the key ``scoresde``."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("scoresde", json.dumps(settings))
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG", pnginfo=info)
