"""Networks of published programs that are none of ours, under the names of their own weights.

They are kept so that published weights can be read, and can be trained as any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Even, Natural, Range, check
from scoresde.nn.blocks import attend, zeroed
from scoresde.nn.embeddings import Sinusoids
from scoresde.nn.resample import reflected
from scoresde.nn.told import beside
from scoresde.nn.unet import Several, check_attention, check_images

# denoising-diffusion-pytorch --------------------------------------------------------------------


class RMSNorm(nn.Module):
    """sqrt(C) g x / |x| over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * math.sqrt(x.shape[1])


class Filtered(nn.Module):
    """silu((1 + scale) norm(conv(x)) + shift)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(into, out, 3, padding=1)
        self.norm = RMSNorm(out)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Any = 0) -> Tensor:
        h = self.norm(self.proj(x))
        return F.silu(h if scale is None else h * (scale + 1) + shift)


class Resnet(nn.Module):
    """Two ``Filtered``, of which the first is told the noise, beside a skip."""

    def __init__(self, into: int, out: int, condition: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * out))
        self.block1 = Filtered(into, out)
        self.block2 = Filtered(out, out)
        self.res_conv = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.mlp(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.block2(self.block1(x, scale, shift))
        out: Tensor = h + self.res_conv(x)
        return out


class Remembering(nn.Module):
    """x + attention(norm(x)) of pixels, with some learned keys and values beside theirs.

    With ``linear`` it is softmax(k) (softmax(q) v), of a cost linear in the pixels. Efficient
    Attention, arXiv 1812.01243.
    """

    def __init__(
        self, channels: int, heads: int, each: int, linear: bool, memory: int = 4
    ) -> None:
        super().__init__()
        hidden = heads * each
        shape = (2, heads, each, memory) if linear else (2, heads, memory, each)
        self.heads, self.linear = heads, linear
        self.norm = RMSNorm(channels)
        self.mem_kv = nn.Parameter(torch.randn(shape))
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        out = nn.Conv2d(hidden, channels, 1)
        self.to_out = nn.Sequential(out, RMSNorm(channels)) if linear else out

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        q, k, v = (torch.unflatten(part, 1, (self.heads, -1)) for part in parts)  # (B, h, d, N)
        learned = self.mem_kv if self.linear else self.mem_kv.mT
        keys, values = (part.expand(len(x), -1, -1, -1) for part in learned)
        k, v = torch.cat([keys, k], dim=-1), torch.cat([values, v], dim=-1)
        if self.linear:
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
            mixed = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) / math.sqrt(q.shape[2]))
        else:
            mixed = attend(q.mT, k.mT, v.mT).mT
        out: Tensor = self.to_out(torch.unflatten(mixed.flatten(1, 2), 2, x.shape[2:]))
        return x + out


class LucidUNet(nn.Module):
    """The U-Net of denoising-diffusion-pytorch, on (B, channels, H, W).

    H and W have to be divisible by 2 for each resolution but the last. Linear attention at the
    resolutions without ``attention``. Raises ValueError for sizes that do not fit. Denoising
    Diffusion Probabilistic Models, arXiv 2006.11239.

    Args:
        channels: channels of the input.
        width: channels at full resolution.
        multipliers: channels behind each resolution, in units of the width.
        stem: channels of the first layer; None for the width.
        attention: resolutions with full attention; 0 is the full resolution.
        heads: heads of the attention.
        head_channels: channels of each head.
        outputs: output channels; None for those of the input.
        concat: channels of pictures that are given beside the input.
    """

    wide_noise = True

    def __init__(
        self,
        channels: int,
        *,
        width: Annotated[int, Range(ge=4, multiple_of=2)] = 64,
        multipliers: Several = (1, 2, 4, 8),
        stem: Count | None = None,
        attention: tuple[Natural, ...] = (3,),
        heads: Count = 4,
        head_channels: Count = 32,
        outputs: Count | None = None,
        concat: Natural = 0,
    ) -> None:
        super().__init__()
        check(LucidUNet, locals())
        check_attention(attention, multipliers)
        first, vector = stem or width, 4 * width
        dims = [first, *(width * m for m in multipliers)]
        last, levels = len(multipliers) - 1, list(enumerate(pairwise(dims)))
        half = width // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.channels, self.concat, self.classes, self.depth = channels, concat, None, last

        def remembering(c: int, i: int) -> Remembering:
            return Remembering(c, heads, head_channels, i not in attention)

        self.init_conv = nn.Conv2d(channels + concat, first, 7, padding=3)
        self.time_mlp = nn.Sequential(
            Sinusoids(frequencies), nn.Linear(width, vector), nn.GELU(), nn.Linear(vector, vector)
        )
        self.downs = nn.ModuleList(
            nn.ModuleList(
                [
                    Resnet(fine, fine, vector),
                    Resnet(fine, fine, vector),
                    remembering(fine, i),
                    nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * fine, coarse, 1))
                    if i < last
                    else nn.Conv2d(fine, coarse, 3, padding=1),
                ]
            )
            for i, (fine, coarse) in levels
        )
        self.mid_block1 = Resnet(dims[-1], dims[-1], vector)
        self.mid_attn = Remembering(dims[-1], heads, head_channels, linear=False)
        self.mid_block2 = Resnet(dims[-1], dims[-1], vector)
        self.ups = nn.ModuleList(
            nn.ModuleList(
                [
                    Resnet(coarse + fine, coarse, vector),
                    Resnet(coarse + fine, coarse, vector),
                    remembering(coarse, i),
                    nn.Sequential(
                        nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, padding=1)
                    )
                    if i > 0
                    else nn.Conv2d(coarse, fine, 3, padding=1),
                ]
            )
            for i, (fine, coarse) in reversed(levels)
        )
        self.final_res_block = Resnet(2 * first, first, vector)
        self.final_conv = zeroed(nn.Conv2d(first, outputs or channels, 1))

    def forward(self, x: Tensor, noise: Tensor, concat: Tensor | None = None) -> Tensor:
        check_images(x, self.channels)
        check_divisible(x, 2**self.depth)
        h = start = self.init_conv(beside(x, concat, self.concat))
        condition = self.time_mlp[1:](self.time_mlp[0](noise).to(x))
        skips: list[Tensor] = []
        downs: Any = self.downs
        for first, second, attention, change in downs:
            h = first(h, condition)
            skips.append(h)
            h = attention(second(h, condition))
            skips.append(h)
            h = change(h)
        h = self.mid_block2(self.mid_attn(self.mid_block1(h, condition)), condition)
        ups: Any = self.ups
        for first, second, attention, change in ups:
            h = first(torch.cat([h, skips.pop()], dim=1), condition)
            h = second(torch.cat([h, skips.pop()], dim=1), condition)
            h = change(attention(h))
        result: Tensor = self.final_conv(
            self.final_res_block(torch.cat([h, start], dim=1), condition)
        )
        return result


# k-diffusion ------------------------------------------------------------------------------------


class AdaGN(nn.Module):
    """(1 + scale) norm(x) + shift, both linear in the condition; the norm has no weights."""

    def __init__(self, condition: int, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.mapper = zeroed(nn.Linear(condition, 2 * channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.mapper(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, F.group_norm(x, self.groups), scale + 1)


class Conditioned(nn.Sequential):
    """Layers in turn, of which some are told the condition."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            told = isinstance(layer, AdaGN | ResConv | PixelAttention)
            x = layer(x, condition) if told else layer(x)
        return x


class ResConv(nn.Module):
    """skip(x) + conv(gelu(n(conv(gelu(n(x)))))) with conditioned norms n."""

    def __init__(self, condition: int, into: int, middle: int, out: int) -> None:
        super().__init__()
        self.main = Conditioned(
            AdaGN(condition, into, max(1, into // 32)),
            nn.GELU(),
            nn.Conv2d(into, middle, 3, padding=1),
            nn.Identity(),  # the place of dropout
            AdaGN(condition, middle, max(1, middle // 32)),
            nn.GELU(),
            zeroed(nn.Conv2d(middle, out, 3, padding=1)),
        )
        self.skip = nn.Identity() if into == out else nn.Conv2d(into, out, 1, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        out: Tensor = self.main(x, condition) + self.skip(x)
        return out


class PixelAttention(nn.Module):
    """x + attention(n(x)) over pixels, with a conditioned norm n and heads of 64 channels."""

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 64)
        self.norm_in = AdaGN(condition, channels, max(1, channels // 32))
        self.qkv_proj = nn.Conv2d(channels, 3 * channels, 1)
        self.out_proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.norm_in(x, condition)).flatten(2)
        q, k, v = torch.unflatten(qkv, 1, (3, self.heads, -1)).mT.unbind(1)
        mixed = attend(q, k, v).mT.flatten(1, 2)
        out: Tensor = self.out_proj(torch.unflatten(mixed, 2, x.shape[2:]))
        return x + out


class Halved(nn.Module):
    """Half of the size by the filter (1, 3, 3, 1), the image reflected at its edges."""

    def forward(self, x: Tensor) -> Tensor:
        return reflected(x, up=False)


class Doubled(nn.Module):
    """Twice the size by the filter (1, 3, 3, 1), the image reflected at its edges."""

    def forward(self, x: Tensor) -> Tensor:
        return reflected(x, up=True)


class ImageV1(nn.Module):
    """The network ``image_v1`` of k-diffusion, on (B, channels, H, W).

    H and W have to be divisible by ``patch``, and by 2 for each resolution but the last. Raises
    ValueError for sizes that do not fit. https://github.com/crowsonkb/k-diffusion.

    Args:
        channels: channels of the input.
        features: numbers of the condition.
        depths: residual blocks at each resolution.
        widths: channels at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        patch: side of the square of pixels that becomes one.
        outputs: output channels; None for those of the input.
    """

    wide_noise = True

    def __init__(
        self,
        channels: int,
        *,
        features: Even = 256,
        depths: Several = (2, 4, 4),
        widths: Several = (128, 256, 512),
        attention: tuple[Natural, ...] = (1, 2),
        patch: Count = 1,
        outputs: Count | None = None,
    ) -> None:
        super().__init__()
        check(ImageV1, locals())
        check_attention(attention, widths)
        if len(depths) != len(widths):
            raise ValueError(f"depths={depths} and widths={widths} differ in length")
        self.channels, self.classes, self.patch = channels, None, patch
        self.depth = len(widths) - 1
        draws = torch.randn(features // 2, generator=torch.Generator().manual_seed(0))
        self.timestep_embed = Sinusoids(2 * math.pi * draws)
        self.mapping = nn.Sequential(
            nn.Linear(features, features), nn.GELU(), nn.Linear(features, features), nn.GELU()
        )
        self.proj_in = nn.Conv2d(channels * patch**2, widths[0], 1)
        self.proj_out = zeroed(nn.Conv2d(widths[0], (outputs or channels) * patch**2, 1))

        def layers(i: int, into: int, out: int) -> list[nn.Module]:
            found: list[nn.Module] = []
            for j in range(depths[i]):
                end = out if j == depths[i] - 1 else widths[i]
                found.append(ResConv(features, into if j == 0 else widths[i], widths[i], end))
                if i in attention:
                    found.append(PixelAttention(features, end))
            return found

        above: Sequence[int] = [widths[0], *widths[:-1]]
        last = len(widths) - 1
        self.u_net = nn.Module()
        self.u_net.d_blocks = nn.ModuleList(
            Conditioned(Halved() if i else nn.Identity(), *layers(i, above[i], widths[i]))
            for i in range(last + 1)
        )
        self.u_net.u_blocks = nn.ModuleList(
            Conditioned(
                *layers(i, widths[i] * (1 + (i < last)), above[i]),
                Doubled() if i else nn.Identity(),
            )
            for i in reversed(range(last + 1))
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        check_images(x, self.channels)
        check_divisible(x, self.patch * 2**self.depth)
        condition = self.mapping(self.timestep_embed(noise).to(x))
        h = self.proj_in(F.pixel_unshuffle(x, self.patch))
        blocks: Any = self.u_net
        skips: list[Tensor] = []
        for block in blocks.d_blocks:
            h = block(h, condition)
            skips.append(h)
        for i, (block, skip) in enumerate(zip(blocks.u_blocks, reversed(skips), strict=True)):
            h = block(torch.cat([h, skip], dim=1) if i else h, condition)
        return F.pixel_shuffle(self.proj_out(h), self.patch)


def check_divisible(x: Tensor, by: int) -> None:
    """Raise ValueError for pictures of which a side is not divisible."""
    if any(side % by for side in x.shape[2:]):
        raise ValueError(
            f"this network takes pictures with sides divisible by {by}, got {tuple(x.shape[2:])}"
        )
