"""Image files: folders of pictures, and lossless sheets of the CIFAR-10 subset."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scoresde.arguments import Count, Natural, Positive, check
from scoresde.data.arrays import read_arrays
from scoresde.data.cache import Parts, Source, gathered, stored
from scoresde.data.columns import Captions, Column
from scoresde.data.dataset import (
    DataError,
    Dataset,
    Split,
    held_rows,
    reading,
    require_folder,
)
from scoresde.data.idx import labelled_images
from scoresde.data.labels import label_values
from scoresde.data.metadata import Metadata, MissingCaption, OnMissing, Told, metadata_of
from scoresde.data.picture_layout import PictureLayout, layout_of
from scoresde.data.picture_sources import DamagedPicture, FolderAlbum, album, shown
from scoresde.data.scaling import Scaling
from scoresde.progress import Progress, silent

if TYPE_CHECKING:
    from PIL import Image, ImageFile

# Pillow's raw modes of two bytes per number, of which it would drop the lower one.
DEEP = re.compile(";16[BLN]$")
MODES = {"1": 1, "L": 1, "RGB": 3}
TILE = 32
PIECE = 2**25
"""Bytes of decoded pictures per piece."""

Convert = Callable[[bytes], np.ndarray]

# Formats that Pillow may open. It detects the format, and some decoders run other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")


def image_folder(
    path: Path | str,
    size: Count | None = None,
    channels: Literal[1, 3] | None = None,
    holdout: Positive = 0.1,
    seed: Natural = 0,
    on_error: Literal["raise", "skip"] = "raise",
    cache: Path | str | None = None,
    caption_column: str | None = "text",
    vector: Sequence[str] | None = None,
    on_missing: OnMissing = "refuse",
    progress: Progress = silent,
) -> Dataset:
    """Pictures of 256 levels in a folder, a .zip or .tar files; sub-folders are classes.

    Captions and numbers are read from metadata.jsonl, metadata.csv, or files beside the pictures
    (``scoresde.data.metadata``).

    Args:
        path: folder with the pictures or .tar files of them, or a .zip or .tar; none is extracted.
        size: side of the square to which pictures are cropped and resized; null requires pictures
            of one size.
        channels: 1 converts to grey, 3 to colour without transparency; null requires pictures of
            one kind.
        holdout: pictures held out for testing if there is no folder of them: a fraction below 1,
            or a number.
        seed: random seed of the held-out pictures.
        on_error: reaction to damaged pictures; skip leaves them out and counts them.
        cache: folder for the decoded pictures, which are then mapped into memory; null keeps
            them in memory only.
        caption_column: column of the captions in metadata; null reads no captions.
        vector: columns of numbers in metadata that are read as the condition vector.
        on_missing: reaction to a picture without a caption, where others have one; empty gives it
            an empty caption, skip leaves it out.
        progress: callback that shows the number of decoded pictures.

    Raises DataError for a folder without pictures, pictures that are damaged, differ or have no
    caption, or an archive with names that lead out of it.
    """
    check(image_folder, locals())
    path = Path(path).expanduser()
    with album(path) as pictures:
        with reading(path):
            layout = layout_of(pictures)
            entries = _entries(layout, holdout, seed)
            metadata = metadata_of(
                pictures, caption_column=caption_column, vector=vector, on_missing=on_missing
            )
        skips = ((DamagedPicture,) if on_error == "skip" else ()) + (
            (MissingCaption,) if on_missing == "skip" else ()
        )
        decode = partial(
            _decoded,
            metadata,
            entries,
            partial(picture_levels, size=size, channels=channels),
            labelled=bool(layout.classes),
            skips=skips,
            progress=progress,
        )
        with reading(path) if skips else nullcontext():
            if cache is None:
                found = gathered(decode)
            else:
                options: dict[str, Any] = {"size": size, "channels": channels}
                options |= {"holdout": holdout, "seed": seed, "on_error": on_error}
                options["classes"] = layout.classes
                options |= {"caption_column": caption_column, "vector": vector}
                options["on_missing"] = on_missing
                names = [entry.name for entry in entries]
                files = [*([layout.index] if layout.index else []), *metadata.files]
                marks = pictures.marks([*files, *names, *metadata.beside(names)])
                found = stored(Path(cache).expanduser(), Source(options, marks), decode)
    kind = "damaged" if on_missing != "skip" else "damaged or uncaptioned"
    with reading(path):
        return Dataset(
            path.resolve().name.removesuffix(".zip").removesuffix(".tar"),
            found.train,
            found.test,
            Scaling(256),
            layout.classes or None,
            (*layout.notes, *metadata.notes, *_notes(found, kind)),
            len(found.skipped),
        )


def _notes(parts: Parts, kind: str) -> tuple[str, ...]:
    if not (n := len(parts.skipped)):
        return parts.notes
    few = ", ".join(map(shown, parts.skipped[:3])) + (", ..." if n > 3 else "")
    return (*parts.notes, f"left out {n} {kind} picture{'s' * (n > 1)}: {few}")


def cifar_subset(path: Path | str) -> Dataset:
    """Colour images (3, 32, 32) of 256 levels from sheets of tiles in row-major order.

    The folder has ``train-*.webp`` and ``test-*.webp`` (lossless; sides are multiples of 32),
    ``train-labels.npy`` and ``test-labels.npy``, and optionally ``classes.txt``.

    Args:
        path: folder with the sheets and their labels.

    Raises DataError for files that are missing, damaged or do not belong together.
    """
    path = Path(path).expanduser()
    with reading(path):
        require_folder(path)
    parts = [_sheets(path, part) for part in ("train", "test")]
    with reading(path):
        return labelled_images(path, parts)


def open_image(content: bytes) -> Image.Image:
    """Decode the bytes of a picture file, and rotate it upright.

    Raises DamagedPicture if it is damaged or far too large, DataError for more than 256 levels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, which does not affect pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # Only verify() checks the CRCs of a PNG, and it cannot be followed by load().
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                image.verify()
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                _require_shades(image)
                with silenced() if image.format == "TIFF" else nullcontext():
                    image.load()
                return ImageOps.exif_transpose(image)
        except DataError:
            raise
        except Exception as error:  # decoders raise many types
            reason = ascii(str(error).partition("\n")[0] or type(error).__name__)[1:-1][:120]
            if isinstance(error, UnidentifiedImageError):  # its message is an object address
                reason = "of no known format" if content else "empty"
            message = f"not a usable picture ({reason}); replace or remove it"
            raise DamagedPicture(message) from error


def _require_shades(image: ImageFile.ImageFile) -> None:
    """Raise DataError for more than 256 levels, because decoding would drop the low bits."""
    modes = [image.mode, *(_raw_mode(tile[3]) for tile in image.tile)]
    deep = [mode for mode in modes if mode.startswith(("I", "F")) or DEEP.search(mode)]
    if deep:
        remedy = "save it with 8 bits, or use arrays() with levels"
        raise DataError(f"mode {deep[0]} has more than 256 levels; {remedy}")


def _raw_mode(arguments: object) -> str:
    """The mode of the file: the first string among the arguments of Pillow's decoder."""
    first = arguments[:1] if isinstance(arguments, tuple) else (arguments,)
    return next((word for word in first if isinstance(word, str)), "")


@contextmanager
def silenced() -> Iterator[None]:
    """Discard output of C code to standard error, where libtiff reports every odd tag."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        original = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)


@dataclass(frozen=True)
class Entry:
    """A picture to decode: its name, its label, and True if it is for testing."""

    name: str
    label: int
    test: bool


Picture = tuple[Entry, np.ndarray, Told]
"""An entry, its pixels, uint8 (C, H, W), and what is said of it."""


def _entries(layout: PictureLayout, holdout: float, seed: int) -> list[Entry]:
    """The pictures of both splits, training pictures first."""
    train, test = layout.train, layout.test
    if test is None:
        with reading("no folder of pictures for testing, so holdout"):
            rows = held_rows(len(train), holdout, seed)
        train, test = ([layout.train[i] for i in part.tolist()] for part in rows)
    number = {name: k for k, name in enumerate(layout.classes or ("",))}
    return [
        Entry(name, number[group], held)
        for held, part in ((False, train), (True, test))
        for group, name in part
    ]


def _decoded(
    metadata: Metadata,
    entries: list[Entry],
    convert: Convert,
    skipped: list[str],
    *,
    labelled: bool,
    skips: tuple[type[DataError], ...],
    progress: Progress,
) -> Iterator[tuple[bool, Split]]:
    """Decode the pictures in pieces; the names of those that raise ``skips`` go to ``skipped``."""
    with progress(len(entries), "decoding pictures") as advance:
        found = _pictures(metadata, entries, convert, skipped, skips, advance)
        for test, part in groupby(found, lambda picture: picture[0].test):
            for piece in _pieces(part):
                yield test, _split(piece, labelled)


def _pictures(
    metadata: Metadata,
    entries: list[Entry],
    convert: Convert,
    skipped: list[str],
    skips: tuple[type[DataError], ...],
    advance: Callable[[int], object],
) -> Iterator[Picture]:
    """Decode the pictures; raise for different shapes, and for damage unless it is skipped."""
    first: Picture | None = None
    album = metadata.album
    for entry in entries:
        try:
            with reading(album.where(entry.name)):
                pixels = convert(album.read(entry.name))
                told = metadata.told(entry.name)
        except skips:
            skipped.append(entry.name)
            continue
        finally:
            advance(1)
        first = first or (entry, pixels, told)
        if pixels.shape != first[1].shape:
            raise DataError(
                f"{album.where(entry.name)}: (C, H, W) is {pixels.shape} but {first[1].shape} in "
                f"{album.where(first[0].name)}; give size or channels"
            )
        yield entry, pixels, told


def _pieces(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    """Group pictures into pieces of PIECE bytes."""
    piece: list[Picture] = []
    for picture in pictures:
        piece.append(picture)
        if len(piece) * picture[1].nbytes >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _split(piece: list[Picture], labelled: bool) -> Split:
    entries, pixels, told = zip(*piece, strict=True)
    columns: dict[str, Column] = {}
    captions, vectors = zip(*told, strict=True)
    if captions[0] is not None:
        columns["text"] = Captions.of(captions)
    if vectors[0] is not None:
        columns["vector"] = torch.tensor(vectors, dtype=torch.float32)
    label = torch.tensor([entry.label for entry in entries]) if labelled else None
    return Split(torch.from_numpy(np.stack(pixels)), label, columns=columns)


def picture_levels(
    content: bytes,
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
) -> np.ndarray:
    """The pixels, uint8 (C, H, W), of a picture in a file's bytes. Raises DataError.

    ``size`` is the side of a square, or (width, height), to which it is cropped and resized.
    """
    from PIL import Image, ImageOps

    image = open_image(content)
    if channels is None and image.mode not in MODES:
        remedy = "save it as one of them, or give channels=1 or 3"
        raise DataError(f"mode {image.mode} is neither grey nor RGB; {remedy}")
    image = image.convert("L" if (channels or MODES[image.mode]) == 1 else "RGB")
    if size is not None:
        size = (size, size) if isinstance(size, int) else size
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _sheets(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(folder.glob(f"{part}-*.webp"))
    if not files:
        raise DataError(f"{folder}: no {part}-*.webp; check the path")
    x = np.concatenate([tiles(file) for file in files])
    labels = folder / f"{part}-labels.npy"
    with reading(labels):
        y = label_values(read_arrays(labels)["x"])
        if y.shape != (len(x),):
            raise DataError(f"{len(x)} examples but labels of shape {y.shape}; get both anew")
        return x, y


def tiles(file: Path, side: int = TILE) -> np.ndarray:
    """The square tiles of a sheet, uint8 (N, 3, side, side), row by row. Raises DataError."""
    with reading(file):
        sheet = np.asarray(open_image(FolderAlbum(file.parent).read(file.name)).convert("RGB"))
        down, across = (length // side for length in sheet.shape[:2])
        if sheet.shape[:2] != (down * side, across * side):
            raise DataError(
                f"sides {sheet.shape[:2]} are no multiples of {side}; get the file anew"
            )
    found = sheet.reshape(down, side, across, side, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(found).reshape(-1, 3, side, side)
