"""Group normalisation against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scoresde.nn.blocks import GroupNorm

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def state(*shape: int, layout: torch.memory_format, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("channels", [*range(1, 40), 96, 126, 127, 128, 510, 512])
def test_groups_divide_every_width_and_keep_four_channels(channels):
    norm = GroupNorm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4


def test_common_widths_get_many_groups():
    assert [GroupNorm(c).num_groups for c in (16, 64, 128, 256)] == [4, 16, 32, 32]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 3, 1, 1), (3, 16, 1, 7)])
def test_a_group_has_mean_zero_and_variance_one(shape, layout):
    norm = GroupNorm(shape[1], affine=False).double()
    norm.eps = 0.0 if shape[2] * shape[3] > 1 else 1.0
    y = norm(state(*shape, layout=layout)).unflatten(1, (norm.num_groups, -1)).flatten(2)
    assert torch.allclose(y.mean(2), torch.zeros_like(y.mean(2)), atol=1e-12)
    if norm.eps == 0:
        var = y.var(2, correction=0)
        assert torch.allclose(var, torch.ones_like(var), atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_alone_have_their_gradient(training, layout, frozen):
    # PyTorch's kernel for channels side by side ends the process here.
    x = state(3, 8, 5, 4, layout=layout).detach().requires_grad_(not frozen)
    norm = GroupNorm(8).double().train(training)
    weights = [norm.weight, norm.bias]
    y = norm(x)
    wanted = torch.autograd.grad(F.group_norm(x.detach().contiguous(), 2, *weights), weights, x)
    for weight, slope in zip(weights, wanted, strict=True):
        found = torch.autograd.grad(y, weight, x, retain_graph=True)[0]
        assert torch.allclose(found, slope, atol=1e-12)


def test_training_and_evaluation_give_the_same_in_single_precision():
    x = state(2, 64, 7, 7, layout=torch.channels_last).float()
    norm = GroupNorm(64)
    assert torch.allclose(norm(x), norm.eval()(x), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [False, True])
def test_a_forward_derivative_is_a_difference_quotient(training, layout):
    x, v = (state(2, 8, 3, 3, layout=layout, seed=k).detach() for k in (0, 1))
    norm = GroupNorm(8).double().train(training)
    with torch.autograd.forward_ad.dual_level():
        dual = norm(torch.autograd.forward_ad.make_dual(x, v))
        found = torch.autograd.forward_ad.unpack_dual(dual).tangent
    h = 1e-6
    assert torch.allclose(found, (norm(x + h * v) - norm(x - h * v)) / (2 * h), atol=1e-7)


@pytest.mark.parametrize("training", [False, True])
def test_it_is_transformed_by_torch_func(training):
    x = state(3, 8, 3, 3, layout=torch.contiguous_format).detach()
    norm = GroupNorm(8).double().train(training)
    each = torch.func.vmap(torch.func.grad(lambda z: norm(z[None]).pow(3).sum()))(x)
    z = x.clone().requires_grad_()
    assert torch.allclose(each, torch.autograd.grad(norm(z).pow(3).sum(), z)[0], atol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_a_common_offset_costs_no_more_digits_than_it_costs_the_numbers(offset):
    x = state(2, 64, 7, 7, layout=torch.channels_last).detach() + offset
    exact = F.group_norm(x, GroupNorm(64).num_groups)
    error = (GroupNorm(64)(x.float()).double() - exact).abs().max()
    assert error < 1e-6 * (10 + 3 * offset)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_has_second_derivatives_in_training_mode(layout):
    x = state(1, 8, 2, 2, layout=layout)
    norm = GroupNorm(8).double().train()
    assert torch.autograd.gradgradcheck(norm, x)
