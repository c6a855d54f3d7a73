"""Codecs in tiles: equal to the whole where the field of view allows it, without seams else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scoresde.latent import Codec, Encoded, KLAutoencoder, tiles


class Local(Codec):
    """Convolutions without normalisation, each pixel of which sees 2 latents around it."""

    def __init__(self) -> None:
        super().__init__(1, 2, 2)
        torch.manual_seed(0)
        self.inward = nn.Conv2d(1, 4, 6, stride=2, padding=2)
        self.outward = nn.ConvTranspose2d(2, 1, 6, stride=2, padding=2)

    def encode(self, x):
        mean, std = self.inward(x).chunk(2, 1)
        return Encoded(mean, std.exp())

    def output(self, z):
        return self.outward(z)


@pytest.mark.parametrize("size", [(9, 9), (23, 9), (40, 31), (16, 17)])
def test_a_local_codec_in_tiles_is_the_whole(size):
    codec = Local()
    z = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, tiled = codec.decode(z), tiles.decode(codec, z, tile=16, overlap=8)
        torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
        for a, b in zip(tiles.encode(codec, whole, 16, 8), codec.encode(whole), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_tiles_have_a_gradient():
    codec, z = Local(), torch.randn(1, 2, 20, 20, requires_grad=True)
    found = [
        torch.autograd.grad(f(z).square().sum(), z)[0]
        for f in (codec.decode, lambda z: tiles.decode(codec, z, tile=16, overlap=8))
    ]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_no_more_than_a_tile_is_decoded_at_a_time(monkeypatch):
    codec, seen = Local(), []
    output = codec.output
    monkeypatch.setattr(codec, "output", lambda z: seen.append(tuple(z.shape)) or output(z))
    monkeypatch.setattr(tiles, "PIXELS", 2 * (2 * 16) ** 2)
    with torch.no_grad():
        tiles.decode(codec, torch.zeros(5, 2, 40, 40), tile=16, overlap=8)
    assert max(n * h * w for n, _, h, w in seen) <= 2 * 16**2
    with pytest.raises(ValueError, match="overlap: need 4 to below tile=16, got 16"):
        tiles.decode(codec, torch.zeros(1, 2, 40, 40), tile=16, overlap=16)


def test_seams_are_no_larger_than_the_differences_of_the_picture():
    """With group normalisation, whose statistics differ from tile to tile."""
    torch.manual_seed(0)
    codec = KLAutoencoder(1, 2, patch=1, widths=(8, 8), groups=4)
    z = torch.randn(8, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    z = F.interpolate(z, size=(64, 64), mode="bicubic")
    z *= torch.linspace(0.5, 3, 64)  # so that the statistics differ indeed
    with torch.no_grad():
        x = tiles.decode(codec, z, tile=16, overlap=8)
        hard = torch.cat([codec.decode(part) for part in z.split(16, 3)], 3)

    def jumps(x):  # between pixels of two latents
        return (x[..., 2::2] - x[..., 1:-1:2]).square().mean((0, 1, 2)).sqrt()

    edges, hard_edges = torch.arange(8, 56, 8) - 1, torch.tensor([15, 31, 47])
    others = [k for k in range(63) if k not in edges]
    assert jumps(x)[edges].mean() < 1.1 * jumps(x)[others].mean()
    assert jumps(hard)[hard_edges].mean() > 1.3 * jumps(hard)[others].mean()
