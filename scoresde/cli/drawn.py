"""Samples to evaluate: those of a folder or file, or drawn now from a trained model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.build import LoadedRun, build_sampler
from scoresde.build.optimised import wanted
from scoresde.cli.console import progress
from scoresde.cli.pictures import RECORD
from scoresde.cli.sample import draw, optimised_grid
from scoresde.config import Config, to_plain
from scoresde.data import DataError, Dataset, Scaling
from scoresde.data.arrays import read_arrays
from scoresde.data.dataset import reading
from scoresde.data.images import MODES, SUFFIXES, open_image

ARRAYS = "samples.npz"
PICTURE = re.compile(r"\d{6,}\.png")


@dataclass(frozen=True)
class Samples:
    """Samples (N, ...) as the data set has its examples, and where they come from."""

    x: Tensor
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_samples(path: Path, dataset: Dataset) -> Samples:
    """The samples of a folder that ``scoresde sample`` wrote, any folder of pictures, or an array.

    Pictures become levels of the data set again. Those that an interrupted run left unfinished
    are left out, which is noted. Raises DataError, naming the file, for samples of another shape
    or other levels, for NaN or infinity, and for none.
    """
    with reading(path):
        if not path.exists():
            raise DataError("no such file or folder; check the path")
    record = sample_record(path)
    x = _of_folder(path, record, dataset) if path.is_dir() else _of_arrays(path, dataset)
    unfinished = min(int(record.get("unfinished", 0)), len(x))
    notes = (f"{path}: {unfinished} unfinished samples left out",) if unfinished else ()
    if unfinished == len(x):
        raise DataError(f"{path}: no finished samples; draw them anew")
    return Samples(x[: len(x) - unfinished], {"source": str(path)}, notes)


def sample_record(path: Path) -> dict[str, Any]:
    """What ``scoresde sample`` noted in the folder, or beside the file; empty if nothing."""
    try:
        record = (path if path.is_dir() else path.parent) / RECORD
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(found, dict) and isinstance(found.get("files"), list)
    return found if ours and (path.is_dir() or path.name in found["files"]) else {}


def draw_samples(
    loaded: LoadedRun,
    config: Config,
    num: int,
    seed: int,
    batch: int,
    labels: Tensor | None,
) -> Samples:
    """Samples of a model by the sampler of its configuration, from seeds ``seed``, ``seed + 1``...

    ``labels`` (M,) are those that a model with classes is given, in turn. Raises as ``draw``
    does.
    """
    want = wanted(config.sample)
    grid = None if want is None else optimised_grid(loaded, want)
    sampler, seeds = build_sampler(config.sample, grid), range(seed, seed + num)
    given = None if labels is None else labels[torch.arange(num) % len(labels)]
    shape, kind = loaded.data.shape, config.sample.sampler.kind
    with progress(num, "samples") as advance:
        drawn = draw(
            loaded.model, sampler, shape, seeds, given, name=kind, batch=batch, advance=advance
        )
    settings = {
        "checkpoint": str(loaded.source),
        "step": loaded.step,
        "nfe": drawn.nfe,
        **to_plain(config)["sample"],
    }
    return Samples(loaded.data.scaling.decode(drawn.x), settings)


def levels_of(pictures: Tensor, scaling: Scaling) -> Tensor:
    """The levels that ``Scaling.to_uint8`` made the pictures from. Raises DataError for others."""
    levels = scaling.levels
    if levels is None or levels > 256:
        kind = "real numbers" if levels is None else f"{levels} levels"
        raise DataError(f"pictures of 256 levels do not hold {kind}; draw with --checkpoint")
    shades = scaling.to_uint8(scaling.encode(torch.arange(levels))).long()
    level = torch.full((256,), -1).index_put((shades,), torch.arange(levels))[pictures.long()]
    if bool((level < 0).any()):
        wrong = int(pictures[level < 0][0])
        few = ", ".join(map(str, shades[:3].tolist()))
        raise DataError(
            f"holds the shade {wrong}, none of the {levels} of the data ({few}, ...); "
            "give samples of this data set"
        )
    return level.to(torch.uint8)


def _of_folder(folder: Path, record: Mapping[str, Any], dataset: Dataset) -> Tensor:
    files = _pictures(folder, record)
    if not files and (folder / ARRAYS).is_file():
        return _of_arrays(folder / ARRAYS, dataset)
    with reading(folder):
        if not files:
            raise DataError(f"no pictures and no {ARRAYS}; name what `scoresde sample` wrote")
    images = np.stack([_pixels(file, tuple(dataset.shape)) for file in files])
    with reading(folder):
        return levels_of(torch.from_numpy(images), dataset.scaling)


def _pictures(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The pictures a record lists; without one, all below the folder, sorted by path."""
    if record:
        return [folder / name for name in record["files"] if PICTURE.fullmatch(str(name))]
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _pixels(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A picture as uint8 (C, H, W), which must be of the shape."""
    with reading(file):
        image = open_image(file)
        if image.mode not in MODES:
            raise DataError(f"mode {image.mode} is neither grey nor RGB; convert it")
        pixels = np.asarray(image.convert("L" if MODES[image.mode] == 1 else "RGB"))
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if pixels.shape != shape:
            raise DataError(f"(C, H, W) is {pixels.shape}, the data has {shape}; give alike")
        return pixels


def _of_arrays(file: Path, dataset: Dataset) -> Tensor:
    with reading(file):
        x = torch.from_numpy(_like(read_arrays(file)["x"], tuple(dataset.shape)))
        if not x.is_floating_point():
            if x.dtype != torch.uint8:
                raise DataError(f"values are {x.dtype}; give pictures as uint8")
            return levels_of(x, dataset.scaling)
        if dataset.scaling.levels is not None:
            raise DataError(f"values are {x.dtype}; the data has levels: give pictures as uint8")
        if bad := int((~torch.isfinite(x)).flatten(1).any(1).sum()):
            raise DataError(f"{bad} of {len(x)} samples hold NaN or infinity; leave those out")
        return x.float()


def _like(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Samples (N, *shape), channels first; those of images may have them last, or none for one."""
    if x.ndim == 4 and (x.shape[-1], *x.shape[1:-1]) == shape:
        x = np.moveaxis(x, -1, 1)
    elif x.ndim == 3 and (1, *x.shape[1:]) == shape:
        x = x[:, None]
    if x.shape[1:] != shape or len(x) == 0:
        raise DataError(f"samples are {x.shape}, the data has examples {shape}; give alike")
    return np.ascontiguousarray(x)
