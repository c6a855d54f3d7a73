"""Codecs of pictures of any size, in tiles whose seams are blended."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.latent.codec import Codec, Encoded

TILE, OVERLAP = 64, 16
"""Side of a tile, and what neighbouring tiles share, in latents."""
PIXELS = 2**19
"""Pixels that are coded at a time."""


def decode(codec: Codec, z: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Pictures (B, C, f h, f w) of latents (B, c, h, w), decoded in tiles if they are larger.

    A quarter of the overlap at the edges of a tile, where the decoder sees too little, has weight
    0; then the weight rises linearly. So the result is that of the whole where no pixel depends on
    latents further away than that, and no statistics are over all places, as those of group
    normalisation are. Raises ValueError unless 4 <= overlap < tile.
    """
    return _blended(codec.decode, z, 1, codec.factor, tile, overlap)


def encode(codec: Codec, x: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Encoded:
    """q(z | x) of pictures (B, C, H, W), encoded in tiles, as ``decode`` decodes."""

    def both(x: Tensor) -> Tensor:
        mean, std = codec.encode(x)
        return torch.cat([mean, std.expand_as(mean)], 1)

    found = _blended(both, codec.padded(x), codec.factor, 1, tile, overlap)
    return Encoded(*found.chunk(2, 1))


def _blended(
    run: Callable[[Tensor], Tensor], x: Tensor, before: int, after: int, tile: int, overlap: int
) -> Tensor:
    """``run`` on tiles of ``x``; a latent is ``before`` places wide there, and ``after`` then."""
    if not 4 <= overlap < tile:
        raise ValueError(f"overlap: need 4 to below tile={tile}, got {overlap}")
    height, width = (side // before for side in x.shape[2:])
    pixels = min(height, tile) * min(width, tile) * (before * after) ** 2
    if len(x) > (most := max(1, PIXELS // pixels)):
        parts = (_blended(run, part, before, after, tile, overlap) for part in x.split(most))
        return torch.cat(list(parts))
    if height <= tile and width <= tile:
        return run(x)
    rows, columns = (_weights(side, after, tile, overlap) for side in (height, width))
    whole: Tensor | None = None
    for top, down in rows.items():
        for left, across in columns.items():
            i, j = (slice(k * before, (k + tile) * before) for k in (top, left))
            piece = run(x[..., i, j])
            if whole is None:
                whole = piece.new_zeros(*piece.shape[:2], height * after, width * after)
            i, j = (slice(k * after, (k + tile) * after) for k in (top, left))
            whole[..., i, j] += (down[i, None] * across[j]).to(piece) * piece
    assert whole is not None
    return whole


def _weights(size: int, after: int, tile: int, overlap: int) -> dict[int, Tensor]:
    """The weights of every tile along an axis, by its start; those of a number add up to 1."""
    places = (torch.arange(size * after, dtype=torch.float64) + 0.5) / after
    starts = [*range(0, max(size - tile, 0), tile - overlap), max(size - tile, 0)]
    found = {}
    for start in starts:
        inside = torch.full_like(places, math.inf)  # how far from the edges that others cover
        if start > 0:
            inside = places - start
        if start + tile < size:
            inside = torch.minimum(inside, start + tile - places)
        found[start] = ((inside - overlap / 4) / (overlap / 2)).clamp(0, 1)
        found[start][places > start + tile] = 0
    total = torch.stack(list(found.values())).sum(0)
    return {start: weights / total for start, weights in found.items()}
