"""From pixel levels to model units and back.

A level k in {0 .. levels-1}, dequantised by u in [0, 1), is the number

    x = low + step (k + u),        step = (high - low) / levels

so a density of x is a density of pixels after adding log(step) per dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """The affine map of `levels` pixel levels onto [low, high); None leaves continuous data alone.

    Raises ValueError for fewer than two levels, more than int32 holds, or an empty interval.
    """

    levels: int | None
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels is {self.levels}; give at least 2, or None for real data")
        if self.levels is not None and self.levels > 2**31:
            raise ValueError(f"levels is {self.levels}; give at most 2147483648")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; swap them")

    @property
    def step(self) -> float:
        """Width of one pixel level in model units; 1 for continuous data."""
        return 1.0 if self.levels is None else (self.high - self.low) / self.levels

    def encode(
        self, k: Tensor, u: Tensor | float = 0.5, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Model units low + step (k + u) of the levels `k`; by default the middle of each level.

        `u` in [0, 1) is a number or shaped like `k`. Rounding never leaves the level:
        `decode(encode(k, u))` is `k` for every `u`. Continuous data only change their dtype.
        """
        if self.levels is None:
            return k.to(dtype)
        x = self._edge(k.double() + u, dtype)
        above = self._edge(k.double() + 1, dtype)
        return torch.minimum(x, torch.nextafter(above, above - 1))

    def decode(self, x: Tensor) -> Tensor:
        """Levels of the model units `x`, clamped; uint8, or int32 above 256 levels."""
        if self.levels is None:
            return x
        inner = torch.arange(1, self.levels, dtype=torch.float64, device=x.device)
        level = torch.bucketize(x.contiguous(), self._edge(inner, x.dtype), right=True)
        return level.to(torch.uint8 if self.levels <= 256 else torch.int32)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Picture of the model units `x`: its levels, or [low, high], stretched over 0 .. 255."""
        if self.levels is None:
            unit = ((x - self.low) / (self.high - self.low)).clamp(0, 1)
        else:
            unit = self.decode(x).float() / (self.levels - 1)
        return (255 * unit).round().to(torch.uint8)

    def _edge(self, k: Tensor, dtype: torch.dtype) -> Tensor:
        # The one place that rounds: encode and decode must agree on every edge to the last bit.
        return (self.low + self.step * k).to(dtype)
