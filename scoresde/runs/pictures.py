"""The folder that ``scoresde sample`` writes: pictures, a grid, arrays and their settings."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import writing
from scoresde.runs.watch import Seen
from scoresde.data import Scaling
from scoresde.data.foreign import RECORD
from scoresde.evaluation import image_grid, scatter
from scoresde.evaluation.figures import save_gif, save_png

NAMES = re.compile(
    r"(\d{6,}\.png|grid\.png|scatter\.png|samples\.npz|trajectory\.(npz|gif)|sample\.json)(\.tmp)?"
)
PREVIEWS = "previews"
GRID_ROWS = 16
GRID_COLUMNS = 16

Make = Callable[[Path], object]
"""Writes a file."""


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise ValueError unless samples may go into the folder.

    Files that no ``sample.json`` there lists are somebody else's: they stay, whatever the flags.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, not a folder; give another --out")
    taken = {path.name for path in folder.glob("*") if NAMES.fullmatch(path.name)}
    if strange := sorted(taken - _earlier(folder)):
        raise ValueError(
            f"{folder}: holds {strange[0]}, which no {RECORD} there lists; give another --out"
        )
    if taken and not overwrite:
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
    extra: Mapping[str, Make] | None = None,
) -> None:
    """Replace the samples in the folder by ``x``: images (N, C, H, W) or vectors (N, D).

    Everything is written beside the earlier files before any of them is replaced, and
    ``sample.json``, which lists them, comes last. Raises OSError as the disk does; the earlier
    samples are then untouched.
    """
    chosen = None if labels is None else labels.tolist()
    own = list(_each(settings, seeds, chosen))
    files = _files(x, scaling, labels, own, settings, npz=npz) | dict(extra or {})
    record = dict(settings) | {"seeds": list(seeds), "labels": chosen, "files": list(files)}
    text = json.dumps(record, indent=2) + "\n"
    earlier = _earlier(folder)
    with writing(folder):
        # The record comes first among the new files, so that none is ever without one.
        _write_beside(folder, {RECORD: lambda file: file.write_text(text), **files})
        for name in files:
            os.replace(_beside(folder, name), folder / name)
        for name in earlier - {*files, RECORD, f"{RECORD}.tmp"}:
            (folder / name).unlink(missing_ok=True)
        os.replace(_beside(folder, RECORD), folder / RECORD)


def save_preview(folder: Path, seen: Seen, scaling: Scaling, labels: Tensor | None) -> None:
    """The denoised state at a network call, as a picture in ``previews``, replaced as a whole."""
    make = _picture(seen.x0.cpu(), scaling, labels)
    if make is None:
        return
    target = folder / PREVIEWS / f"call-{seen.call:04d}.png"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part.png")
        make(part)
        os.replace(part, target)


def trajectory_files(
    calls: Sequence[Seen], scaling: Scaling, labels: Tensor | None
) -> dict[str, Make]:
    """Arrays of every network call, t (N,), x and x0 (N, B, ...), and of images a film of x0."""
    t = torch.stack([call.t.flatten()[0] for call in calls]).numpy()
    x = torch.stack([call.x for call in calls]).numpy()
    x0 = torch.stack([call.x0 for call in calls]).numpy()

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, t=t, x=x, x0=x0)

    files: dict[str, Make] = {"trajectory.npz": save}
    if calls[0].x0.ndim == 4 and calls[0].x0.shape[1] in (1, 3):
        rows = None if labels is None else labels[: len(calls[0].x0)]
        frames = [_grid(scaling.to_uint8(call.x0), rows) for call in calls]
        files["trajectory.gif"] = partial(save_gif, frames=frames)
    return files


def _picture(x: Tensor, scaling: Scaling, labels: Tensor | None) -> Make | None:
    """A grid of images or a scatter plot; None for data of other shapes."""
    if x.ndim == 4 and x.shape[1] in (1, 3):
        grid = _grid(scaling.to_uint8(x), None if labels is None else labels[: len(x)])
        return lambda path: save_png(path, grid)
    if x.ndim == 2 and x.shape[1] == 2:
        return partial(scatter, panels={"samples": x})
    return None


def _write_beside(folder: Path, files: Mapping[str, Make]) -> None:
    """Write every file under its temporary name, all of them or none."""
    try:
        for name, make in files.items():
            make(_beside(folder, name))
    except BaseException:
        for name in reversed(list(files)):
            _beside(folder, name).unlink(missing_ok=True)
        raise


def _beside(folder: Path, name: str) -> Path:
    return folder / f"{name}.tmp"


def _earlier(folder: Path) -> set[str]:
    """The names that ``write`` has used there, those of an interrupted one included."""
    names = _listed(folder / RECORD) | _listed(_beside(folder, RECORD))
    return names | {f"{name}.tmp" for name in names}


def _listed(record: Path) -> set[str]:
    """The names in a record, its own included; none if it is not one of ours."""
    try:
        names = json.loads(record.read_text(encoding="utf-8"))["files"]
        ours = all(NAMES.fullmatch(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return {*names, RECORD} if ours else set()


def _files(
    x: Tensor,
    scaling: Scaling,
    labels: Tensor | None,
    own: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    npz: bool,
) -> dict[str, Make]:
    """What to write, by name: pictures and a grid, or arrays and, in the plane, a scatter plot."""
    if x.ndim == 4 and x.shape[1] in (1, 3):
        images = scaling.to_uint8(x)
        grid = _grid(images, labels)
        files: dict[str, Make] = {
            f"{i:06d}.png": partial(_save, pixels=_pixels(image), settings=own[i])
            for i, image in enumerate(images)
        }
        files["grid.png"] = partial(_save, pixels=grid, settings=settings)
        x = images.permute(0, 2, 3, 1)
    else:
        npz, files = True, {}
        if x.ndim == 2 and x.shape[1] == 2:
            files["scatter.png"] = partial(scatter, panels={"samples": x})
    if npz:
        files["samples.npz"] = partial(_save_arrays, x=x, labels=labels)
    return files


def _save_arrays(path: Path, x: Tensor, labels: Tensor | None) -> None:
    """The names of guided-diffusion: arr_0 the samples, arr_1 the labels."""
    found = [x.numpy()] if labels is None else [x.numpy(), labels.numpy()]
    with path.open("wb") as file:  # of a path numpy would make NAME.npz
        np.savez(file, *found)


def _each(
    settings: Mapping[str, Any], seeds: Sequence[int], labels: Sequence[int] | None
) -> Iterator[dict[str, Any]]:
    for i, seed in enumerate(seeds):
        yield dict(settings) | {"seed": seed, "label": None if labels is None else labels[i]}


def _pixels(image: Tensor) -> np.ndarray:
    """An image (C, H, W) as Pillow takes it: (H, W), or (H, W, 3)."""
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()


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
