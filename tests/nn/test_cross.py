"""Attention from pixels to a sequence: a set of entries, those that are masked out not in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scoresde.nn import CrossAttention

MASK = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])


def block() -> CrossAttention:
    torch.manual_seed(0)
    made = CrossAttention(8, 6, heads=2).double()
    nn.init.normal_(made.project.weight)
    nn.init.normal_(made.project.bias)
    return made


def inputs() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 4, generator=g, dtype=torch.float64)
    return x, torch.randn(2, 5, 6, generator=g, dtype=torch.float64)


def test_it_is_the_attention_of_torch_with_the_same_weights():
    net, (x, context) = block(), inputs()
    peer = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).double()
    k, v = net.key_value.weight.chunk(2)
    biases = torch.cat([net.query.bias, net.key_value.bias])
    with torch.no_grad():
        peer.q_proj_weight.copy_(net.query.weight)
        peer.k_proj_weight.copy_(k)
        peer.v_proj_weight.copy_(v)
        peer.in_proj_bias.copy_(biases)
        peer.out_proj.load_state_dict(net.project.state_dict())
    asking = net.norm(x).flatten(2).transpose(1, 2)
    for mask in (None, MASK):
        closed = None if mask is None else ~mask
        expected, _ = peer(asking, context, context, key_padding_mask=closed)
        found = (net(x, context, mask) - x).flatten(2).transpose(1, 2)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_order_of_the_sequence_does_not_matter(mask):
    net, (x, context) = block(), inputs()
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = net(x, context[:, order], None if mask is None else mask[:, order])
    assert torch.allclose(moved, net(x, context, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [1e6, math.inf, math.nan])
def test_entries_that_are_masked_out_have_no_influence_whatever_they_hold(value):
    net, (x, context) = block(), inputs()
    other = torch.where(MASK[:, :, None], context, value).requires_grad_()
    found = net(x, other, MASK)
    assert torch.equal(found, net(x, context, MASK))
    (gradient,) = torch.autograd.grad(found.sum(), other)
    assert not gradient[~MASK].any()
    assert gradient[0, 0].any()


def test_a_sequence_with_entries_masked_out_is_the_shorter_one():
    net, (x, context) = block(), inputs()
    shorter = net(x[:1], context[:1, MASK[0]])
    assert torch.allclose(net(x, context, MASK)[:1], shorter, rtol=0, atol=1e-12)


def test_where_nothing_counts_there_is_nothing_to_attend_to():
    net, (x, context) = block(), inputs()
    none = MASK.clone()
    none[1] = False
    found = net(x, context, none)
    assert torch.equal(found[1], x[1])
    assert torch.equal(found[0], net(x, context, MASK)[0])
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert torch.equal(net(x, context[:, :0]), x)


def test_it_starts_as_the_identity_and_learns():
    x, context = inputs()
    net = CrossAttention(8, 6, heads=4).double()
    assert torch.equal(net(x, context), x)
    net(x, context).pow(3).sum().backward()
    assert net.project.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_agrees_with_finite_differences():
    net, (x, context) = block(), inputs()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    tangent = torch.func.jvp(lambda y: net(y, context, MASK), (x,), (v,))[1]
    near = (net(x + 1e-5 * v, context, MASK) - net(x - 1e-5 * v, context, MASK)) / 2e-5
    assert torch.allclose(tangent, near, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 5, 6), (2, 6)])
def test_another_context_is_an_error(shape):
    with pytest.raises(ValueError, match=r"takes a context \(2, L, 6\)"):
        block()(inputs()[0], torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("mask", [MASK[:, :4], MASK.long(), MASK[0]])
def test_another_mask_is_an_error(mask):
    with pytest.raises(ValueError, match="need a mask of truth values"):
        block()(*inputs(), mask)


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ValueError, match="heads=3"):
        CrossAttention(8, 6, heads=3)


def test_with_positions_pixels_alike_ask_for_what_belongs_to_their_place():
    torch.manual_seed(0)
    flat, context = torch.ones(1, 8, 3, 4, dtype=torch.float64), inputs()[1][:1]
    for positions in (False, True):
        net = CrossAttention(8, 6, heads=2, positions=positions).double()
        nn.init.normal_(net.project.weight)
        out = net(flat, context)
        assert bool((out - out[..., :1, :1]).abs().amax() > 1e-3) is positions
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(net(flat, context[:, order]), net(flat, context), rtol=0, atol=1e-12)
