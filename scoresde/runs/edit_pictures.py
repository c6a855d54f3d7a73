"""The pictures of an edit and the pixels that it paints, read from files and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import DataError, reading, require_there
from scoresde.data.foreign import examples, levels_of, picture_files
from scoresde.data.images import open_image, picture_levels
from scoresde.parameterization import ScoreModel

WHITE = 128
"""The least shade of a mask that is painted, as in other programs."""

Shape = tuple[int, ...]


def pictures_of(source: Any, model: ScoreModel, *others: Shape) -> Tensor:
    """The pictures (N, ...) of a source in units of the data.

    They are all of the size of the model, or all of one of the ``others``. Raises ValueError,
    naming both sizes, for pictures of another one.
    """
    if is_path(source) or (isinstance(source, list | tuple) and source and is_path(source[0])):
        paths = [source] if is_path(source) else source
        return _from_files([file for p in paths for file in picture_files(Path(p))], model, others)
    try:
        alike = isinstance(source, list | tuple) and source and torch.is_tensor(source[0])
        x = torch.stack(list(source)) if alike else torch.as_tensor(source)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"picture: need an array or paths of files, got {source!r:.60}") from None
    if model.data is None:
        if not x.is_floating_point() or x.ndim < 2:
            raise ValueError(
                f"picture: need real numbers (N, ...), got {x.dtype} {tuple(x.shape)}"
            )
        return x
    full = tuple(model.data.shape)
    x = x[None] if x.ndim == len(full) else x
    found = tuple(x.shape[1:])
    if not len(x) or found not in (full, *others):
        raise ValueError(f"picture: {_sizes(found, full, others)}")
    try:
        return examples(x, found, model.data.scaling).x
    except DataError as error:
        raise ValueError(f"picture: {error}") from None


def _from_files(files: Sequence[Path], model: ScoreModel, others: Sequence[Shape]) -> Tensor:
    if model.data is None or len(model.data.shape) != 3:
        raise ValueError("picture: files are for models of pictures; give arrays")
    full, found = tuple(model.data.shape), []
    for file in files:
        with reading(file):
            found.append(shades(file))
            shape = tuple(found[-1].shape)
            if shape not in (full, *others):
                raise DataError(_sizes(shape, full, others))
            if shape != tuple(found[0].shape):
                raise DataError(f"{_size(shape)}, {files[0]} {_size(found[0].shape)}; give alike")
            found[-1] = levels_of(found[-1], model.data.scaling)
    return torch.stack(found)


def shades(file: Path, modes: Sequence[str] = ("1", "L", "RGB")) -> Tensor:
    """The pixels of a picture, uint8 (C, H, W). Raises DataError for other modes of pixels."""
    require_there(file)
    image = open_image(file.read_bytes())
    if image.mode not in modes:
        wanted = "grey or RGB" if "RGB" in modes else "grey"
        raise DataError(f"its pixels are {image.mode}; save it as {wanted}")
    pixels = np.array(image.convert("L") if image.mode == "1" else image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))


def repainted(
    x: Tensor,
    model: ScoreModel,
    mask: Any = None,
    box: Sequence[int] | None = None,
    painted: Sequence[int] | None = None,
) -> Tensor:
    """True where pictures ``x`` (N, C, H, W) are painted anew, (1 or N, 1, H, W).

    Raises ValueError unless one of the three is given, and it paints a part of every picture.
    """
    if sum(given is not None for given in (mask, box, painted)) != 1:
        raise ValueError("mask: say what to paint by one of mask, box and painted")
    height, width = x.shape[2:]
    if box is not None:
        found, name = _inside(box, height, width), "box"
    elif painted is not None:
        found, name = _of_shade(x, model, painted), "painted"
    else:
        found, name = _of_mask(mask, height, width), str(mask) if is_path(mask) else "mask"
    some = found.flatten(1).any(1)
    if not bool(some.all()):
        which = f" in picture {int((~some).nonzero()[0, 0]) + 1}" if len(found) > 1 else ""
        rule = "it is black everywhere; white pixels are painted anew"
        rule = "no pixel has exactly this colour" if name == "painted" else rule
        raise ValueError(f"{name}: nothing to paint{which}, {rule}")
    if bool(found.flatten(1).all(1).any()):
        raise ValueError(f"{name}: no pixel is kept; draw makes whole pictures")
    return found


def _inside(box: Sequence[int], height: int, width: int) -> Tensor:
    corners = whole_numbers(box)
    if len(corners) != 4:
        raise ValueError(f"box: need x0,y0,x1,y1, such as 2,2,10,10, got {box}")
    x0, y0, x1, y1 = corners
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"box: {x0},{y0},{x1},{y1} is not inside {width} x {height} pixels; "
            f"need 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}"
        )
    found = torch.zeros(1, 1, height, width, dtype=torch.bool)
    found[..., y0:y1, x0:x1] = True
    return found


def _of_shade(x: Tensor, model: ScoreModel, painted: Sequence[int]) -> Tensor:
    colour = torch.as_tensor(painted)
    if colour.is_floating_point() or tuple(colour.shape) != (x.shape[1],):
        raise ValueError(f"painted: need {x.shape[1]} shades of 0 to 255, got {painted}")
    if not 0 <= int(colour.min()) <= int(colour.max()) <= 255:
        raise ValueError(f"painted: need shades of 0 to 255, got {painted}")
    try:
        levels = levels_of(colour.to(torch.uint8), model.data.scaling)
    except DataError as error:
        raise ValueError(f"painted: {error}") from None
    return (x == levels[:, None, None]).all(1, keepdim=True)


def _of_mask(mask: Any, height: int, width: int) -> Tensor:
    where = "mask"
    if is_path(mask):
        where = str(mask)
        with reading(where):
            found = shades(Path(mask).expanduser(), ("1", "L")) >= WHITE
    else:
        found = torch.as_tensor(mask)
        if found.dtype != torch.bool:
            if not bool(((found == 0) | (found == 1)).all()):
                raise ValueError("mask: need True or 1 where to paint, False or 0 elsewhere")
            found = found.bool()
    found = found[None] if found.ndim == 2 else found
    found = found[None] if found.ndim == 3 else found
    if found.ndim == 4 and len(found) > 1:
        raise ValueError(f"{where}: one mask is for all pictures, got {tuple(found.shape)}")
    if tuple(found.shape) != (1, 1, height, width):
        size = " x ".join(map(str, reversed(found.shape[-2:])))
        raise ValueError(
            f"{where}: the mask has {size} pixels and the picture {width} x {height}; "
            "give one of the size of the picture"
        )
    return found


def whole_numbers(values: Any) -> tuple[int, ...]:
    """The values as whole numbers; none if some are not."""
    try:
        return tuple(map(index, values))
    except TypeError:
        return ()


def is_path(value: Any) -> bool:
    """Whether a value names a file."""
    return isinstance(value, str | PathLike)


def _size(shape: Sequence[int]) -> str:
    """Such as "16 x 16 pixels and 3 channels"."""
    if len(shape) != 3:
        return f"shape {tuple(shape)}"
    channels, height, width = shape
    return f"{width} x {height} pixels and {channels} channel{'s' * (channels != 1)}"


def _sizes(found: Shape, full: Shape, others: Sequence[Shape]) -> str:
    also = "".join(f", or {_size(shape)}" for shape in others[:4])
    return f"it has {_size(found)}; this model needs {_size(full)}{also}"


def fitted(content: bytes, model: ScoreModel) -> Tensor:
    """A picture in a file's bytes as an example (C, H, W) of the data, cropped and resized.

    Its shades become the nearest levels. Raises ValueError for a model of other data.
    """
    shape = () if model.data is None else tuple(model.data.shape)
    levels = model.data.scaling.levels if len(shape) == 3 else None
    if levels is None or shape[0] not in (1, 3):
        raise ValueError("picture: files are for models of pictures of levels; give arrays")
    with reading("picture"):
        size = shape[2], shape[1]
        shades = torch.from_numpy(picture_levels(content, size, shape[0]).copy())
    found: Tensor = (shades.double() * (levels - 1) / 255).round().to(torch.uint8)
    return found
