"""Where layers may compute by formulas that have a first derivative only."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Backward = Callable[..., tuple[Tensor | None, ...]]


def is_first(*inputs: Tensor | None) -> bool:
    """Whether a layer of these inputs and weights is differentiated backward, if at all.

    Not in torch.func, and not with forward derivatives, which are never compiled.
    """
    if torch._C._are_functorch_transforms_active():
        return False
    return torch.compiler.is_compiling() or not any(map(_has_tangent, inputs))


def _has_tangent(x: Tensor | None) -> bool:
    return x is not None and forward_ad.unpack_dual(x).tangent is not None


def first_only(backward: Backward) -> Backward:
    """A backward pass that raises RuntimeError where a second one might follow.

    PyTorch's ``once_differentiable`` raises in the second pass, and not in those that leave the
    first one out: torch.autograd.grad then returns a part of the derivative without a word.
    """

    @wraps(backward)
    def checked(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # by create_graph=True
            raise RuntimeError(
                "layers in training mode have no second derivative on a CPU; call eval() first, "
                "or leave out create_graph=True"
            )
        return backward(ctx, *g)

    return checked
