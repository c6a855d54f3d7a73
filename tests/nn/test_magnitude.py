"""Layers that keep sizes: measured on unit normal inputs, and invariant to the size of weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde.nn.edm2 import MPBlock
from scoresde.nn.magnitude import (
    MPAttention,
    MPConditioning,
    MPConv,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise,
    pixel_norm,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def size(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_silu_has_unit_size_for_a_normal_input():
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    second = torch.trapezoid(mp_silu(x) ** 2 * density, x).item()
    assert math.sqrt(second) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_have_unit_size_and_the_shares_asked_for(t):
    a, b = torch.eye(2, dtype=torch.float64)  # orthogonal, as independent signals are
    found = mp_sum(a, b, t)
    assert found.norm().item() == pytest.approx(1, rel=1e-12)
    assert float(found[1]) * (1 - t) == pytest.approx(float(found[0]) * t, abs=1e-12)


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_concatenations_have_unit_size_and_both_their_share_of_the_squares(t):
    a, b = pixel_norm(normal(2, 3, 4, 5)), pixel_norm(normal(2, 12, 4, 5, seed=1))
    found = mp_cat(a, b, t)
    assert size(found) == pytest.approx(1, rel=1e-6)
    squares = [part.square().sum().item() for part in found.split([3, 12], dim=1)]
    assert squares[1] / squares[0] == pytest.approx((t / (1 - t)) ** 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_pixel_is_normalised_whatever_its_size(dtype):
    x = (normal(2, 64, 3, 5) * torch.tensor([1e-2, 1.0, 3e2]).reshape(1, 1, 3, 1)).to(dtype)
    found = pixel_norm(x)
    assert found.dtype == dtype
    sizes = found.double().square().mean(1).sqrt()
    assert torch.allclose(sizes, torch.ones_like(sizes), rtol=0, atol=1e-3)
    assert torch.equal(pixel_norm(torch.zeros(1, 4, 1, 1)), torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_linear_maps_keep_sizes_whatever_that_of_their_weights(scale):
    torch.manual_seed(0)
    linear, conv = MPLinear(256, 200).double(), MPConv(32, 64, 3).double()
    with torch.no_grad():
        linear.weight.mul_(scale)
        conv.weight.mul_(scale)
    assert size(linear(normal(500, 256))) == pytest.approx(1, abs=0.02)
    inside = conv(normal(4, 32, 32, 32))[:, :, 1:-1, 1:-1]  # zeros are around the image
    assert size(inside) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("inputs", [64, 96])
def test_blocks_keep_sizes(norm, inputs):
    torch.manual_seed(0)
    block = MPBlock(inputs, 64, 32, norm=norm, head_channels=None, dropout=0.0).double()
    torch.nn.init.constant_(block.residual.gain, 0.3)
    found = block(normal(4, inputs, 32, 32), normal(4, 32, seed=1))
    assert size(found[:, :, 2:-2, 2:-2]) == pytest.approx(1, abs=0.04)


def test_a_block_starts_without_its_condition():
    torch.manual_seed(0)
    block = MPBlock(8, 8, 4, norm=True, head_channels=None, dropout=0.0).double()
    x = normal(2, 8, 5, 5)
    assert torch.equal(block(x, normal(2, 4)), block(x, normal(2, 4, seed=1)))


def test_attention_among_equal_pixels_keeps_sizes_and_among_others_adds_none():
    torch.manual_seed(0)
    attention = MPAttention(64, head_channels=16).double()
    equal = normal(8, 64, 1, 1).expand(8, 64, 4, 4)
    assert size(attention(equal)) == pytest.approx(1, abs=0.06)
    x = normal(8, 64, 4, 4)
    assert size(attention(x)) <= 1.06 * size(x)


def test_logits_are_bounded_by_the_channels_of_a_head(monkeypatch):
    seen = {}

    def spy(q, k, v):
        seen["most"] = (q @ k.mT / math.sqrt(q.shape[-1])).abs().max().item()
        return v

    monkeypatch.setattr("scoresde.nn.magnitude.attend", spy)
    MPAttention(32, head_channels=16).double()(1e4 * normal(2, 32, 4, 4))
    assert 1 < seen["most"] <= 4 * (1 + 1e-9)


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ValueError, match="head_channels=5"):
        MPAttention(8, head_channels=5)


@pytest.mark.parametrize("fourier", [True, False])
def test_the_condition_has_unit_size_at_every_level_and_for_every_class(fourier):
    torch.manual_seed(0)
    condition = MPConditioning(64, 512, fourier=fourier, classes=10).double()
    noise = torch.linspace(-2, 4, 11, dtype=torch.float64)
    for label in (None, torch.arange(11)):
        vectors = condition(noise, label)
        sizes = vectors.square().mean(1).sqrt()
        assert torch.allclose(sizes, torch.ones_like(sizes), rtol=0, atol=0.15)
        assert size(vectors) == pytest.approx(1, abs=0.05)


def test_no_augmentation_is_one_of_zeros_and_others_count_once_the_gain_has_grown():
    condition = MPConditioning(8, 16, augments=3).double()
    noise, done = torch.linspace(-1, 1, 5).double(), normal(5, 3)
    assert torch.equal(condition(noise), condition(noise, augment=done))
    torch.nn.init.ones_(condition.augment_gain)
    assert not torch.allclose(condition(noise), condition(noise, augment=done))
    assert torch.equal(condition(noise), condition(noise, augment=torch.zeros_like(done)))
    with pytest.raises(ValueError, match="augments"):
        MPConditioning(8, 16)(noise.float(), augment=done.float())
    with pytest.raises(ValueError, match="augments"):
        MPConditioning(8, 16, augments=0)


def test_normalising_gives_unit_weights_and_changes_no_output():
    torch.manual_seed(0)
    block = MPBlock(6, 8, 4, norm=False, head_channels=4, dropout=0.0).double()
    x, condition = normal(2, 6, 5, 4), normal(2, 4)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(
                torch.randn_like(p) * torch.rand(len(p), *[1] * (p.ndim - 1)) if p.ndim else 0.5
            )
    before = block(x, condition)
    normalise(block)
    weights = [p for p in block.parameters() if p.ndim]
    assert len(weights) == 6
    for weight in weights:
        sizes = weight.flatten(1).square().mean(1)
        assert torch.allclose(sizes, torch.ones_like(sizes), rtol=1e-12)
    assert block.residual.gain == 0.5
    assert torch.allclose(block(x, condition), before, rtol=0, atol=1e-12)


def test_gradients_turn_weights_and_do_not_scale_them():
    torch.manual_seed(0)
    conv = MPConv(4, 3, 3).double()
    conv(normal(2, 4, 5, 5)).pow(3).sum().backward()
    along = (conv.weight * conv.weight.grad).flatten(1).sum(1)
    assert torch.allclose(along, torch.zeros_like(along), atol=1e-10)
    assert conv.weight.grad.abs().max() > 1e-2
