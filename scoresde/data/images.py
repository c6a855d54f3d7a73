"""Image files: folders of pictures, and the lossless sheets of the CIFAR-10 subset."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from scoresde.data.arrays import integer_labels, read_arrays
from scoresde.data.dataset import (
    DataError,
    Dataset,
    Split,
    listed_classes,
    numbered_classes,
    reading,
)
from scoresde.data.dataset import holdout as hold_out
from scoresde.data.scaling import Scaling

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MODES = {"1": 1, "L": 1, "RGB": 3}
TILE = 32

# Those of the suffixes: Pillow goes by the content, and some of its formats start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")


def image_folder(
    path: Path | str,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    holdout: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Pictures of 256 levels below a folder; its sub-folders, sorted by name, are the classes.

    Folders `train/` and `test/` are the two splits if both are there, else `holdout` (count or
    fraction) pictures are held out by a permutation fixed by `seed`. Pictures right in the
    folder have no class. Files are sorted by path; hidden ones and other suffixes are passed
    over. `size` crops the middle square and resizes it; None expects pictures of one size.
    `channels` converts to grey (1) or colour (3), dropping transparency; None takes them as they
    are. Raises DataError for a folder without pictures, and for one that is damaged or differs.
    """
    path = Path(path)
    with reading(path):
        if not path.is_dir():
            raise DataError("no such folder; check the path")
        whole = not ((path / "train").is_dir() and (path / "test").is_dir())
    roots = [path] if whole else [path / "train", path / "test"]
    files = [picture_files(root) for root in roots]
    names = sorted({name for found in files for name, _ in found})
    if "" in names and len(names) > 1:
        raise DataError(
            f"{path}: only one of train/ and test/ has class folders; give both the same"
        )
    pairs = zip(roots, files, strict=True)
    splits = [_split(root, found, names, size, channels) for root, found in pairs]
    with reading(path):
        train, test = _held_out(splits[0], holdout, seed) if whole else splits
        classes = tuple(names) if names != [""] else None
        return Dataset(path.resolve().name, train, test, Scaling(256), classes)


def cifar_subset(path: Path | str) -> Dataset:
    """Colour images (3, 32, 32) of 256 levels from sheets of tiles, read row by row.

    The folder holds `train-*.webp` and `test-*.webp` (lossless; sides are multiples of 32),
    `train-labels.npy` and `test-labels.npy`, and may hold `classes.txt`. Raises DataError.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; check the path")
    train, test = _sheets(path, "train"), _sheets(path, "test")
    with reading(path):
        classes = listed_classes(path) or numbered_classes(train, test)
        return Dataset(path.resolve().name, train, test, Scaling(256), classes)


def open_image(path: Path) -> Image.Image:
    """The decoded picture in `path`, turned upright; DataError if damaged or far too large."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which no pixel depends on
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # Decoding does not compare a PNG's checksums; verify() does, and uses the file up.
            with Image.open(path, formats=FORMATS) as image:
                image.verify()
            with Image.open(path, formats=FORMATS) as image:
                with silenced() if image.format == "TIFF" else nullcontext():
                    image.load()
                return ImageOps.exif_transpose(image)
        except Exception as error:  # decoders raise whatever they stumble over
            reason = ascii(str(error).partition("\n")[0] or type(error).__name__)[1:-1][:120]
            raise DataError(f"not a usable picture ({reason}); replace or remove it") from error


@contextmanager
def silenced() -> Iterator[None]:
    """Without what C code writes to standard error, as libtiff does about every odd tag."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _held_out(split: Split, size: int | float, seed: int) -> tuple[Split, Split]:
    with reading("no folders train/ and test/, so holdout"):
        return hold_out(split, size, seed)


def picture_files(root: Path) -> list[tuple[str, Path]]:
    """(class, file) of every picture below `root`, in an order that depends on the names alone."""
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    loose = [("", p) for p in entries if _is_picture(p)]
    nested = [(folder.name, p) for folder in entries if folder.is_dir() for p in _below(folder)]
    with reading(root):
        if loose and nested:
            raise DataError(f"{len(loose)} pictures beside the class folders; move them into one")
        if not loose and not nested:
            raise DataError(f"no pictures ({' '.join(SUFFIXES)}); check the path")
    return loose or nested


def _below(folder: Path) -> list[Path]:
    names = (p.relative_to(folder) for p in folder.rglob("*") if _is_picture(p))
    visible = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return [folder / name for name in sorted(visible)]


def _is_picture(p: Path) -> bool:
    # A dangling link is no file, and so is passed over.
    return p.suffix.lower() in SUFFIXES and p.is_file()


def _split(
    root: Path,
    files: list[tuple[str, Path]],
    names: list[str],
    size: int | None,
    channels: Literal[1, 3] | None,
) -> Split:
    pictures = [read_picture(file, size, channels) for _, file in files]
    for (_, file), pixels in zip(files, pictures, strict=True):
        if pixels.shape != pictures[0].shape:
            found, first = pixels.shape, pictures[0].shape
            raise DataError(
                f"{file}: (C, H, W) is {found} but {first} in {files[0][1]}; give size or channels"
            )
    label = torch.tensor([names.index(name) for name, _ in files])
    with reading(root):
        return Split(torch.from_numpy(np.stack(pictures)), None if names == [""] else label)


def read_picture(
    file: Path, size: int | None = None, channels: Literal[1, 3] | None = None
) -> np.ndarray:
    """The shades of a picture, uint8 (C, H, W), as ``image_folder`` takes it; or DataError."""
    from PIL import Image, ImageOps

    with reading(file):
        image = open_image(file)
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"mode {image.mode} has more than 256 levels; use arrays() with levels"
            )
        if channels is None and image.mode not in MODES:
            raise DataError(f"mode {image.mode} is neither grey nor RGB; give channels=1 or 3")
        image = image.convert("L" if (channels or MODES[image.mode]) == 1 else "RGB")
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _sheets(folder: Path, part: str) -> Split:
    files = sorted(folder.glob(f"{part}-*.webp"))
    if not files:
        raise DataError(f"{folder}: no {part}-*.webp; check the path")
    x = np.concatenate([_tiles(file) for file in files])
    labels = folder / f"{part}-labels.npy"
    with reading(labels):
        return Split(torch.from_numpy(x), integer_labels(read_arrays(labels)["x"]))


def _tiles(file: Path) -> np.ndarray:
    with reading(file):
        sheet = np.asarray(open_image(file).convert("RGB"))
        down, across = (side // TILE for side in sheet.shape[:2])
        if sheet.shape[:2] != (down * TILE, across * TILE):
            raise DataError(
                f"sides {sheet.shape[:2]} are no multiples of {TILE}; get the file anew"
            )
    tiles = sheet.reshape(down, TILE, across, TILE, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles).reshape(-1, 3, TILE, TILE)
