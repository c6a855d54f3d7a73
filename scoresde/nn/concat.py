"""The U-Net of the DDPM family, whose decoder concatenates every feature map of its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Natural, check
from scoresde.nn.blocks import run
from scoresde.nn.resample import DownConv
from scoresde.nn.residual import Residual, Style
from scoresde.nn.told import Told, attending, beside, require_context
from scoresde.nn.unet import Several, check_attention, check_images, head

Cells = Any
"""An nn.ModuleList of cells; torch does not type its items."""


class Cell(nn.Module):
    """A residual block with optional attention, on x or on the concatenation of x and a skip."""

    def __init__(self, into: int, out: int, style: Style, *, attends: bool) -> None:
        super().__init__()
        self.residual = Residual(into, out, style)
        self.attention = style.attention(out) if attends else nn.Identity()
        self.cross = style.cross(out) if attends else None

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], dim=1)
        h = self.attention(self.residual(x, condition))
        return attending(h, self.cross, context, mask)


class Descent(nn.Module):
    """Halve the resolution as the style does; the picture is unchanged."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.block = style.down(channels)

    def forward(self, h: Tensor, picture: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return self.block(h, condition), picture


class PicturedDescent(nn.Module):
    """Halve the resolution by a residual block, and merge it with the picture halved by DownConv.

    The result is also the picture at the next resolution. Score-Based Generative Modeling through
    SDEs, arXiv 2011.13456, appendix H.1, ``residual`` progressive input.
    """

    def __init__(self, picture: int, channels: int, taps: Sequence[float], style: Style) -> None:
        super().__init__()
        self.block = Residual(channels, channels, style, style.resampling.down)
        self.shrink = DownConv(picture, channels, taps, style.start)
        self.merge = style.merge

    def forward(self, h: Tensor, picture: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        h = self.merge(self.shrink(picture), self.block(h, condition))
        return h, h


class ConcatUNet(nn.Module):
    """A U-Net on (B, channels, H, W), H and W >= 1, whose decoder concatenates all encoder maps.

    Resolution i has ``width * multipliers[i]`` channels on ceil(H / 2^i) x ceil(W / 2^i) pixels,
    ``blocks`` residual blocks in the encoder and one more in the decoder, each of which takes one
    map of the encoder. Residual blocks, or convolutions, change the size; a doubled map is cropped
    to the size of the encoder map. Encoder and decoder are connected by two blocks with attention
    between them. The output is initially zero. Raises ValueError for sizes that do not fit. DDPM,
    arXiv 2006.11239, appendix B.

    Args:
        channels: channels of the input.
        condition: module from (noise, label, augment, embed) to ``style.condition`` numbers.
        style: common settings of all blocks.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        attend_once: in the decoder, only the last block at a resolution has attention.
        picture: taps of the filter of ``PicturedDescent``; None for ``Descent``.
        concat: channels of pictures that are given beside the input.
        outputs: output channels; None for those of the input.
        recompute: run the blocks again in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        condition: nn.Module,
        style: Style,
        *,
        width: Count,
        multipliers: Several,
        blocks: Count,
        attention: tuple[Natural, ...],
        attend_once: bool = False,
        picture: Sequence[float] | None = None,
        concat: Natural = 0,
        outputs: Count | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check(ConcatUNet, locals())
        check_attention(attention, multipliers)
        widths = [width * m for m in multipliers]
        attends = [i in attention for i in range(len(widths))]
        self.channels, self.recompute = channels, recompute
        self.context, self.concat = style.context, concat
        self.classes: int | None = getattr(condition, "classes", None)
        self.wide_noise: bool = getattr(condition, "wide_noise", False)
        self.condition = condition
        self.stem = style.conv(channels + concat, width)
        self.encoder = _encoder(style, width, widths, blocks, attends)
        self.descents = _descents(style, channels + concat, widths, picture)
        self.middle = nn.ModuleList(
            Cell(widths[-1], widths[-1], style, attends=first) for first in (True, False)
        )
        self.decoder = _decoder(style, width, widths, blocks, attends, attend_once)
        self.ascents = nn.ModuleList(style.up(c) for c in reversed(widths[1:]))
        self.norm = style.norm(widths[0])
        self.head = head(widths[0], channels, outputs)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        embed: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """(B, channels, H, W) and what is said (``scoresde.nn.told``) -> (B, outputs, H, W)."""
        check_images(x, self.channels)
        require_context(context, self.context)
        told = Told(self.condition(noise, label, augment, embed), context, mask)
        skips = self._encode(beside(x, concat, self.concat), told)
        h = self._through(self.middle, skips[-1], told)[-1]
        h = self._decode(h, skips, told)
        result: Tensor = self.head(F.silu(self.norm(h)))
        return result

    def _encode(self, x: Tensor, told: Told) -> list[Tensor]:
        """All feature maps of the encoder."""
        h, picture = self.stem(x), x
        skips = [h, *self._through(self.encoder[0], h, told)]
        for descent, cells in zip(self.descents, self.encoder[1:], strict=True):
            h, picture = self._run(descent, skips[-1], picture, told.condition)
            skips += [h, *self._through(cells, h, told)]
        return skips

    def _decode(self, h: Tensor, skips: list[Tensor], told: Told) -> Tensor:
        h = self._joining(self.decoder[0], h, skips, told)
        for ascent, cells in zip(self.ascents, self.decoder[1:], strict=True):
            height, width = skips[-1].shape[2:]
            h = self._run(ascent, h, told.condition)[..., :height, :width]
            h = self._joining(cells, h, skips, told)
        return h

    def _joining(self, cells: Cells, h: Tensor, skips: list[Tensor], told: Told) -> Tensor:
        """Each cell takes the last of the skips from the list."""
        for cell in cells:
            h = self._run(cell, h, *told, skips.pop())
        return h

    def _through(self, cells: Cells, h: Tensor, told: Told) -> list[Tensor]:
        """The output of every cell."""
        maps: list[Tensor] = []
        for cell in cells:
            maps.append(h := self._run(cell, h, *told))
        return maps

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Any:
        return run(block, *inputs, again=self.recompute and self.training)


def _encoder(
    style: Style, width: int, widths: Sequence[int], blocks: int, attends: Sequence[bool]
) -> nn.ModuleList:
    above = [width, *widths]
    return nn.ModuleList(
        nn.ModuleList(
            Cell(into, out, style, attends=attend) for into in [before] + [out] * (blocks - 1)
        )
        for before, out, attend in zip(above, widths, attends, strict=False)
    )


def _decoder(
    style: Style,
    width: int,
    widths: Sequence[int],
    blocks: int,
    attends: Sequence[bool],
    once: bool,
) -> nn.ModuleList:
    # Channels of the encoder maps: stem, descents and blocks.
    skips = [width]
    for i, out in enumerate(widths):
        skips += skips[-1:] * (i > 0) + [out] * blocks
    below = [*widths[1:], widths[-1]]
    stages = nn.ModuleList()
    for before, out, attend in reversed(list(zip(below, widths, attends, strict=True))):
        into = [before] + [out] * blocks
        attending = [attend and not once] * blocks + [attend]
        stages.append(
            nn.ModuleList(
                Cell(c + skips.pop(), out, style, attends=a)
                for c, a in zip(into, attending, strict=True)
            )
        )
    return stages


def _descents(
    style: Style, channels: int, widths: Sequence[int], picture: Sequence[float] | None
) -> nn.ModuleList:
    if picture is None:
        return nn.ModuleList(Descent(c, style) for c in widths[:-1])
    return nn.ModuleList(
        PicturedDescent(source, c, picture, style)
        for source, c in pairwise([channels, *widths[:-1]])
    )
