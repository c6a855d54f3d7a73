"""The variational bound in continuous time, in its denoising form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import sum_from
from scoresde.likelihood.flow import require_law
from scoresde.samplers.noise import Noise, white_noise
from scoresde.sde import SDE, match, sent
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
    noise: Noise | None = None,
) -> Bound:
    """Evidence lower bound of clean data, averaged over random noise levels.

        log p(x) >= E log p(x | z_0) - int E |eps - eps_hat|^2 dlam - KL(q(z_T | x) | prior)

    The integral over lam runs from t_max to ``t0``. The values of lam are stratified for each
    sample, and their density is the integrand of Gaussian data; the dependence of that integrand
    on |eps|^2 is subtracted as a control variate.

    Args:
        denoiser: the model.
        x: clean data (B, ...); for discrete data, the middles of the pixel levels.
        t0: lowest time; ``t_min`` by default.
        times: values of lam for each sample, at least 2.
        std: standard deviation of the Gaussian data in the density of lam.
        reconstruction: log p(x | z_0), averaged over ``times`` draws of z_0. By default that of
            continuous data, p(x | z_0) = N(z_0 / alpha, (sigma / alpha)^2).
        noise: source of all randomness; with ``per_sample_noise`` a value does not depend on the
            batch.

    Variational Diffusion Models, arXiv 2107.00630, eq. 11-17.
    """
    require_law(denoiser)
    require_samples(x)
    if times < 2:
        raise ValueError(f"need times >= 2, got {times}")
    sde, clean, noise = denoiser.sde, x.double(), noise or white_noise()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)
    draw = _Proposal(float(sde.lam(last)), float(sde.lam(first)), std)
    # E log N(x; z / alpha, (sigma / alpha)^2) is the same for every draw.
    each = -(1 + math.log(2 * math.pi)) / 2 + float(sde.lam(first))
    gaussian = clean.new_full((len(x),), x[0].numel() * each)
    rest = reconstruction or (lambda z: gaussian)
    parts = []
    for lam in draw.quantile(strata(clean, times, noise)):
        z = sde.perturb(clean, first, noise(clean))
        parts.append(rest(z) - _term(denoiser, clean, draw, lam, noise))
    value, error = stratified_mean(torch.stack(parts))
    return Bound(value - terminal_gap(sde, clean, last), error, times)


def strata(x: Tensor, n: int, noise: Noise) -> Tensor:
    """Equally spaced numbers in (0, 1) with a random offset per sample, in order: (n, B).

    They are on the host, where times are, which waits once for the draw.
    """
    offset = torch.special.ndtr(noise(x.new_empty(len(x), 1, dtype=torch.float64)))[:, 0].cpu()
    u: Tensor = (offset + torch.arange(n).unsqueeze(1)) / n
    return u


def stratified_mean(terms: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over ordered strata (n, B), and its standard error from neighbours.

        error^2 = sum_i (y_i - y_{i+1})^2 / (2 n (n - 1))

    The variance of all terms would also count the trend over the strata, which stratification
    removes. Introduction to Variance Estimation, Wolter, section 8.2.
    """
    n = len(terms)
    return terms.mean(0), (terms.diff(dim=0).square().sum(0) / (2 * n * (n - 1))).sqrt()


def terminal_gap(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """KL(q(z_t | x) | prior) (B,) for clean data ``x``, in nats."""
    std = float(sde.prior().stddev)
    alpha, ratio = float(sde.alpha(t)) / std, (float(sde.sigma(t)) / std) ** 2
    constant = x[0].numel() * (ratio - 1 - math.log(ratio))
    return (alpha**2 * sum_from(1, x.square()) + constant) / 2


def _term(denoiser: Denoiser, x: Tensor, draw: _Proposal, lam: Tensor, noise: Noise) -> Tensor:
    """|eps - eps_hat|^2 over the density of lam, minus its known dependence on |eps|^2."""
    sde = denoiser.sde
    t, eps = sde.time(lam), noise(x)
    with torch.no_grad():
        x0 = denoiser(sde.perturb(x, t, eps), t)
    error = sum_from(1, match((2 * lam).exp(), x) * (x - x0).square())
    unit = sent(draw.unit(lam), x.device)
    return draw.total * (error / unit - unit * excess(eps))


def excess(eps: Tensor) -> Tensor:
    """|eps|^2 - D (B,), whose mean is zero: a control variate."""
    return sum_from(1, eps.square()) - eps[0].numel()


class _Proposal:
    """Density of lam proportional to u = s^2 e^(2 lam) / (1 + s^2 e^(2 lam)) on an interval.

    The integral of u is softplus(2 lam + 2 log s) / 2.
    """

    def __init__(self, low: float, high: float, std: float) -> None:
        if not std > 0:
            raise ValueError(f"need std > 0, got std={std:g}")
        self.shift = 2 * math.log(std)
        self.start = self._integral(low)
        self.total = self._integral(high) - self.start

    def unit(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(2 * lam + self.shift)

    def quantile(self, u: Tensor) -> Tensor:
        area = 2 * (self.start + u * self.total)
        # The inverse of softplus, log(e^a - 1), for small and large a.
        return (area + torch.log(-torch.expm1(-area)) - self.shift) / 2

    def _integral(self, lam: float) -> float:
        z = 2 * lam + self.shift
        return (max(z, 0.0) + math.log1p(math.exp(-abs(z)))) / 2
