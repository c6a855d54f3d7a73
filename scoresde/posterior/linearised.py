"""Linear algebra of the posterior: products with Jacobians, and conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.operators import LinearOperator
from scoresde.samplers.kernels import time_at
from scoresde.sde import match

FAINT = -math.log(1000.0)
"""The covariance of x0 at higher noise than this lam is taken from there."""

Product = Callable[[Tensor], Tensor]


class Tangent(NamedTuple):
    """x0_hat (B, ...) at a state and products with Cov[x0 | x_t], or with an estimate of it.

    Cov[x0 | x_t] = (sigma^2 / alpha) d x0_hat / d x_t
    """

    x0: Tensor
    covariance: Product


def tangent(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tangent:
    """x0_hat by one network call; each product costs one pass backwards through it.

    Beyond sigma / alpha = 1000 the state is read as one of that level: d x0_hat / d x_t vanishes
    with alpha, and the covariance would be the rounding of a network over alpha. Raises ValueError
    for a denoiser without gradient.
    """
    sde = denoiser.sde
    if bool((sde.lam(t) < FAINT).any()):
        s = t.clamp(max=float(time_at(sde, FAINT)))
        x, t = x * match(sde.norm(s) / sde.norm(t), x), s
    with torch.inference_mode(False), torch.enable_grad():
        state = x.detach().clone().requires_grad_()
        x0 = denoiser(state, t)
        if not x0.requires_grad:
            raise ValueError(
                "denoiser: it has no gradient; remove torch.no_grad and detach from it, or choose "
                "a method that needs none, such as diffpir"
            )
    gain = match(sde.sigma(t) ** 2 / sde.alpha(t), x)

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


def gain(
    near: Local, variance: Tensor, noise: float, iterations: int, b: Tensor | None = None
) -> Tensor:
    """A* (variance A A* + noise^2)^-1 b (B, ...), by default of b = y - A(x0).

    It is (variance A* A + noise^2)^-1 A* b, which has a solution for any b, and rows that depend
    on others.
    """
    b = near.residual if b is None else b
    return solve(
        lambda v: variance * near.adjoint(near.forward(v)) + noise**2 * v,
        near.adjoint(b),
        iterations,
    )


def pseudo_inverse(near: Local, b: Tensor, iterations: int) -> Tensor:
    """A^+ b (B, ...), the shortest v with the least |A v - b|."""
    return solve(lambda v: near.adjoint(near.forward(v)), near.adjoint(b), iterations)


ASYMMETRY = 0.3
"""Product of successive directions of the search, relative to their lengths, that stops it."""


def solve(matrix: Product, b: Tensor, iterations: int) -> Tensor:
    """Conjugate gradients for the u with matrix(u) = b (B, ...), each sample by itself.

    A sample that has converged stays as it is. So does one for which the matrix is not positive
    along the direction p of the search, or is seen not to be symmetric: then p^T (matrix p') is 0
    for the direction p before p', but p'^T (matrix p) is not. The Jacobian of a network is neither
    positive nor symmetric, and the solution would blow up. Of a b that is not finite the solution
    is not either. Hestenes and Stiefel (1952).
    """
    size = match(b.abs().reshape(len(b), -1).amax(1), b)  # squares of small numbers would vanish
    b = b / size.clamp(min=torch.finfo(b.dtype).tiny)
    u, r, p, square = torch.zeros_like(b), b, b, dot(b, b)
    floor = (10 * torch.finfo(b.dtype).eps) ** 2 * square
    going, last, length = square > floor, torch.zeros_like(b), torch.zeros_like(square)
    for _ in range(iterations):
        q = matrix(p)
        curve = dot(p, q)
        alike = dot(last, q).abs() <= ASYMMETRY * length.sqrt() * curve.clamp(min=0).sqrt()
        going = going & (square > floor) & (curve > 0) & alike
        if going.device.type == "cpu" and not bool(going.any()):  # a device would be waited for
            break
        step = match(torch.where(going, square / curve, 0), u)
        u, r, last, length = u + step * p, r - step * q, p, curve.clamp(min=0)
        new = torch.where(going, dot(r, r), square)
        p = r + match(torch.where(going, new / square, 0), r) * p
        square = new
    return size * u


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B,)."""
    return (a * b).reshape(len(a), -1).sum(1)
