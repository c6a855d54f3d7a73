"""The first layer against PyTorch's convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scoresde.nn.stem import Stem


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (1, 1, 1, 1), (2, 3, 4, 4), (0, 1, 4, 4)])
def test_it_is_a_convolution_with_its_gradients(shape, layout):
    stem = Stem(shape[1], 6).double().to(memory_format=layout)
    x = images(*shape).detach().contiguous(memory_format=layout).requires_grad_()
    inputs = [x, stem.weight, stem.bias]
    found, wanted = stem(x), F.conv2d(*inputs, padding=1)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-13)
    g = images(*wanted.shape, seed=1).detach()
    pairs = zip(
        torch.autograd.grad(found, inputs, g), torch.autograd.grad(wanted, inputs, g), strict=True
    )
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)


def test_features_of_one_channel_lie_side_by_side_in_memory():
    y = Stem(1, 6)(images(2, 1, 5, 7).float())
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_it_has_forward_derivatives_and_is_transformed_by_torch_func():
    stem, x, v = Stem(1, 6).double(), images(4, 1, 5, 7).detach(), images(4, 1, 5, 7, seed=1)
    _, tangent = torch.func.jvp(stem, (x,), (v.detach(),))
    assert torch.allclose(tangent, stem(v) - stem.bias[:, None, None], atol=1e-13)
    each = torch.func.vmap(lambda z: stem(z[None])[0])(x)
    assert torch.allclose(each, stem(x), atol=1e-13)
    assert torch.allclose(stem(x[0]), stem(x)[0], atol=1e-13)
