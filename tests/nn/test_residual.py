"""The blocks of the DDPM family: how they start, what they do to size and variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scoresde.nn.blocks import GroupNorm
from scoresde.nn.resample import fir
from scoresde.nn.residual import Modulated, Residual, Shifted, Style, half_power, xavier

F64 = torch.float64
RESCALED = Style(6, fir(), merge=half_power, project=True, start=xavier)
PLAIN = Style(6, fir(), conditioned=Modulated)


def inputs(channels=8, n=4, size=8):
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(n, channels, size, size, generator=g, dtype=F64),
        torch.randn(n, 6, generator=g, dtype=F64),
    )


@pytest.mark.parametrize(("style", "factor"), [(PLAIN, 1.0), (RESCALED, math.sqrt(0.5))])
def test_a_block_starts_as_its_skip(style, factor):
    x, condition = inputs()
    assert torch.allclose(Residual(8, 8, style).double()(x, condition), factor * x)


@pytest.mark.parametrize("style", [PLAIN, RESCALED])
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_sizes_change_inside_the_block(style, taps):
    x, condition = inputs(size=7)
    resampling = fir(taps)
    for change, size in ((resampling.down, 4), (resampling.up, 14)):
        block = Residual(8, 12, style, change).double()
        assert block(x, condition).shape == (4, 12, size, size)
        skip = half_or_whole(style) * block.skip(block.change(x))
        assert torch.allclose(block(x, condition), skip)


def half_or_whole(style):
    return math.sqrt(0.5) if style.merge is half_power else 1.0


def test_the_skip_of_a_block_that_changes_the_size_is_projected_where_the_style_says():
    kinds = [type(Residual(8, 8, style, fir().down).skip) for style in (PLAIN, RESCALED)]
    assert kinds == [nn.Identity, nn.Conv2d]
    assert isinstance(Residual(8, 8, RESCALED).skip, nn.Identity)


def awake(block):
    """Its last convolution as xavier starts it, not at zero."""
    xavier(block.outer)
    return block.double()


def test_rescaled_sums_keep_a_variance_about_one_through_many_blocks_and_plain_ones_do_not():
    torch.manual_seed(0)
    x, condition = inputs(channels=32, size=16)

    def after(merge):
        style = Style(6, fir(), merge=merge, start=xavier)
        h = x
        for _ in range(30):
            h = awake(Residual(32, 32, style))(h, condition)
        return h.var().item()

    assert 0.25 < after(half_power) < 2
    assert after(torch.add) > 5


def test_the_condition_enters_by_its_formula():
    x, condition = inputs()
    torch.manual_seed(0)
    shifted = Shifted(8, 6, eps=1e-5).double()
    shift = (condition @ shifted.shift.weight.T + shifted.shift.bias)[..., None, None]
    norm = GroupNorm(8).double()
    assert torch.allclose(shifted(x, condition), norm(x + shift))
    modulated = Modulated(8, 6, eps=1e-5).double()
    linear = modulated.modulation
    scale, shift = (condition @ linear.weight.T + linear.bias)[..., None, None].chunk(2, dim=1)
    assert torch.allclose(modulated(x, condition), (1 + scale) * norm(x) + shift)


@pytest.mark.parametrize(("each", "heads"), [(None, 1), (8, 3), (24, 1)])
def test_attention_has_heads_of_so_many_channels_and_the_merge_of_the_style(each, heads):
    style = Style(6, fir(), merge=half_power, head_channels=each)
    attention, (x, _) = style.attention(24).double(), inputs(channels=24)
    assert attention.heads == heads
    assert torch.allclose(attention(x), x * math.sqrt(0.5))
