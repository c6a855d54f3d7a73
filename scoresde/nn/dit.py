"""A diffusion transformer for images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Even, Fraction, Natural, Range, check
from scoresde.nn.blocks import Layer, attend, run, zeroed
from scoresde.nn.cross import readable
from scoresde.nn.embeddings import Conditioning, LateConditioning, positions
from scoresde.nn.told import Told, attending, beside, require_context
from scoresde.nn.unet import check_images

_EPS = 1e-6


class Size(NamedTuple):
    """Channels of a token, number of blocks, and heads of the attention."""

    width: int
    depth: int
    heads: int


DIT_SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "S": Size(384, 12, 6),
        "B": Size(768, 12, 12),
        "L": Size(1024, 24, 16),
        "XL": Size(1152, 28, 16),
    }
)
"""The networks of table 1 of arXiv 2212.09748."""


class Attention(nn.Module):
    """project(attention(x)) over the tokens of (B, N, width).

    Raises ValueError unless heads divides the width. Attention Is All You Need, arXiv 1706.03762,
    eq. 1.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads} does not divide the {width} channels to attend over")
        self.heads = heads
        self.qkv = _glorot(nn.Linear(width, 3 * width))
        self.project = _glorot(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(x), 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.project(attend(*qkv.unbind(0)).transpose(1, 2).flatten(2))
        return mixed


class CrossTokens(nn.Module):
    """x + project(attention(norm(x), context)) on tokens (B, N, width), initially x.

    The context is that of ``CrossAttention``. PixArt-alpha, arXiv 2310.00426, section 2.3.
    """

    def __init__(self, width: int, context: int, *, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, context
        self.query = _glorot(nn.Linear(width, width))
        self.key_value = _glorot(nn.Linear(context, 2 * width))
        self.project = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        context, keys = readable(x, context, mask, self.width)
        q = torch.unflatten(
            self.query(F.layer_norm(x, x.shape[-1:], eps=_EPS)), 2, (self.heads, -1)
        )
        kv = torch.unflatten(self.key_value(context), 2, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.project(
            attend(q.transpose(1, 2), k, v, keys).transpose(1, 2).flatten(2)
        )
        return x + (out if mask is None else out * mask.any(1)[:, None, None])


class DiTBlock(nn.Module):
    """Attention, then a perceptron of four times the width, on tokens (B, N, width).

        x -> x + gate dropout(f((1 + scale) norm(x) + shift))   for f = attention, perceptron

    Gates, scales and shifts are linear in the condition and initially zero, so the block returns
    x. With a context, attention to it comes between the two. Scalable Diffusion Models with
    Transformers, arXiv 2212.09748, section 3.2 (adaLN-Zero).
    """

    def __init__(
        self, width: int, *, heads: int, dropout: float, context: int | None = None
    ) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attention = Attention(width, heads=heads)
        self.cross = None if context is None else CrossTokens(width, context, heads=heads)
        self.inner = _glorot(nn.Linear(width, 4 * width))
        self.outer = _glorot(nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        six = self.modulation(condition)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, six[2], self.dropout(self.attention(_modulated(x, *six[:2]))))
        x = attending(x, self.cross, context, mask)
        h = F.gelu(self.inner(_modulated(x, *six[3:5])), approximate="tanh")
        return torch.addcmul(x, six[5], self.dropout(self.outer(h)))


class DiT(nn.Module):
    """A transformer on the patches of (B, channels, H, W), H and W >= 1.

    Images are padded with zeros to multiples of ``patch``, and cropped at the end. Sines and
    cosines of row and column encode the position of a patch, for images of any size. The output
    is initially zero. ``DIT_SIZES`` are the published sizes. Raises ValueError for sizes that do
    not fit. Scalable Diffusion Models with Transformers, arXiv 2212.09748.

    Args:
        channels: channels of the input.
        width: channels of a token. The published width, depth and heads are 384, 12, 6 for S;
            768, 12, 12 for B; 1024, 24, 16 for L; 1152, 28, 16 for XL.
        depth: transformer blocks.
        heads: heads of the self-attention.
        patch: side of the square of pixels that becomes a token.
        embedding: features of the noise level.
        fourier: draw the frequencies of the noise features at random.
        late: add the class and the embedding behind the two layers of the noise level, as in the
            paper, and not before them.
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
        channels: Count,
        *,
        width: Annotated[int, Range(ge=4, multiple_of=4)] = 384,
        depth: Count = 12,
        heads: Count = 6,
        patch: Count = 2,
        embedding: Even = 256,
        fourier: bool = False,
        late: bool = False,
        classes: Count | None = None,
        augments: Count | None = None,
        dropout: Fraction = 0.0,
        outputs: Count | None = None,
        embed: Count | None = None,
        context: Count | None = None,
        concat: Natural = 0,
        indexed: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check(DiT, locals())
        self.channels, self.classes = channels, classes
        self.patch, self.recompute = patch, recompute
        self.context, self.concat, self.wide_noise = context, concat, True
        self.condition = (LateConditioning if late else Conditioning)(
            embedding,
            width,
            fourier=fourier,
            indexed=indexed,
            classes=classes,
            augments=augments,
            embed=embed,
        )
        self.stem = _glorot(nn.Conv2d(channels + concat, width, patch, stride=patch))
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads=heads, dropout=dropout, context=context) for _ in range(depth)
        )
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, (outputs or channels) * patch**2))

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
        height, width = x.shape[2:]
        require_context(context, self.context)
        told = Told(self.condition(noise, label, augment, embed), context, mask)
        x = beside(x, concat, self.concat)
        h = self.stem(F.pad(x, (0, -width % self.patch, 0, -height % self.patch)))
        grid = h.shape[2:]
        h = h.flatten(2).transpose(1, 2)  # (B, N, width)
        h = h + positions(grid[0], grid[1], h)
        for block in self.blocks:
            h = self._run(block, h, told)
        h = self.head(_modulated(h, *self.modulation(told.condition)[:, None].chunk(2, dim=2)))
        image = F.pixel_shuffle(torch.unflatten(h.transpose(1, 2), 2, grid), self.patch)
        return image[:, :, :height, :width]

    def _run(self, block: nn.Module, x: Tensor, told: Told) -> Tensor:
        result: Tensor = run(block, x, *told, again=self.recompute and self.training)
        return result


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=_EPS), 1 + scale)


def _glorot(layer: Layer) -> Layer:
    """The layer with uniform weights of variance 2 / (inputs + outputs) and zero bias.

    Understanding the Difficulty of Training Deep Feedforward Neural Networks, AISTATS 2010, eq.
    16.
    """
    nn.init.xavier_uniform_(layer.weight.data.flatten(1))  # a patch counts as one vector
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
