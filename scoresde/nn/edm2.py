"""The magnitude-preserving U-Net of EDM2, arXiv 2312.02696."""

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
    MPCrossAttention,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    pixel_norm,
)
from scoresde.nn.told import Told, attending, beside, require_context
from scoresde.nn.unet import Several, check_attention, check_images, resized

EDM2_WIDTHS: Mapping[str, int] = MappingProxyType(
    {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
)
"""The widths of the published networks; all other arguments are the defaults."""


class MPResidual(nn.Module):
    """W2 dropout(silu(c W1 silu(x))),  c = 1 + gain V condition,  on (B, inputs, H, W).

    The gain is learned and initially zero.
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

    With ``norm``, in the encoder, the trunk is W x normalised in every pixel, and the input of the
    residual; in the decoder the trunk is W x, and x the input of the residual. W is the identity
    if ``inputs`` equals ``outputs``.

    Args:
        inputs: input channels.
        outputs: output channels.
        condition: length of the condition.
        norm: normalise the trunk.
        head_channels: channels of each head of the attention.
        dropout: probability of dropout.
        context: width of a sequence to attend to, and channels of each head; None for none.
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
        context: tuple[int, int] | None = None,
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
        self.cross = (
            None
            if context is None
            else MPCrossAttention(outputs, context[0], head_channels=context[1])
        )

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        trunk = self.skip(x)
        if self.norm:
            x = trunk = pixel_norm(trunk)
        h = self.attention(mp_sum(trunk, self.residual(x, condition), RESIDUAL))
        return attending(h, self.cross, context, mask)


class EDM2(nn.Module):
    """The magnitude-preserving U-Net on (B, channels, H, W), H and W >= 1.

    Resolution i has ``width * multipliers[i]`` channels on ceil(H / 2^i) x ceil(W / 2^i) pixels.
    The encoder has ``blocks`` blocks at each resolution and one after every halving. The decoder
    has two blocks at the bottom, one after every doubling, and ``blocks + 1`` at each resolution,
    which also take the output of an encoder block. The output is initially zero. ``EDM2_WIDTHS``
    are the published widths. Raises ValueError for sizes that do not fit. Config G of arXiv
    2312.02696, appendix B.

    Args:
        channels: channels of the input.
        width: channels at full resolution; published are 128, 192, 256, 320, 384 and 448 (XS to
            XXL).
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        head_channels: channels of each head of the self-attention.
        embedding: features of the noise level; None for the width.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes; None without labels.
        augments: number of augmentation labels; None without.
        dropout: probability of dropout in each block.
        outputs: output channels; None for those of the input.
        embed: length of an embedding of what is said; None without.
        context: width of a sequence to attend to, such as a text; None without.
        concat: channels of pictures that are given beside the input.
        recompute: run the blocks again in the backward pass: less memory, a third more time.
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
        embed: Count | None = None,
        context: Count | None = None,
        concat: Natural = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check(EDM2, locals())
        check_attention(attention, multipliers)
        widths = [width * m for m in multipliers]
        vector, last = max(widths), len(widths) - 1

        def block(inputs: int, outputs: int, i: int | None, norm: bool) -> MPBlock:
            heads = head_channels if i in attention else None
            crossed = context is not None and i in (attention or (last,))
            return MPBlock(
                inputs,
                outputs,
                vector,
                norm=norm,
                head_channels=heads,
                dropout=dropout,
                context=(context, head_channels) if context is not None and crossed else None,
            )

        def encoding(i: int) -> nn.ModuleList:
            sizes = [widths[max(i - 1, 0)], *[widths[i]] * blocks]
            return nn.ModuleList(block(a, b, i, True) for a, b in pairwise(sizes))

        def decoding(i: int) -> nn.ModuleList:
            above, here = widths[max(i - 1, 0)], widths[i]
            inputs = [widths[min(i + 1, last)], *[here] * blocks]
            skips = [*[here] * blocks, above]  # the last comes from the halving or the stem
            return nn.ModuleList(
                block(a + b, here, i, False) for a, b in zip(inputs, skips, strict=True)
            )

        self.channels, self.classes, self.recompute = channels, classes, recompute
        self.context, self.concat = context, concat
        self.condition = MPConditioning(
            width + width % 2 if embedding is None else embedding,
            vector,
            fourier=fourier,
            classes=classes,
            augments=augments,
            embed=embed,
        )
        self.stem = MPConv(channels + concat + 1, widths[0], 3)
        self.halved = nn.ModuleList(block(w, w, None, True) for w in widths[:-1])
        self.encoder = nn.ModuleList(encoding(i) for i in range(len(widths)))
        self.bottom = nn.ModuleList(
            block(widths[last], widths[last], i, False) for i in (last, None)
        )
        self.doubled = nn.ModuleList(block(w, w, None, False) for w in widths[:0:-1])
        self.decoder = nn.ModuleList(decoding(i) for i in reversed(range(len(widths))))
        # A 3x3 convolution would be expensive for hundreds of outputs.
        self.head = MPConv(
            widths[0], outputs or channels, 1 if outputs and outputs > 2 * channels else 3
        )
        self.gain = nn.Parameter(torch.zeros(()))

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
        # The constant channel is the only bias.
        ones = torch.ones_like(x[:, :1])
        skips = self._encode(self.stem(torch.cat([beside(x, concat, self.concat), ones], 1)), told)
        result: Tensor = self.gain * self.head(self._decode(skips, told))
        return result

    def _encode(self, h: Tensor, told: Told) -> list[Tensor]:
        outputs = [h]
        for i, blocks in enumerate(self.encoder):
            if i:  # halve; at an odd edge, average the pixels there are
                h = F.avg_pool2d(outputs[-1], 2, ceil_mode=True, count_include_pad=False)
                outputs.append(self._run(self.halved[i - 1], h, told))
            for block in blocks.children():
                outputs.append(self._run(block, outputs[-1], told))
        return outputs

    def _decode(self, skips: list[Tensor], told: Told) -> Tensor:
        h = skips[-1]
        for block in self.bottom:
            h = self._run(block, h, told)
        for i, blocks in enumerate(self.decoder):
            if i:
                h = self._run(self.doubled[i - 1], resized(h, skips[-1]), told)
            for block in blocks.children():
                h = self._run(block, mp_cat(h, skips.pop()), told)
        return h

    def _run(self, block: nn.Module, x: Tensor, told: Told) -> Tensor:
        result: Tensor = run(block, x, *told, again=self.recompute and self.training)
        return result
