"""Random augmentations of training images, plain or with labels for the network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.arguments import Probability, Range, check_fields

SCALE = 2**0.2
"""Base of the isotropic and the anisotropic scaling, arXiv 2206.00364, table 6."""
SHIFT = 1 / 8
"""Standard deviation of the translation relative to the image size, as above."""


class Augmentation(ABC):
    """A random change of images (B, C, H, W); all its draws come from ``generator``.

    ``labels`` numbers describe the change to the network; None if it has no such input.
    """

    labels: ClassVar[int | None] = None

    def on_levels(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Augment pixel levels before dequantisation."""
        return levels

    @abstractmethod
    def on_units(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Augment images in model units; also return the labels (B, labels), 0 for no change."""


@dataclass(frozen=True)
class PlainAugment(Augmentation):
    """Mirror images and shifts by whole pixels, without labels: samples show them too.

    Args:
        flip: probability of a mirror image, left to right
        crop: largest random shift along each axis, in pixels, with reflection at the border
    """

    flip: Probability = 0.5
    crop: Annotated[int, Range(ge=0, le=1024)] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.flip == 0 and self.crop == 0:
            raise ValueError("flip=0 and crop=0 do nothing; raise one, or set augment to none")

    def on_levels(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        n = len(levels)
        mirrored = torch.rand(n, generator=generator) < self.flip
        by = torch.randint(-self.crop, self.crop + 1, (n, 2), generator=generator)
        return shifted(flipped(levels, mirrored, 3), by)

    def on_units(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        return x0, None


@dataclass(frozen=True)
class EDMAugment(Augmentation):
    """Flips, scalings, rotations and translations, with labels for the network.

    An image is mirrored with probability ``flip``; each of the other five changes occurs with
    ``probability``. The table lists the nine labels; they are 0 for changes that do not occur:

        mirror              a0 in {0, 1}                         a0
        upside down         a1 in {0, 1}, even chances           a1
        scale               2^(0.2 a2)                           a2
        rotate              a3 in (-pi, pi)                      cos a3 - 1, sin a3
        stretch             2^(0.2 |a5|) along a4, 1 / across    a5 cos a4, a5 sin a4
        translate           (a6 W, a7 H) / 8                     a6, a7

    One bilinear resampling with reflection at the border applies all changes but the flips. EDM,
    arXiv 2206.00364, appendix F.2, table 6.

    Args:
        probability: probability of each change other than the mirror image
        flip: probability of a mirror image, left to right
    """

    labels: ClassVar[int | None] = 9

    probability: Probability = 0.12
    flip: Probability = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def on_units(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        label = self._draw(len(x0), generator)
        return transformed(x0, label), label

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Labels (n, 9) of n images."""
        mirrored = torch.rand(n, generator=generator) < self.flip
        made = torch.rand(n, 5, generator=generator) < self.probability
        upside_down = torch.rand(n, generator=generator) < 0.5
        turn, along = ((2 * torch.rand(2, n, generator=generator) - 1) * math.pi).unbind()
        scale, stretch, right, down = torch.randn(4, n, generator=generator).unbind()
        columns = (
            upside_down.float(), scale, turn.cos() - 1, turn.sin(),
            stretch * along.cos(), stretch * along.sin(), right, down,
        )  # fmt: skip
        which = torch.tensor([0, 1, 2, 2, 3, 3, 4, 4])
        others = torch.stack(columns, 1) * made[:, which]
        return torch.cat([mirrored.float()[:, None], others], 1)


def transformed(x0: Tensor, label: Tensor) -> Tensor:
    """Apply the changes that the labels (B, 9) of ``EDMAugment`` describe."""
    x0 = flipped(flipped(x0, label[:, 0] != 0, 3), label[:, 1] != 0, 2)
    moved = (label[:, 2:] != 0).any(1)
    if not moved.any():
        return x0
    sides = torch.tensor([x0.shape[3], x0.shape[2]], dtype=torch.float64)
    rows = label[moved].double()
    x0 = x0.clone()
    x0[moved] = resampled(x0[moved], linear(rows), SHIFT * sides * rows[:, 7:])
    return x0


def linear(label: Tensor) -> Tensor:
    """Stretch @ rotation @ scaling as one matrix (B, 2, 2) on (x, y)."""
    cos, sin = label[:, 3] + 1, label[:, 4]
    rotation = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    # A label (a5 < 0, a4) equals the label (|a5|, a4 + pi), so both must mean a stretch. Since a4
    # is uniform, the images have the distribution of the table.
    by, along = label[:, 5:7].norm(dim=1), torch.atan2(label[:, 6], label[:, 5])
    # e^(s (2 n n^T - 1)) = cosh s + sinh s (2 n n^T - 1) for a direction n.
    s = by * math.log(SCALE)
    c2, s2 = (2 * along).cos() * s.sinh(), (2 * along).sin() * s.sinh()
    stretch = torch.stack([s.cosh() + c2, s2, s2, s.cosh() - c2], 1).view(-1, 2, 2)
    return stretch @ rotation * (SCALE ** label[:, 2]).view(-1, 1, 1)


def resampled(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Images (B, C, H, W) moved by p -> matrix p + shift, with p = (x, y) pixels from the middle.

    The interpolation is bilinear, with reflection at the border.
    """
    height, width = x.shape[2:]
    half = torch.tensor([width, height], dtype=torch.float64) / 2  # unit of grid_sample
    back = torch.linalg.inv(matrix.double())
    turned = back * half / half[:, None]
    offset = -(back @ shift.double()[..., None]) / half[:, None]
    affine = torch.cat([turned, offset], 2).to(x)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, "bilinear", "reflection", align_corners=False)


def flipped(x: Tensor, rows: Tensor, axis: int) -> Tensor:
    """Images, mirrored along an axis if the boolean mask ``rows`` (B,) is true."""
    return torch.where(rows.view(-1, 1, 1, 1), x.flip(axis), x)


def shifted(x: Tensor, by: Tensor) -> Tensor:
    """Images (B, C, H, W) moved down and right by whole pixels (B, 2), with reflection."""
    height, width = x.shape[2:]
    rows = _reflected(torch.arange(height) - by[:, :1], height)
    columns = _reflected(torch.arange(width) - by[:, 1:], width)
    image = torch.arange(len(x))[:, None, None]
    return x.movedim(1, 3)[image, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


def _reflected(index: Tensor, size: int) -> Tensor:
    """Reflect indices into 0 .. size-1 without repeating the border pixel."""
    if size == 1:
        return torch.zeros_like(index)
    index = index % (2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)
