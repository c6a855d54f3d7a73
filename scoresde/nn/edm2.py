"""The magnitude-preserving U-Net of EDM2, from its paper: arXiv 2312.02696."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Even, Fraction, Natural, check
from scoresde.nn.blocks import run
from scoresde.nn.magnitude import (
    RESIDUAL,
    MPAttention,
    MPConditioning,
    MPConv,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    pixel_norm,
)
from scoresde.nn.unet import Several, check_attention, check_images

EDM2_WIDTHS: Mapping[str, int] = MappingProxyType(
    {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
)
"""The width of the paper's networks; the rest are the defaults."""


class MPResidual(nn.Module):
    """W2 dropout(silu(c W1 silu(x))),  c = 1 + gain V condition,  on (B, inputs, H, W).

    The gain is learned and starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, condition: int, *, dropout: float) -> None:
        super().__init__()
        self.inner = MPConv(inputs, outputs, 3)
        self.modulation = MPLinear(condition, outputs)
        self.gain = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)
        self.outer = MPConv(outputs, outputs, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        c = 1 + self.gain * self.modulation(condition)[:, :, None, None]
        h = mp_silu(self.inner(mp_silu(x)) * c)
        result: Tensor = self.outer(self.dropout(h))
        return result


class MPBlock(nn.Module):
    """mp_sum(trunk, residual, 0.3), then attention unless ``head_channels`` is None.

    In the encoder (``norm``) the trunk is W x, normalised in every pixel, and feeds the residual;
    in the decoder it is W x beside a residual of x. W is absent between equal channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int,
        *,
        norm: bool,
        head_channels: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.skip = nn.Identity() if inputs == outputs else MPConv(inputs, outputs, 1)
        self.residual = MPResidual(
            outputs if norm else inputs, outputs, condition, dropout=dropout
        )
        self.attention = (
            nn.Identity()
            if head_channels is None
            else MPAttention(outputs, head_channels=head_channels)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        trunk = self.skip(x)
        if self.norm:
            x = trunk = pixel_norm(trunk)
        result: Tensor = self.attention(mp_sum(trunk, self.residual(x, condition), RESIDUAL))
        return result


class EDM2(nn.Module):
    """The magnitude-preserving U-Net on (B, channels, H, W) for every H and W >= 1.

    Resolution i holds ``width * multipliers[i]`` channels on ceil(H / 2^i) x ceil(W / 2^i)
    pixels. The encoder has ``blocks`` blocks at each, and one more behind every halving; the
    decoder has two blocks at the bottom, one behind every doubling, and ``blocks + 1`` at each,
    which take the output of an encoder block beside their own. The output is zero at the start.
    ``EDM2_WIDTHS`` are the published sizes.
    Raises ValueError for sizes that do not fit. Config G of arXiv 2312.02696, appendix B.

    Args:
        channels: channels of the input.
        width: channels at full resolution; the paper's XS to XXL are 128, 192, 256, 320, 384 and
            448.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        head_channels: channels of each head of the self-attention.
        embedding: features of the noise level; None for the width.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes, None without labels.
        augments: numbers that describe how an example was augmented, None without.
        dropout: probability of dropout in each block.
        outputs: output channels, None for as many as the input.
        recompute: run the blocks again in the backward pass, which takes less memory and about a
            third more time.
    """

    def __init__(
        self,
        channels: Count,
        *,
        width: Count = 128,
        multipliers: Several = (1, 2, 3, 4),
        blocks: Count = 3,
        attention: tuple[Natural, ...] = (2, 3),
        head_channels: Count = 64,
        embedding: Even | None = None,
        fourier: bool = True,
        classes: Count | None = None,
        augments: Count | None = None,
        dropout: Fraction = 0.0,
        outputs: Count | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check(EDM2, locals())
        check_attention(attention, multipliers)
        widths = [width * m for m in multipliers]
        vector, last = max(widths), len(widths) - 1

        def block(inputs: int, outputs: int, level: int | None, norm: bool) -> MPBlock:
            heads = head_channels if level in attention else None
            return MPBlock(
                inputs, outputs, vector, norm=norm, head_channels=heads, dropout=dropout
            )

        def encoding(level: int) -> nn.ModuleList:
            inputs = widths[max(level - 1, 0)]
            sizes = [inputs, *[widths[level]] * blocks]
            return nn.ModuleList(block(a, b, level, True) for a, b in pairwise(sizes))

        def decoding(level: int) -> nn.ModuleList:
            above, here = widths[max(level - 1, 0)], widths[level]
            inputs = [widths[min(level + 1, last)], *[here] * blocks]
            skips = [*[here] * blocks, above]  # the last is that behind the halving, or the stem
            return nn.ModuleList(
                block(a + b, here, level, False) for a, b in zip(inputs, skips, strict=True)
            )

        self.channels, self.classes, self.recompute = channels, classes, recompute
        self.condition = MPConditioning(
            width + width % 2 if embedding is None else embedding,
            vector,
            fourier=fourier,
            classes=classes,
            augments=augments,
        )
        self.stem = MPConv(channels + 1, widths[0], 3)
        self.halved = nn.ModuleList(block(w, w, None, True) for w in widths[:-1])
        self.encoder = nn.ModuleList(encoding(level) for level in range(len(widths)))
        self.bottom = nn.ModuleList(
            block(widths[last], widths[last], level, False) for level in (last, None)
        )
        self.doubled = nn.ModuleList(block(w, w, None, False) for w in widths[:0:-1])
        self.decoder = nn.ModuleList(decoding(level) for level in reversed(range(len(widths))))
        # Outputs may be hundreds: neighbours are left to the layers before.
        self.head = MPConv(widths[0], outputs or channels, 3 if outputs is None else 1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """x (B, channels, H, W), noise (B,), label (B,) int64 or None -> (B, outputs, H, W).

        ``augment`` is (B, augments), or None where nothing was done.

        Raises ValueError for another shape.
        """
        check_images(x, self.channels)
        condition = self.condition(noise, label, augment)
        # The constant channel is the only bias.
        skips = self._encode(self.stem(torch.cat([x, torch.ones_like(x[:, :1])], 1)), condition)
        result: Tensor = self.gain * self.head(self._decode(skips, condition))
        return result

    def _encode(self, h: Tensor, condition: Tensor) -> list[Tensor]:
        outputs = [h]
        for level, blocks in enumerate(self.encoder):
            if level:
                outputs.append(self._run(self.halved[level - 1], _halve(outputs[-1]), condition))
            for block in blocks.children():
                outputs.append(self._run(block, outputs[-1], condition))
        return outputs

    def _decode(self, skips: list[Tensor], condition: Tensor) -> Tensor:
        h = skips[-1]
        for block in self.bottom:
            h = self._run(block, h, condition)
        for level, blocks in enumerate(self.decoder):
            if level:
                h = self._run(self.doubled[level - 1], _double(h, skips[-1]), condition)
            for block in blocks.children():
                h = self._run(block, mp_cat(h, skips.pop()), condition)
        return h

    def _run(self, block: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        result: Tensor = run(block, x, condition, again=self.recompute and self.training)
        return result


def _halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, of those there are at an odd edge."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbour to the size of ``like``: pixel i copies i // 2."""
    return F.interpolate(x, size=like.shape[2:], mode="nearest")
