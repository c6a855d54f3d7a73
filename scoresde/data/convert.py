"""Conversion of arrays to examples: channels first, integer levels, real numbers with scaling."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from scoresde.data.dataset import DataError, Split, spread
from scoresde.data.labels import listing
from scoresde.data.scaling import Scaling, standardising

Layout = Literal["NHW", "NHWC", "NCHW"]

# Number of levels implied by a dtype.
KNOWN_LEVELS = {"bool": 2, "uint8": 256}
# Common float encodings of pictures of 256 levels: level = slope x + offset.
FLOAT_SHADES = (
    (255.0, 0.0, "256 shades over [0, 1]"),
    (127.5, 127.5, "256 shades over [-1, 1]"),
    (1.0, 0.0, "whole numbers of 0 to 255"),
)


def channels_first(x: np.ndarray, layout: Layout | None) -> np.ndarray:
    """Images as (N, C, H, W) from ``layout``; None takes the one that fits.

    (N, H, W) is NHW; (N, a, b, c) is NHWC if only c is 1 or 3, NCHW if only a is. Raises
    DataError otherwise.
    """
    last, first = x.shape[-1] in (1, 3), x.shape[1] in (1, 3)
    if layout is None and x.ndim == 4 and last == first:
        raise DataError(
            f"shape {x.shape} may be NHWC or NCHW; give layout, of an array by "
            "ss.data.dataset_of(x, layout=...)"
        )
    layout = layout or ("NHW" if x.ndim == 3 else "NHWC" if last else "NCHW")
    if x.ndim != len(layout):
        raise DataError(f"expected {layout}, found shape {x.shape}; correct the array or layout")
    return {"NHW": x[:, None], "NHWC": np.moveaxis(x, -1, 1), "NCHW": x}[layout]


def level_images(x: np.ndarray, levels: int, layout: Layout | None) -> np.ndarray:
    """Pixel levels as (N, C, H, W), uint8 or int32. Raises DataError for levels out of range.

    Rows of 3072 numbers are images of CIFAR: red, green, blue, each 32 x 32.
    """
    if x.ndim == 2 and x.shape[1] == 3072:
        x, layout = x.reshape(-1, 3, 32, 32), "NCHW"
    if x.ndim not in (3, 4):
        side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
        square = f" ({x.shape[1]} = {side} x {side})" if side > 1 and side**2 == x.shape[1] else ""
        raise DataError(
            f"shape {x.shape} of {x.dtype}{square}; give images as NHW, vectors as floats"
        )
    if x.min() < 0 or x.max() >= levels:
        raise DataError(
            f"levels run over {x.min()}..{x.max()}, expected 0..{levels - 1}; correct levels"
        )
    return channels_first(x, layout).astype(np.uint8 if levels <= 256 else np.int32)


def known_levels(x: np.ndarray) -> int | None:
    """The number of levels implied by the dtype of an array; None for floats.

    Raises DataError, stating their range, for wider integers.
    """
    if x.dtype.kind == "f":
        return None
    if x.dtype.name in KNOWN_LEVELS:
        return KNOWN_LEVELS[x.dtype.name]
    if x.dtype.kind not in "iu":
        raise DataError(f"values are {x.dtype}; expected numbers")
    least, largest = (int(x.min()), int(x.max())) if x.size else (0, 0)
    if least < 0:
        raise DataError(
            f"values are {x.dtype} from {least} to {largest}, which are no pixel levels; give "
            f"floats for real numbers"
        )
    raise DataError(
        f"values are {x.dtype}, whose number of levels is unknown; give levels, above {largest}, "
        f"uint8 for 256 levels, or floats for real numbers"
    )


def examples_of(
    x: np.ndarray, levels: int | None, layout: Layout | None, *, as_given: bool = False
) -> np.ndarray:
    """Examples for a ``Split``: levels as uint8 or int32, real numbers as float32.

    Real numbers (N,) are N examples of one number; of three or four axes they are images, unless
    ``as_given`` preserves their axes. Raises DataError for other dtypes and shapes.
    """
    if x.dtype.kind not in "buif":
        raise DataError(f"values are {x.dtype}; expected numbers")
    if x.ndim == 1 and x.dtype.kind == "f":
        x = x[:, None]
    if x.size == 0 or x.ndim < 2 or (x.ndim > 4 and not as_given):
        raise DataError(f"shape {x.shape}; expected examples as (N, D), NHW, NHWC or NCHW")
    if x.dtype.kind != "f":
        return np.ascontiguousarray(level_images(x, levels or known_levels(x) or 0, layout))
    if levels is not None:
        raise DataError(f"values are {x.dtype} but levels is {levels}; levels need integers")
    if x.ndim > 2 and (layout is not None or not as_given):
        x = channels_first(x, layout)
    with np.errstate(over="ignore", invalid="ignore"):  # Split raises for overflows
        return np.ascontiguousarray(x, np.float32)


def fitted(train: Split, levels: int | None, standardise: bool) -> tuple[Scaling, tuple[str, ...]]:
    """The scaling fitted to training examples, and notes on it for the user."""
    if levels is not None:
        return Scaling(levels), ()
    scaling = standardising(train.x)
    constant = [
        k
        for k, scale in enumerate(scaling.scale)
        if scale == 1 and bool((train.x[:, k] == train.x[0, k].flatten()[0]).all())
    ]
    deviation = tuple(0.0 if k in constant else s for k, s in enumerate(scaling.scale))
    means, deviations = _between(scaling.shift), _between(deviation)
    found = f"real numbers of mean {means} and deviation {deviations}"
    notes = [f"{found}, {'standardised' if standardise else 'left as they are'}"]
    if shades := _shades(train):
        notes.append(
            f"they are {shades}, read as real numbers; for pixel levels, and bits per dimension, "
            f"give them as uint8"
        )
    if constant:
        which, one = listing(map(str, constant)), len(constant) == 1
        notes.append(
            f"feature{'' if one else 's'} {which} {'is' if one else 'are'} the same in all "
            f"examples: {'its' if one else 'their'} density has no bound; leave "
            f"{'it' if one else 'them'} out"
        )
    fine = zip(scaling.shift, scaling.scale, strict=True)
    lost = [k for k, (shift, scale) in enumerate(fine) if scale < abs(shift) * 2**-17]
    if lost:
        notes.append(
            f"feature {lost[0]} has a deviation near the resolution of float32 at its mean; "
            f"subtract the mean before saving"
        )
    plain = Scaling(None, scaling.low, scaling.high)
    return scaling if standardise else plain, tuple(notes)


def _between(values: tuple[float, ...]) -> str:
    low, high = (f"{end(values):.4g}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _shades(train: Split) -> str:
    """The float encoding of pictures of 256 levels, in words; "" for other data."""
    if train.x.ndim < 3:
        return ""
    some = train.x[spread(len(train), 256)].double()
    for slope, offset, words in FLOAT_SHADES:
        shade = slope * some + offset
        inside = shade.min() > -0.1 and shade.max() < 255.1
        if inside and bool(((shade - shade.round()).abs() < 1e-3).all()):
            return words
    return ""
