"""The variational bound in continuous time, in its denoising form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import match
from scoresde.solvers import require_samples, time_of

Reconstruction = Callable[[Tensor], Tensor]
"""log p(x | z) (B,) of the data given a state z at t_0."""


class Bound(NamedTuple):
    """A lower bound on log p in nats (B,), its standard error (B,) over draws, denoiser calls."""

    log_prob: Tensor
    standard_error: Tensor
    nfe: int


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    t0: float | None = None,
    times: int = 32,
    std: float = 0.5,
    reconstruction: Reconstruction | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """The evidence lower bound of clean data ``x`` (B, ...), averaged over ``times`` noises.

        log p(x) >= E log p(x | z_0) - int E |eps - eps_hat|^2 dlam - KL(q(z_T | x) | prior)

    over lam from t_max to ``t0`` (``t_min``). Levels of noise are stratified, a sample at a time,
    with the density of the integrand of Gaussian data of deviation ``std``, whose dependence on
    |eps|^2 is taken out. ``reconstruction`` is exact for continuous data by default, with
    p(x | z_0) = N(z_0 / alpha, (sigma / alpha)^2); for discrete data pass the middles of the
    levels as ``x`` and a decoder. Raises ValueError unless times >= 2. Variational Diffusion
    Models, arXiv 2107.00630, eq. 11-17.
    """
    require_samples(x)
    if times < 2:
        raise ValueError(f"need times >= 2, got {times}")
    sde, dim = denoiser.sde, x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)
    draw = _Proposal(float(sde.lam(last)), float(sde.lam(first)), std)
    offset = torch.rand(len(x), generator=generator, dtype=torch.float64)
    terms = torch.stack(
        [_term(denoiser, x, draw, (offset + i / times) % 1, generator) for i in range(times)]
    )
    clean = x.double().flatten(1)
    alpha, sigma = float(sde.alpha(first)), float(sde.sigma(first))
    if reconstruction is None:
        each = -(1 + math.log(2 * math.pi) + 2 * math.log(sigma / alpha)) / 2
        kept = clean.new_full((len(x),), dim * each)
    else:
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        kept = reconstruction(alpha * x.double() + sigma * z)
    end = float(sde.alpha(last)) / float(sde.prior().stddev)
    prior = end**2 * clean.square().sum(1) / 2  # the variances of q(z_T | x) and the prior agree
    error = terms.std(0) / math.sqrt(times)
    return Bound(kept - terms.mean(0) - prior, error, times)


def _term(
    denoiser: Denoiser, x: Tensor, draw: _Proposal, u: Tensor, generator: torch.Generator | None
) -> Tensor:
    """|eps - eps_hat|^2 over the density of its lam, without its known dependence on |eps|^2."""
    sde = denoiser.sde
    lam = draw.quantile(u)
    t = sde.time(lam).to(x.device)
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    with torch.no_grad():
        x0 = denoiser(sde.perturb(x, t, eps), t)
    error = (match((2 * lam).exp(), x) * (x - x0).square()).flatten(1).double().sum(1)
    share = draw.share(lam).to(error)
    excess = eps.flatten(1).double().square().sum(1) - x[0].numel()
    return draw.total * (error / share - share * excess)


class _Proposal:
    """lam with the density of share(lam) = s^2 e^(2 lam) / (1 + s^2 e^(2 lam)) on an interval.

    The integral of the share is softplus(2 lam + 2 log s) / 2.
    """

    def __init__(self, low: float, high: float, std: float) -> None:
        if not std > 0:
            raise ValueError(f"need std > 0, got std={std:g}")
        self.shift = 2 * math.log(std)
        self.start = self._integral(low)
        self.total = self._integral(high) - self.start

    def share(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(2 * lam + self.shift)

    def quantile(self, u: Tensor) -> Tensor:
        area = 2 * (self.start + u * self.total)
        # The inverse of softplus, log(e^a - 1), for small and large a.
        return (area + torch.log(-torch.expm1(-area)) - self.shift) / 2

    def _integral(self, lam: float) -> float:
        z = 2 * lam + self.shift
        return (max(z, 0.0) + math.log1p(math.exp(-abs(z)))) / 2
