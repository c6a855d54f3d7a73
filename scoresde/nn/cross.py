"""Cross-attention from an image to a sequence, such as the words of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.nn.blocks import GroupNorm, attend, zeroed
from scoresde.nn.embeddings import positions


class CrossAttention(nn.Module):
    """x + project(attention(norm(x), context)): the pixels of an image attend to a sequence.

    x is (B, channels, H, W) and ``context`` (B, L, width), whose order has no meaning here. With
    ``positions`` a pixel asks with sines and cosines of its row and column added, so that it can
    ask for what belongs to its place; without them a model learns which things are said long
    before where they belong (docs/conditions.md). Entries whose ``mask`` (B, L) is false have no
    influence, even if they are NaN. Without other entries the block returns x; it also does so
    initially, because the projection is zero. Raises ValueError unless heads divides the channels,
    or for other shapes. High-Resolution Image Synthesis with Latent Diffusion Models, arXiv
    2112.10752, section 3.3.
    """

    def __init__(self, channels: int, width: int, *, heads: int, positions: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads={heads} does not divide the {channels} channels that attend")
        self.heads, self.width, self.positions = heads, width, positions
        self.norm = GroupNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.project = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        context, keys = readable(x, context, mask, self.width)
        if context.shape[1] == 0:
            return x
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        if self.positions:
            pixels = pixels + positions(x.shape[2], x.shape[3], pixels)
        q = self._heads(self.query(pixels))
        k, v = map(self._heads, self.key_value(context).chunk(2, dim=2))
        out = self.project(attend(q, k, v, keys).transpose(1, 2).flatten(2))
        if mask is not None:
            out = out * mask.any(1)[:, None, None]
        return x + torch.unflatten(out.transpose(1, 2), 2, x.shape[2:])

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, N, channels) as (B, heads, N, d)."""
        return torch.unflatten(tokens, 2, (self.heads, -1)).transpose(1, 2)


def readable(
    x: Tensor, context: Tensor, mask: Tensor | None, width: int
) -> tuple[Tensor, Tensor | None]:
    """The context with zeros where the mask is false, and the keys (B, 1, 1, L) to attend to.

    Without any entry to attend to all are keys, because a softmax needs one; the caller discards
    that result. Raises ValueError for other shapes.
    """
    if context.ndim != 3 or context.shape[::2] != (x.shape[0], width):
        raise ValueError(
            f"this block takes a context ({len(x)}, L, {width}) beside {len(x)} images, "
            f"got {tuple(context.shape)}"
        )
    if mask is None:
        return context, None
    if mask.shape != context.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"need a mask of truth values {tuple(context.shape[:2])}, got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    context = context.masked_fill(~mask[:, :, None], 0)  # 0 times NaN would be NaN
    return context, (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
