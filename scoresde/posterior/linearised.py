"""Linear algebra of the posterior: products with Jacobians, and conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.operators import LinearOperator
from scoresde.sde import match

Product = Callable[[Tensor], Tensor]


class Tangent(NamedTuple):
    """x0_hat (B, ...) at a state and products with Cov[x0 | x_t], or with an estimate of it.

    Cov[x0 | x_t] = (sigma^2 / alpha) d x0_hat / d x_t
    """

    x0: Tensor
    covariance: Product


def tangent(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tangent:
    """x0_hat by one network call; each product costs one pass backwards through it.

    Raises ValueError for a denoiser without gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        state = x.detach().clone().requires_grad_()
        x0 = denoiser(state, t)
        if not x0.requires_grad:
            raise ValueError(
                "denoiser: it has no gradient; remove torch.no_grad and detach from it, or choose "
                "a method that needs none, such as diffpir"
            )
    gain = match(denoiser.sde.sigma(t) ** 2 / denoiser.sde.alpha(t), x)

    def covariance(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(x0, state, v.clone(), retain_graph=True)
        return gain * found

    return Tangent(x0.detach(), covariance)


class Local(NamedTuple):
    """y - A(x0) (B, *m), and products with the operator's Jacobian at x0 and its adjoint."""

    residual: Tensor
    forward: Product
    adjoint: Product


def local(measurement: Measurement, x0: Tensor) -> Local:
    """The measurement near samples x0 (B, ...); for a linear operator it is exact."""
    operator = measurement.operator
    if isinstance(operator, LinearOperator):
        return Local(measurement.residual(x0), operator, operator.adjoint)
    with torch.inference_mode(False):
        at = x0.clone()
        value, pull, *_ = torch.func.vjp(operator, at)

    def forward(v: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(operator, (at,), (v,))[1]
        return found

    return Local(measurement.residual(x0, value.detach()), forward, lambda u: pull(u)[0])


class Solution(NamedTuple):
    """u (B, *m) with (A C A* + noise^2) u = b, and C A* u (B, ...)."""

    u: Tensor
    moved: Tensor


def solve(
    near: Local, covariance: Product, noise: float, iterations: int, b: Tensor | None = None
) -> Solution:
    """Conjugate gradients on A C A* + noise^2 for each sample, by default for b = y - A(x0).

    A sample that has converged stays as it is. So does one for which the matrix is not positive
    along the direction of the search, as the Jacobian of a network may not be. Hestenes and
    Stiefel (1952).
    """
    r = near.residual if b is None else b
    p, u, moved = r, torch.zeros_like(r), None
    square = _dot(r, r)
    floor = torch.finfo(r.dtype).eps ** 2 * square
    for _ in range(iterations):
        w = covariance(near.adjoint(p))
        q = near.forward(w) + noise**2 * p
        curve = _dot(p, q)
        going = (square > floor) & (curve > 0)
        step = match(torch.where(going, square / curve, 0), u)
        u = u + step * p
        along = match(step.flatten(), w) * w
        moved = along if moved is None else moved + along
        r = r - step * q
        new = _dot(r, r)
        p = r + match(torch.where(going, new / square, 0), r) * p
        square = torch.where(going, new, square)
        if going.device.type == "cpu" and not bool(going.any()):  # a device would be waited for
            break
    assert moved is not None
    return Solution(u, moved)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B,)."""
    return (a * b).reshape(len(a), -1).sum(1)
