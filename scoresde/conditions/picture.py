"""A picture beside the noisy one: its low resolution, its grey values, its edges, a map."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.arguments import Count, Fraction, check
from scoresde.conditions.condition import Condition, Joined

FAR = 10.0
"""Real numbers beyond it are no picture in model units, but pixel levels saved as floats."""


@final
class Picture(Condition):
    """A picture (c, H, W) in model units, and a channel of ones where there is none.

    By default it is a column of the data. Or it is made of the example: ``low``, its means over
    squares of ``factor`` pixels, ``grey``, the mean of its channels, or ``edges``, the size of the
    differences between neighbours (Sobel 1968). A model of latents is told the pixels of every
    square of ``fold`` x ``fold`` as channels, so that nothing is lost. Raises ValueError for
    values out of range.

    Args:
        shape: channels, height and width.
        fold: pixels along a side that become a place of the latents; 1 for a model of pixels.
        of: what the picture is: a column of the data, or what is made of the example.
        factor: side of the squares of ``low`` in pixels.
        levels: number of pixel levels of pictures of whole numbers; None for real numbers.
        dropout: fraction of the training examples without their picture.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        fold: Count = 1,
        of: Literal["column", "low", "grey", "edges"] = "column",
        factor: Count = 4,
        levels: Count | None = 256,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        check(Picture, {k: v for k, v in locals().items() if k not in ("self", "shape")})
        channels, height, width = shape
        self.shape = (1 if of in ("grey", "edges") else channels, height, width)
        if of == "low" and (height % factor or width % factor):
            raise ValueError(f"factor={factor} does not divide the size {height} x {width}")
        self.of, self.factor, self.levels, self.dropout = of, factor, levels, dropout
        self.fold, self.derives = fold, of != "column"
        self.concat = self.shape[0] * fold**2 + 1

    @staticmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        found = torch.as_tensor(values)
        if found.ndim != 4:
            raise ValueError(f"need pictures (N, C, H, W), got {tuple(found.shape)}")
        if found.is_floating_point():
            _require_model_units(found)
            levels = None
        else:
            levels = 2 if found.dtype == torch.bool else max(int(found.max()) + 1, 256)
        return {"shape": list(found.shape[1:]), "levels": levels}

    def read(self, values: Any) -> Tensor:
        """A picture (c, H, W), or several; of ``low`` also the small one (c, H / f, W / f).

        Whole numbers are pixel levels, real numbers are in model units, -1 to 1.
        """
        x = _tensor(values, "a picture")
        x = x[None] if x.ndim == 3 else x
        if x.is_complex():
            raise ValueError("need a picture of real numbers, got complex ones")
        if not x.is_floating_point():
            if self.levels is None:
                raise ValueError("need a picture of real numbers in model units, got whole ones")
            if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.levels:
                low, high = int(x.min()), int(x.max())
                raise ValueError(f"need pixel levels 0 to {self.levels - 1}, got {low} to {high}")
            x = 2 * (x.float() + 0.5) / self.levels - 1
        small = (self.shape[0], self.shape[1] // self.factor, self.shape[2] // self.factor)
        if x.ndim == 4 and self.of == "low" and tuple(x.shape[1:]) == small:
            x = x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            also = f" or {small}" if self.of == "low" else ""
            raise ValueError(f"need a picture {self.shape}{also}, got {tuple(x.shape[1:])}")
        if not torch.isfinite(x).all():
            raise ValueError("need a picture of finite numbers, got NaN or infinity")
        _require_model_units(x)
        return x.float()

    def takes(self) -> str:
        channels, height, width = self.shape
        kind = {"column": "", "low": " of low resolution"}.get(self.of, f" ({self.of})")
        return f"a picture{kind} of {height} x {width} pixels and {channels} channels"

    def written(self, text: str) -> Tensor:
        """The pixels of a file."""
        shades = opened(text, "L" if self.shape[0] == 1 else "RGB").movedim(-1, 0)
        if self.levels is None:
            return 2 * (shades.float() + 0.5) / 256 - 1
        return shades.int() * self.levels // 256

    def derive(self, x0: Tensor) -> Tensor:
        if self.of == "low":
            f = self.factor
            mean = F.avg_pool2d(x0, f)
            return mean.repeat_interleave(f, 2).repeat_interleave(f, 3)
        grey = x0.mean(1, keepdim=True)
        if self.of == "grey":
            return grey
        if self.of == "edges":
            kernel = x0.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
            both = torch.stack([kernel, kernel.T])[:, None]
            found = F.conv2d(F.pad(grey, (1, 1, 1, 1), "replicate"), both)
            return found.square().sum(1, keepdim=True).sqrt()
        return super().derive(x0)

    def null(self, n: int) -> Tensor:
        return torch.full((n, *self.shape), math.nan)

    def forward(self, y: Tensor) -> Joined:
        missing = torch.isnan(y)
        known, mark = _fitted(y.masked_fill(missing, 0), self.fold), missing[:, :1].to(y)
        mark = F.avg_pool2d(_fitted(mark, self.fold), self.fold)
        return Joined(concat=torch.cat([F.pixel_unshuffle(known, self.fold), mark], 1))


def _fitted(x: Tensor, fold: int) -> Tensor:
    """Pictures with a size that ``fold`` divides, by copies of their right and lower edge."""
    down, across = (-side % fold for side in x.shape[2:])
    return F.pad(x, (0, across, 0, down), "replicate") if down or across else x


def _tensor(values: Any, kind: str) -> Tensor:
    """Numbers as a tensor, wide unsigned ones as int64. Raises ValueError for anything else."""
    several = isinstance(values, list | tuple) and values and isinstance(values[0], Tensor)
    try:
        x = torch.stack(list(values)) if several else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"need {kind} of numbers, got {type(values).__name__}") from None
    return x.long() if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x


def _require_model_units(x: Tensor) -> None:
    if x.numel() and float(x.abs().max()) > FAR:
        raise ValueError(
            f"need real numbers in model units, -1 to 1, got {float(x.min()):g} to "
            f"{float(x.max()):g}; scale them, or give pixel levels as whole numbers"
        )


@final
class SegmentationMap(Condition):
    """A class for every pixel, (H, W) of 0 .. classes - 1, as one-hot channels.

    A last channel stands for "nothing said". A model of latents is told the share of each class
    in every square of ``fold`` x ``fold`` pixels. Raises ValueError for values out of range.

    Args:
        classes: number of classes.
        size: height and width.
        fold: pixels along a side that become a place of the latents; 1 for a model of pixels.
        dropout: fraction of the training examples without their map.
    """

    def __init__(
        self,
        classes: Count,
        size: tuple[int, int],
        *,
        fold: Count = 1,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        check(SegmentationMap, {"classes": classes, "fold": fold, "dropout": dropout})
        self.classes, self.size, self.dropout = classes, tuple(size), dropout
        self.fold = fold
        self.concat = classes + 1

    @staticmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        found = torch.as_tensor(values)
        if found.ndim != 3 or found.is_floating_point() or int(found.min()) < 0:
            raise ValueError(f"need maps (N, H, W) of classes from 0, got {tuple(found.shape)}")
        return {"classes": int(found.max()) + 1, "size": list(found.shape[1:])}

    def read(self, values: Any) -> Tensor:
        """A map (H, W), or several (n, H, W)."""
        y = _tensor(values, "a map")
        y = y[None] if y.ndim == 2 else y
        if y.is_floating_point() or y.ndim != 3 or tuple(y.shape[1:]) != self.size:
            raise ValueError(f"need a map {self.size} of whole numbers, got {tuple(y.shape[1:])}")
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise ValueError(
                f"need classes 0 to {self.classes - 1}, got {int(y.min())} to {int(y.max())}"
            )
        return y.long()

    def takes(self) -> str:
        height, width = self.size
        return f"a map of {height} x {width} places of {self.classes} classes"

    def written(self, text: str) -> Tensor:
        """The places of classes in a file of grey values, or of a palette."""
        return opened(text, None)[..., 0].long()

    def null(self, n: int) -> Tensor:
        return torch.full((n, *self.size), self.classes)

    def forward(self, y: Tensor) -> Joined:
        found = F.one_hot(y, self.classes + 1).movedim(-1, 1).float()
        return Joined(concat=F.avg_pool2d(_fitted(found, self.fold), self.fold))


def opened(path: str, mode: str | None) -> Tensor:
    """The pixels (H, W, C) of a picture file, uint8; of None as stored, with one channel.

    Raises ValueError, naming the file.
    """
    from PIL import Image

    try:
        with Image.open(Path(path).expanduser()) as picture:
            if picture.mode[0] in "IF" or (mode is None and picture.mode not in ("L", "P", "1")):
                kind = "grey values or a palette" if mode is None else "of 256 levels"
                raise ValueError(f"its pixels are {picture.mode}, not {kind}")
            pixels = np.array(picture if mode is None else picture.convert(mode), np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        text = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: no picture that can be read ({text})") from None
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))
