"""The convolutional encoder and decoder of an autoencoder, for pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.blocks import SelfAttention

EPS = 1e-6


class Block(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x)))))), with 3 x 3 convolutions.

    The skip is a 1 x 1 convolution where the number of channels changes.
    """

    def __init__(self, into: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, into, eps=EPS)
        self.inner = nn.Conv2d(into, out, 3, padding=1)
        self.inner_norm = nn.GroupNorm(groups, out, eps=EPS)
        self.outer = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(F.silu(self.norm(x)))
        out: Tensor = self.skip(x) + self.outer(F.silu(self.inner_norm(h)))
        return out


class Halved(nn.Module):
    """A 3 x 3 convolution with stride 2, with zeros beyond the right and the lower edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return found


class Doubled(nn.Module):
    """Every pixel copied to 2 x 2, and a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return found


class Encoder(nn.Module):
    """Pictures (B, C, H, W) to numbers (B, outputs, H / f, W / f), f = patch 2^(levels - 1).

    Args:
        channels: channels of the pictures.
        outputs: channels of the result.
        widths: channels at each resolution, from the finest.
        blocks: residual blocks at each resolution.
        patch: side of the squares of pixels that are stacked as channels first.
        attention: attend over all places at the coarsest resolution.
        groups: groups of the normalisations; it divides all widths.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        widths: Sequence[int],
        blocks: int,
        patch: int,
        attention: bool,
        groups: int,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        into = widths[0]
        for level, out in enumerate(widths):
            for _ in range(blocks):
                layers.append(Block(into, out, groups))
                into = out
            if level < len(widths) - 1:
                layers.append(Halved(out))
        self.layers = nn.ModuleList([*layers, *_middle(into, attention, groups)])
        self.norm = nn.GroupNorm(groups, into, eps=EPS)
        self.last = nn.Conv2d(into, outputs, 3, padding=1)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.pixel_unshuffle(x, self.patch))
        for layer in self.layers:
            h = layer(h)
        found: Tensor = self.last(F.silu(self.norm(h)))
        return found


class Decoder(nn.Module):
    """Latents (B, inputs, h, w) to numbers (B, outputs, f h, f w); see ``Encoder``.

    It has one more block at each resolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        blocks: int,
        patch: int,
        attention: bool,
        groups: int,
    ) -> None:
        super().__init__()
        into = widths[-1]
        self.first = nn.Conv2d(inputs, into, 3, padding=1)
        layers = _middle(into, attention, groups)
        for level in reversed(range(len(widths))):
            out = widths[level]
            for _ in range(blocks + 1):
                layers.append(Block(into, out, groups))
                into = out
            if level:
                layers.append(Doubled(out))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.GroupNorm(groups, into, eps=EPS)
        self.last = nn.Conv2d(into, outputs * patch**2, 3, padding=1)
        self.patch = patch

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z)
        for layer in self.layers:
            h = layer(h)
        return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.patch)


def _middle(channels: int, attention: bool, groups: int) -> list[nn.Module]:
    between = [SelfAttention(channels, heads=1, eps=EPS)] if attention else []
    return [Block(channels, channels, groups), *between, Block(channels, channels, groups)]
