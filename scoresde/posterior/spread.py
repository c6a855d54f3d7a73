"""Gaussians of x0 given x_t: a covariance known along some directions, and a measurement of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DENSE = 64
"""Measurements of up to so many numbers are solved by a Cholesky factor."""


class Spread(NamedTuple):
    """Covariances C = rest (1 - Q Q^T) + Q diag(values) Q^T, Q (N, D, K) orthonormal.

    ``values`` are (N, K) and ``rest`` (N, 1), both positive.
    """

    q: Tensor
    values: Tensor
    rest: Tensor

    def __call__(self, x: Tensor, f: Callable[[Tensor], Tensor] = lambda c: c) -> Tensor:
        """f(C) x of each x (N, D)."""
        inner = torch.einsum("ndk,nd->nk", self.q, x)
        rest = f(self.rest)
        return rest * x + torch.einsum("ndk,nk->nd", self.q, (f(self.values) - rest) * inner)

    def map(self, f: Callable[[Tensor], Tensor]) -> Spread:
        """f(C)."""
        return Spread(self.q, f(self.values), f(self.rest))

    def among(self, rows: Tensor) -> Spread:
        return Spread(*(part[rows] for part in self))


def whole(columns: Tensor) -> Spread:
    """The spread of covariances (N, D, D), whose negative parts are noise of a network."""
    values, q = torch.linalg.eigh((columns + columns.mT) / 2)
    floor = torch.finfo(columns.dtype).tiny ** 0.25
    return Spread(q, values.clamp(min=floor), torch.full_like(values[:, :1], floor))


def nystrom(v: Tensor, cv: Tensor, trace: Tensor, eps: float) -> Spread:
    """The spread of which C v (N, D, K) along orthonormal v is known, and the trace.

    C_v = C v (v^T C v)^+ v^T C is exact along v; what is left of the trace, (N,), in the mean over
    the particles, is spread evenly over the other directions. ``eps`` is the relative size of what
    is noise.
    """
    d, k = v.shape[1:]
    inner = v.mT @ cv
    values, u = torch.linalg.eigh((inner + inner.mT) / 2)
    kept = values > 10 * eps * values[:, -1:].clamp(min=torch.finfo(v.dtype).tiny)
    root = torch.where(kept, values.clamp(min=0), math.inf).rsqrt()
    factor = cv @ (u * root.unsqueeze(1))  # C_v = factor factor^T
    found = factor.square().sum((1, 2))
    tiny = 10 * eps * trace.mean().abs() / d
    rest = ((trace - found).mean() / max(d - k, 1)).clamp(min=tiny)
    q = torch.linalg.qr(torch.cat([v, cv], 2))[0] if 2 * k < d else _eye(d, v).expand(len(v), d, d)
    f, w = q.mT @ factor, q.mT @ v
    inside = f @ f.mT + rest * (_eye(q.shape[2], v) - w @ w.mT)
    values, u = torch.linalg.eigh(inside)
    return Spread(q @ u, values.clamp(min=tiny), rest.expand(len(v), 1))


@dataclass(frozen=True)
class Seen:
    """Rows H (N or 1, M, D), orthogonal, of squared lengths ``square`` (N or 1, M), with noise.

    They measure H x0 + noise eps of samples (N, D).
    """

    rows: Tensor
    square: Tensor
    noise: float

    def __call__(self, x: Tensor) -> Tensor:
        """H x (N, M)."""
        if len(self.rows) == 1:
            return x @ self.rows[0].T
        return torch.einsum("nmd,nd->nm", self.rows, x)

    def adjoint(self, u: Tensor) -> Tensor:
        """H^T u (N, D)."""
        if len(self.rows) == 1:
            return u @ self.rows[0]
        return torch.einsum("nmd,nm->nd", self.rows, u)

    def among(self, rows: Tensor) -> Seen:
        if len(self.rows) == 1:
            return self
        return Seen(self.rows[rows], self.square[rows], self.noise)

    def solve(self, c: Spread, r: Tensor) -> tuple[Tensor, Tensor]:
        """log N(r; 0, S) (N,) and S^-1 r (N, M) of S = H C H^T + noise^2."""
        diagonal = self.noise**2 + c.rest * self.square
        p = self.rows @ c.q  # (N, M, K)
        gap = c.values - c.rest
        constant = r.shape[1] * math.log(2 * math.pi)
        if r.shape[1] <= max(DENSE, p.shape[2]):
            s = torch.diag_embed(diagonal) + (p * gap.unsqueeze(1)) @ p.mT
            factor = torch.linalg.cholesky(s)
            u = torch.cholesky_solve(r.unsqueeze(2), factor).squeeze(2)
            log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        else:  # Woodbury's identity, in the few directions
            scaled = p / diagonal.unsqueeze(2)
            small = _eye(p.shape[2], p) + gap.unsqueeze(2) * (p.mT @ scaled)
            b = gap * torch.einsum("nmk,nm->nk", scaled, r)
            u = r / diagonal - torch.einsum("nmk,nk->nm", scaled, torch.linalg.solve(small, b))
            log_det = torch.linalg.slogdet(small)[1] + diagonal.log().sum(1)
        return -((r * u).sum(1) + log_det + constant) / 2, u


def _eye(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)
