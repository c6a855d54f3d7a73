"""Attention against its definition, and blocks."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.nn.blocks import ResidualImage, ResidualVector, SelfAttention, attend


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_attention_is_its_formula_in_value_and_in_forward_mode():
    generator = torch.Generator().manual_seed(0)
    q, k, v, dq = torch.randn(4, 2, 3, 5, 8, generator=generator, dtype=torch.float64)

    def formula(q):
        return torch.softmax(q @ k.mT / math.sqrt(8), dim=-1) @ v

    assert torch.allclose(attend(q, k, v), formula(q), rtol=0, atol=1e-12)
    ours = torch.func.jvp(lambda y: attend(y, k, v), (q,), (dq,))[1]
    theirs = torch.func.jvp(formula, (q,), (dq,))[1]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    only_v = torch.func.jvp(lambda y: attend(q, k, y), (v,), (dq,))[1]
    assert torch.allclose(only_v, attend(q, k, dq), rtol=0, atol=1e-12)


def test_attention_moves_with_a_permutation_of_the_pixels():
    torch.manual_seed(0)
    block = SelfAttention(8, heads=2).double()
    torch.nn.init.normal_(block.project.weight)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    order = torch.randperm(15)

    def permuted(y):
        return y.flatten(2)[:, :, order].reshape(y.shape)

    assert not torch.allclose(block(x), x)
    assert torch.allclose(block(permuted(x)), permuted(block(x)), rtol=0, atol=1e-12)


def test_residual_blocks_start_as_the_identity():
    x, image, condition = torch.randn(2, 6), torch.randn(2, 6, 3, 4), torch.randn(2, 5)
    assert torch.equal(ResidualVector(6, 5, dropout=0.0)(x, condition), x)
    assert torch.equal(ResidualImage(6, 5, dropout=0.0)(image, condition), image)
    assert torch.equal(SelfAttention(6, heads=3)(image), image)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide_the_channels_are_an_error(heads):
    with pytest.raises(ValueError, match="heads"):
        SelfAttention(8, heads=heads)
