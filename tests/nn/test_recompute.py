"""Blocks that run again in the backward pass: as often as asked, under the modes of the first."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from scoresde.nn.recompute import run


class Halved(TorchFunctionMode):
    """Makes every exponential half as large."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        return y / 2 if func is torch.exp else y


def points() -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_every_backward_pass_is_under_the_modes_of_the_first_time():
    x = points()
    with Halved():
        y = run(lambda z: torch.exp(z).square(), x, again=True).sum()
    for _ in range(2):
        slope = torch.autograd.grad(y, x, retain_graph=True)[0]
        torch.testing.assert_close(slope, (2 * x).exp() / 2)
    assert not _get_current_function_mode_stack()


def test_a_mode_that_is_still_on_is_not_entered_again():
    x = points()
    with Halved() as mode:
        y = run(lambda z: torch.exp(z).square(), x, again=True).sum()
        slope = torch.autograd.grad(y, x)[0]
        assert _get_current_function_mode_stack() == [mode]
    torch.testing.assert_close(slope, (2 * x).exp() / 2)


def test_a_default_device_ends_where_it_did():
    x = points()
    before = torch.get_default_device()
    with torch.device("meta"):
        y = run(lambda z: torch.exp(z).square(), x, again=True).sum()
        y.backward()
    assert torch.get_default_device() == before


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_it_is_transformed_by_torch_func(transform):
    x = points().detach()
    slope = transform(lambda z: run(torch.exp, z, again=True).sum())(x)
    torch.testing.assert_close(slope, x.exp())
