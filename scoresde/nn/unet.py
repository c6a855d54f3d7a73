"""A U-Net for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Even, Fraction, Natural, Range, check
from scoresde.nn.blocks import GroupNorm, ResidualImage, SelfAttention, run, zeroed
from scoresde.nn.cross import CrossAttention
from scoresde.nn.embeddings import Conditioning
from scoresde.nn.told import Told, attending, beside, require_context

Several = Annotated[tuple[Count, ...], Range(length=1)]
"""Channels at each resolution, in units of the width."""


class Stage(nn.Module):
    """Residual blocks on (B, channels, H, W), with attention after each.

    Args:
        channels: channels of input and output.
        condition: length of the condition.
        blocks: residual blocks.
        heads: heads of the attention; None for no attention.
        context: width of a sequence to attend to after it, and heads; None for none.
        dropout: probability of dropout.
        indexed: the noise is told as a place in a table of levels, with the frequencies of DDPM.
        recompute: run the blocks again in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        condition: int,
        *,
        blocks: int,
        heads: int | None,
        dropout: float,
        context: tuple[int, int] | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.residuals = nn.ModuleList(
            ResidualImage(channels, condition, dropout=dropout) for _ in range(blocks)
        )
        self.attentions = nn.ModuleList(
            nn.Identity() if heads is None else SelfAttention(channels, heads=heads)
            for _ in range(blocks)
        )
        self.crosses = (
            None
            if context is None
            else nn.ModuleList(
                CrossAttention(channels, context[0], heads=context[1], positions=True)
                for _ in range(blocks)
            )
        )

    def forward(self, x: Tensor, told: Told) -> Tensor:
        again = self.recompute and self.training
        crosses = [None] * len(self.residuals) if self.crosses is None else self.crosses
        for layers in zip(self.residuals, self.attentions, crosses, strict=True):
            x = run(_block, *layers, x, *told, again=again)
        return x


def _block(
    residual: nn.Module,
    attention: nn.Module,
    cross: nn.Module | None,
    x: Tensor,
    condition: Tensor,
    context: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return attending(attention(residual(x, condition)), cross, context, mask)


class UNet(nn.Module):
    """A U-Net on (B, channels, H, W), H and W >= 1, conditioned on noise and what is said.

    Resolution i has ``width * multipliers[i]`` channels on ceil(H / 2^i) x ceil(W / 2^i) pixels.
    It has one stage in the encoder and one in the decoder, whose input is the sum with the output
    of the former; the lowest resolution has one stage. A context is attended to wherever there is
    self-attention, or else at the lowest resolution. The output is initially zero. Raises
    ValueError for sizes that do not fit. DDPM, arXiv 2006.11239, appendix B.

    Args:
        channels: channels of the input.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        heads: heads of the self-attention.
        embedding: features of the noise level.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes; None without labels.
        augments: number of augmentation labels; None without.
        dropout: probability of dropout in each block.
        outputs: output channels; None for those of the input.
        embed: length of an embedding of what is said; None without.
        context: width of a sequence to attend to, such as a text; None without.
        concat: channels of pictures that are given beside the input.
        indexed: the noise is told as a place in a table of levels, with the frequencies of DDPM.
        recompute: run the blocks again in the backward pass: less memory, a third more time.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: Count = 64,
        multipliers: Several = (1, 2),
        blocks: Count = 2,
        attention: tuple[Natural, ...] = (1,),
        heads: Count = 4,
        embedding: Even = 64,
        fourier: bool = False,
        classes: Count | None = None,
        augments: Count | None = None,
        dropout: Fraction = 0.1,
        outputs: Count | None = None,
        embed: Count | None = None,
        context: Count | None = None,
        concat: Natural = 0,
        indexed: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check(UNet, locals())
        check_attention(attention, multipliers)
        widths = [width * m for m in multipliers]
        vector = 4 * width

        crossed = attention or (len(widths) - 1,)

        def stage(i: int) -> Stage:
            return Stage(
                widths[i],
                vector,
                blocks=blocks,
                heads=heads if i in attention else None,
                context=None if context is None or i not in crossed else (context, heads),
                dropout=dropout,
                recompute=recompute,
            )

        self.channels, self.classes = channels, classes
        self.context, self.concat, self.wide_noise = context, concat, True
        self.condition = Conditioning(
            embedding,
            vector,
            fourier=fourier,
            indexed=indexed,
            classes=classes,
            augments=augments,
            embed=embed,
        )
        self.stem = nn.Conv2d(channels + concat, widths[0], 3, padding=1)
        self.down = nn.ModuleList(stage(i) for i in range(len(widths) - 1))
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.bottom = stage(len(widths) - 1)
        self.grow = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1) for coarse, fine in pairwise(widths[::-1])
        )
        self.up = nn.ModuleList(stage(i) for i in reversed(range(len(widths) - 1)))
        self.norm = GroupNorm(widths[0])
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
        h = self._through(self.stem(beside(x, concat, self.concat)), told)
        result: Tensor = self.head(F.silu(self.norm(h)))
        return result

    def _through(self, h: Tensor, told: Told) -> Tensor:
        skips: list[Tensor] = []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(stage(h, told))
            h = shrink(skips[-1])
        h = self.bottom(h, told)
        for stage, grow, skip in zip(self.up, self.grow, reversed(skips), strict=True):
            h = stage(skip + resized(grow(h), skip), told)
        return h


class Pointwise(nn.Linear):
    """A linear map of the channels of (B, C, ...), with its outputs adjacent in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def head(width: int, channels: int, outputs: int | None) -> nn.Module:
    """The last layer, initially zero: a 3x3 convolution, or a 1x1 convolution to many outputs."""
    # A 3x3 convolution would be expensive for hundreds of outputs.
    if outputs is not None and outputs > 2 * channels:
        return zeroed(Pointwise(width, outputs))
    return zeroed(nn.Conv2d(width, outputs or channels, 3, padding=1))


def resized(h: Tensor, like: Tensor) -> Tensor:
    """Resize from ceil(n / 2) to the size n of ``like``: pixel i copies i // 2."""
    return F.interpolate(h, size=like.shape[2:], mode="nearest")


def check_attention(attention: Sequence[int], multipliers: Sequence[int]) -> None:
    """Raise ValueError for attention at a resolution that the network does not have."""
    if stray := [i for i in attention if i >= len(multipliers)]:
        raise ValueError(
            f"attention={stray[0]} is no resolution of multipliers={tuple(multipliers)}, which "
            f"has 0 to {len(multipliers) - 1}"
        )


def check_images(x: Tensor, channels: int) -> None:
    """Raise ValueError unless x is (B, channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"this network takes (B, {channels}, H, W), got x of shape {tuple(x.shape)}"
        )
