"""The residual blocks of the DDPM family of U-Nets, and their common style."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.blocks import GroupNorm, Layer, SelfAttention, modulate, zeroed
from scoresde.nn.cross import CrossAttention
from scoresde.nn.resample import Resampling


def half_power(x: Tensor, h: Tensor) -> Tensor:
    """(x + h) / sqrt 2, which preserves the variance if x and h are uncorrelated."""
    return (x + h) * math.sqrt(0.5)


def xavier(layer: Layer) -> Layer:
    """The layer with weights of variance 2 / (inputs + outputs) and zero bias.

    Understanding the Difficulty of Training Deep Feedforward Neural Networks, Glorot and Bengio
    2010, eq. 16.
    """
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def as_made(layer: Layer) -> Layer:
    """The layer as torch initialises it."""
    return layer


class Shifted(nn.Module):
    """norm(h + W c): the condition shifts the channels before normalisation."""

    def __init__(
        self, channels: int, condition: int, *, eps: float, groups: int | None = None
    ) -> None:
        super().__init__()
        self.shift = nn.Linear(condition, channels)
        self.norm = GroupNorm(channels, eps=eps, groups=groups)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        result: Tensor = self.norm(h + self.shift(condition)[:, :, None, None])
        return result


class Modulated(nn.Module):
    """(1 + scale) norm(h) + shift, both linear in the condition: adaptive group normalisation.

    Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 3.1.
    """

    def __init__(
        self, channels: int, condition: int, *, eps: float, groups: int | None = None
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=eps, groups=groups)
        self.modulation = nn.Linear(condition, 2 * channels)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        return modulate(self.norm(h), self.modulation(condition)[:, :, None, None])


@dataclass(frozen=True)
class Style:
    """The common settings of the blocks of a network.

    Args:
        condition: length of the condition c.
        resampling: layers that change the size.
        conditioned: norm with the condition, ``Shifted`` or ``Modulated``.
        merge: sum of a skip and its branch, ``torch.add`` or ``half_power``.
        project: a skip with a change of size has a 1x1 convolution even between equal channels.
        head_channels: channels of each head of the attention; None for one head.
        heads: heads of the attention at every resolution, in place of ``head_channels``.
        start: initialisation of all convolutions but the last of a block, which is zero.
        dropout: probability of dropout in each block.
        eps: eps of the norms.
        groups: groups of the norms; None for those of ``GroupNorm``.
        strided: the size is changed by one convolution in place of a residual block.
        context: width of a sequence to attend to; None without.
    """

    condition: int
    resampling: Resampling
    conditioned: Callable[..., nn.Module] = Shifted
    merge: Callable[[Tensor, Tensor], Tensor] = torch.add
    project: bool = False
    head_channels: int | None = None
    heads: int | None = None
    start: Callable[[nn.Conv2d], nn.Conv2d] = as_made
    dropout: float = 0.0
    eps: float = 1e-5
    groups: int | None = None
    strided: bool = False
    context: int | None = None

    def conv(self, into: int, out: int, size: int = 3) -> nn.Conv2d:
        """A convolution that keeps the size of the image."""
        return self.start(nn.Conv2d(into, out, size, padding=size // 2))

    def attention(self, channels: int) -> SelfAttention:
        """Attention over the pixels. Raises ValueError for heads that do not fit."""
        heads = self._heads(channels)
        return SelfAttention(
            channels, heads=heads, merge=self.merge, eps=self.eps, groups=self.groups
        )

    def cross(self, channels: int) -> CrossAttention | None:
        """Attention to the context, if there is one. Raises ValueError as ``attention`` does."""
        if self.context is None:
            return None
        heads = self._heads(channels)
        return CrossAttention(channels, self.context, heads=heads, positions=True)

    def norm(self, channels: int) -> GroupNorm:
        """A norm without the condition. Raises ValueError for groups that do not fit."""
        return GroupNorm(channels, eps=self.eps, groups=self.groups)

    def down(self, channels: int) -> nn.Module:
        """What halves the size, a module of (x, condition)."""
        if self.strided:
            return Strided(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        return Residual(channels, channels, self, self.resampling.down)

    def up(self, channels: int) -> nn.Module:
        """What doubles the size, a module of (x, condition)."""
        if self.strided:
            doubled = nn.Upsample(scale_factor=2, mode="nearest")
            return Strided(doubled, nn.Conv2d(channels, channels, 3, padding=1))
        return Residual(channels, channels, self, self.resampling.up)

    def _heads(self, channels: int) -> int:
        if self.heads is not None:
            return self.heads
        each = channels if self.head_channels is None else self.head_channels
        if each < 1 or channels % each:
            raise ValueError(
                f"head_channels={each} does not divide the {channels} channels to attend over"
            )
        return channels // each


class Strided(nn.Sequential):
    """Layers that change the size and are not told the condition. DDPM, arXiv 2006.11239."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        result: Tensor = super().forward(x)
        return result


class Residual(nn.Module):
    """merge(skip(change(x)), conv(dropout(silu(n(conv(change(silu(norm(x)))), c))))).

    x is (B, into, H, W), the result has ``out`` channels; n is the conditioned norm of the style,
    and ``change`` halves, doubles or keeps the size. The last convolution is initially zero, so
    the block equals its skip. Large Scale GAN Training for High Fidelity Natural Image Synthesis,
    arXiv 1809.11096, figure 15; Score-Based Generative Modeling through SDEs, arXiv 2011.13456,
    appendix H.
    """

    def __init__(
        self,
        into: int,
        out: int,
        style: Style,
        change: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.norm = style.norm(into)
        self.change = change()
        self.inner = style.conv(into, out)
        self.conditioned = style.conditioned(
            out, style.condition, eps=style.eps, groups=style.groups
        )
        self.dropout = nn.Dropout(style.dropout)
        self.outer = zeroed(nn.Conv2d(out, out, 3, padding=1))
        projected = into != out or (style.project and change is not nn.Identity)
        self.skip = style.conv(into, out, 1) if projected else nn.Identity()
        self.merge = style.merge

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inner(self.change(F.silu(self.norm(x))))
        h = self.outer(self.dropout(F.silu(self.conditioned(h, condition))))
        return self.merge(self.skip(self.change(x)), h)
