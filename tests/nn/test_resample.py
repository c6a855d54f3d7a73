"""Halving and doubling: constants, adjoints, the published borders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde.nn.resample import Down, DownConv, Up

FILTERS = [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)]
SIZES = [(1, 1), (1, 4), (2, 2), (5, 3), (7, 8), (9, 9)]
F64 = torch.float64
each = pytest.mark.parametrize("taps", FILTERS)
sizes = pytest.mark.parametrize("size", SIZES)


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@each
def test_constants_stay_constant_away_from_the_edges(taps):
    x, beside = torch.full((2, 3, 40, 36), 1.7, dtype=F64), len(taps)
    for layer in (Down(taps), Up(taps)):
        inside = layer.double()(x)[..., beside:-beside, beside:-beside]
        assert inside.numel()
        assert torch.allclose(inside, torch.full_like(inside, 1.7), rtol=1e-7)


@each
@sizes
def test_up_is_four_times_the_adjoint_of_down_for_every_size(taps, size):
    """Where an odd size was rounded up, what is doubled has a row too much to be cut off."""
    height, width = size
    down, up = Down(taps).double(), Up(taps).double()
    x = image(2, 3, height, width)
    half = down(x)
    assert half.shape == (2, 3, (height + 1) // 2, (width + 1) // 2)
    y = torch.randn_like(half)
    assert up(y).shape == (2, 3, 2 * half.shape[2], 2 * half.shape[3])
    left, right = 4 * (half * y).sum(), (x * up(y)[..., :height, :width]).sum()
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@each
@sizes
def test_down_is_its_formula_with_zeros_outside_the_image(taps, size):
    x, k = image(1, 1, *size), torch.tensor(taps, dtype=F64) / sum(taps)
    outside = len(taps) // 2 - 1

    def halving(n):
        matrix = torch.zeros((n + 1) // 2, n, dtype=F64)
        for i in range(len(matrix)):
            for j, weight in enumerate(k):
                if 0 <= (m := 2 * i + j - outside) < n:
                    matrix[i, m] += weight
        return matrix

    expected = halving(size[0]) @ x[0, 0] @ halving(size[1]).T
    assert torch.allclose(Down(taps).double()(x)[0, 0], expected, rtol=1e-7, atol=1e-7)


def test_the_box_takes_means_and_makes_copies():
    x = image(2, 3, 6, 4)
    means = x.unflatten(3, (2, 2)).unflatten(2, (3, 2)).mean((3, 5))
    assert torch.allclose(Down((1, 1)).double()(x), means)
    copies = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(Up((1, 1)).double()(x), copies)


def test_a_smooth_filter_keeps_a_wave_that_the_box_breaks_into_steps():
    """Doubled, a slow sine is nearer to itself at twice the rate."""
    t = torch.arange(64, dtype=F64)
    slow, fast = torch.sin(t / 3), torch.sin((torch.arange(128, dtype=F64) - 0.5) / 6)

    def error(taps):
        doubled = Up(taps).double()(slow.expand(1, 1, 64, 64))[0, 0, 64]
        return (doubled - fast)[8:-8].abs().max()

    assert error((1, 3, 3, 1)) < 0.2 * error((1, 1))


@each
@sizes
def test_a_convolution_of_the_centre_alone_only_halves(taps, size):
    def centre(conv: nn.Conv2d) -> nn.Conv2d:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
        return conv

    x = image(2, 3, *size)
    layer = DownConv(3, 3, taps, centre).double()
    assert torch.allclose(layer(x), Down(taps).double()(x), rtol=0, atol=1e-12)


def test_filters_are_not_saved():
    layers = (Down((1, 1)), Up((1, 1)), DownConv(1, 2, (1, 1), lambda conv: conv))
    assert [list(layer.state_dict()) for layer in layers] == [[], [], ["conv.weight", "conv.bias"]]


@pytest.mark.parametrize("taps", [(), (1,), (1, 2, 1), (1, 2), (0, 0), (-1, -1)])
def test_filters_that_would_shift_or_vanish_are_errors(taps):
    for layer in (Down, Up):
        with pytest.raises(ValueError, match="even number of taps"):
            layer(taps)
