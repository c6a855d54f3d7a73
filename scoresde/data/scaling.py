"""The map from data to model units and back.

A level k in {0 .. levels-1}, dequantised by u in [0, 1), is the number

    x = low + step (k + u),        step = (high - low) / levels

and a real number y of the i-th feature or channel is

    x = (y - shift_i) / scale_i

so a density of x is a density of the data after adding ``log_volume``, log |dx / d(data)|.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Most numbers that standardisation uses, and numbers per piece.
MEASURED = 2**26
CHUNK = 2**22


@dataclass(frozen=True)
class Scaling:
    """The affine map from data to model units, for pixel levels or real numbers.

    Real numbers (``levels`` is None) map to ``(x - shift) / scale``, with one shift and one scale
    per feature (D,) or channel (C, H, W). Without them the map is the identity.

    Args:
        levels: number of pixel levels; None for real numbers.
        low: lower edge of the lowest level in model units; for real numbers, the value, in units
            of the data, that pictures show as black.
        high: upper edge of the highest level; for real numbers, the value of white.
        shift: number subtracted from each feature, such as its mean.
        scale: divisor of each feature, such as its standard deviation.

    Raises ValueError for fewer than two levels or more than 2^31, an empty interval, or a shift or
    scale that does not fit.
    """

    levels: int | None = None
    low: float = -1.0
    high: float = 1.0
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):  # lists if read from JSON
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels is {self.levels}; give at least 2, or None for real data")
        if self.levels is not None and self.levels > 2**31:
            raise ValueError(f"levels is {self.levels}; give at most 2147483648")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; swap them")
        if len(self.shift) != len(self.scale) or (self.levels is not None and self.shift):
            raise ValueError("shift and scale are of real numbers, one of each for every feature")
        if not all(0 < s < math.inf for s in self.scale):
            raise ValueError(f"need finite scale > 0, got scale={self.scale}")
        if not all(map(math.isfinite, self.shift)):
            raise ValueError(f"need a finite shift, got shift={self.shift}")

    @property
    def step(self) -> float:
        """Width of one pixel level in model units; 1 for real numbers."""
        return 1.0 if self.levels is None else (self.high - self.low) / self.levels

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """log |d(model units) / d(data)| of one example: add it to log p in model units."""
        if not self.scale:
            return math.prod(shape) * math.log(self.step)
        return -sum(map(math.log, self.scale)) * (math.prod(shape) / len(self.scale))

    def encode(
        self, k: Tensor, u: Tensor | float = 0.5, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The data ``k`` (B, ...) in model units, low + step (k + u) for levels.

        ``u`` in [0, 1) is a number or shaped like ``k``, by default the middle of a level.
        ``decode(encode(k, u))`` equals ``k`` for every ``u``, even after rounding. Real numbers
        ignore ``u``.
        """
        if self.levels is None:
            if not self.scale:
                return k.to(dtype)
            shift, scale = self._along(k)
            return ((k.double() - shift) / scale).to(dtype)
        x = self._edge(k.double() + u, dtype)
        above = self._edge(k.double() + 1, dtype)
        return torch.minimum(x, torch.nextafter(above, above - 1))

    def decode(self, x: Tensor) -> Tensor:
        """The inverse: clamped levels, uint8 or int32 above 256 levels, or numbers like ``x``."""
        if self.levels is None:
            if not self.scale:
                return x
            shift, scale = self._along(x)
            return (x.double() * scale + shift).to(x.dtype)
        inner = torch.arange(1, self.levels, dtype=torch.float64, device=x.device)
        level = torch.bucketize(x.contiguous(), self._edge(inner, x.dtype), right=True)
        return level.to(torch.uint8 if self.levels <= 256 else torch.int32)

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and b (broadcastable) of data = a x + b for ``x`` (B, ...), in float64.

        Of levels it is the inverse of the map to their middles, without rounding.
        """
        if self.levels is not None:
            a, b = torch.tensor([1 / self.step, -self.low / self.step - 0.5], dtype=torch.float64)
        elif self.scale:
            b, a = self._along(x)
        else:
            a, b = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return a, b

    def to_uint8(self, x: Tensor) -> Tensor:
        """A picture of ``x``: levels, or real numbers in [low, high], stretched to 0 .. 255."""
        if self.levels is None:
            unit = ((self.decode(x) - self.low) / (self.high - self.low)).clamp(0, 1)
        else:
            unit = self.decode(x).float() / (self.levels - 1)
        return (255 * unit).round().to(torch.uint8)

    def _edge(self, k: Tensor, dtype: torch.dtype) -> Tensor:
        # The only rounding: encode and decode must agree on every edge to the last bit.
        return (self.low + self.step * k).to(dtype)

    def _along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale (K, 1, ...), float64, for ``x`` (B, K, ...)."""
        if x.ndim < 2 or x.shape[1] != len(self.scale):
            raise ValueError(
                f"examples {tuple(x.shape[1:])} do not fit a scale of {len(self.scale)} features"
            )
        ends = (-1, *(1,) * (x.ndim - 2))
        both = torch.tensor([self.shift, self.scale], dtype=torch.float64, device=x.device)
        return both[0].view(ends), both[1].view(ends)


def standardising(x: Tensor) -> Scaling:
    """The scaling of real examples ``x`` (N, K, ...) to mean 0 and deviation 1 per feature.

    A constant feature has scale 1. Above 2^26 numbers evenly spread examples are used. ``low`` and
    ``high`` are the least and the largest number.
    """
    each = max(1, x[0].numel())
    most = max(2, MEASURED // each)
    rows = torch.linspace(0, len(x) - 1, min(len(x), most), dtype=torch.float64).round().long()

    def pieces() -> Iterator[Tensor]:  # (K, many)
        for some in rows.split(max(1, CHUNK // each)):
            yield x[some].double().transpose(0, 1).flatten(1)

    count = len(rows) * each // x.shape[1]
    found = [torch.stack([p.sum(1), p.amin(1), p.amax(1)]) for p in pieces()]
    total, lows, highs = torch.stack(found, 1)  # (pieces, K) each
    mean, least, largest = total.sum(0) / count, lows.amin(0), highs.amax(0)
    squares = [(piece - mean[:, None]).square().sum(1) for piece in pieces()]
    deviation = (torch.stack(squares).sum(0) / count).sqrt()
    # A constant has a tiny deviation from rounding.
    scale = torch.where((least < largest) & (deviation > 0), deviation, 1.0)
    low, high = float(least.min()), float(largest.max())
    high = high if low < high else low + 1 + abs(low)
    return Scaling(None, low, high, tuple(mean.tolist()), tuple(scale.tolist()))
