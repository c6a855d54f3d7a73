"""The MLP takes vectors, or anything that flattens to them."""

from __future__ import annotations

import pytest
import torch

from scoresde.nn import MLP


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2)])
def test_any_shape_of_the_right_size_is_the_same_vector(shape):
    net = MLP(12, width=8, depth=1, embedding=4)
    torch.nn.init.normal_(net.head.weight)
    x, noise = torch.randn(5, *shape), torch.randn(5)
    out = net(x, noise)
    assert out.shape == x.shape
    assert torch.equal(out.flatten(1), net(x.flatten(1), noise))


def test_another_size_is_an_error():
    with pytest.raises(ValueError, match="takes 12 numbers"):
        MLP(12, width=8, depth=1)(torch.zeros(2, 13), torch.zeros(2))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"embedding": 3}])
def test_options_that_do_not_fit_are_errors(wrong):
    with pytest.raises(ValueError, match=r"need (dim|width|depth|embedding) >= "):
        MLP(2, **wrong)
