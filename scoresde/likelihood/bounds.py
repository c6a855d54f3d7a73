"""The variational bound in continuous time, in its denoising form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from scoresde.arguments import Positive, Range, check
from scoresde.denoiser import Denoiser
from scoresde.likelihood.confidence import student
from scoresde.likelihood.divergence import sum_from
from scoresde.likelihood.flow import require_law
from scoresde.samplers.noise import Noise, white_noise
from scoresde.sde import SDE, match, sent
from scoresde.solvers import require_samples, time_of

Reconstruction = Callable[[Tensor], Tensor]
"""log p(x | z) (B,) of the data given a state z at t_0."""


class Bound(NamedTuple):
    """A lower bound on log p in nats (B,), its standard error (B,) over draws, denoiser calls.

    ``freedom`` (B,) are the degrees of freedom of the standard error, far fewer than the draws if
    a few of them carry it.
    """

    log_prob: Tensor
    standard_error: Tensor
    nfe: int
    freedom: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (B,) of a confidence interval over the draws; NaN for a ``freedom`` f below 3.

            log_prob -+ t (1 + 1 / f) error

        with t the quantile of Student's law with f degrees of freedom. The factor allows for
        terms that are squares of normal numbers.
        """
        factor = student(level, self.freedom) * (1 + 1 / self.freedom)
        half = torch.where(self.freedom < 3, math.nan, factor) * self.standard_error
        return self.log_prob - half, self.log_prob + half


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    t0: float | None = None,
    times: Annotated[int, Range(ge=2)] = 32,
    std: Positive = 0.5,
    reconstruction: Reconstruction | None = None,
    noise: Noise | None = None,
) -> Bound:
    """Evidence lower bound of clean data, averaged over random noise levels.

        log p(x) >= E log p(x | z_0) - int E |eps - eps_hat|^2 dlam - KL(q(z_T | x) | prior)

    The integral over lam runs from t_max to ``t0``. The values of lam are stratified for each
    sample. Four fifths of their density are the integrand of Gaussian data; its dependence on
    |eps|^2 is subtracted as a control variate. One fifth is where the rest of its noise is.

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
    check(elbo, locals())
    require_law(denoiser)
    require_samples(x)
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
    weight = clean.new_full((times, 1), 1 / times)
    value, error, freedom = stratified_sum(torch.stack(parts), weight)
    return Bound(value - terminal_gap(sde, clean, last), error, times, freedom)


def strata(x: Tensor, n: int, noise: Noise) -> Tensor:
    """A random number in each of n equal parts of (0, 1), in order, for each sample: (n, B).

    They are on the host, where times are, which waits once for the draw.
    """
    place = torch.special.ndtr(noise(x.new_empty(len(x), n, dtype=torch.float64))).cpu()
    u: Tensor = ((place + torch.arange(n)) / n).T.contiguous()
    return u


def stratified_sum(terms: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of terms of ordered strata (n, B) times weights (n, 1), its error and freedom, (B,).

        error^2 = sum_i v_i,   v_i = w_i^2 (d_{i-1} + d_i) / 2,   d_i = (y_i - y_{i+1})^2 / 2
        freedom = (sum_i v_i)^2 / sum_i v_i^2

    with the one neighbour at the ends. The variance of all terms would also count the trend over
    the strata, which stratification removes. Introduction to Variance Estimation, Wolter, sections
    2.5 (Satterthwaite's rule) and 8.2.
    """
    steps = terms.diff(dim=0).square() / 2
    variance = torch.cat([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]]) * weight**2
    total = variance.sum(0)
    freedom = (total.square() / variance.square().sum(0)).nan_to_num(len(terms) - 1.0)
    return (weight * terms).sum(0), total.sqrt(), freedom


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
    unit, density = (sent(part(lam), x.device) for part in (draw.unit, draw.density))
    return (error - unit**2 * excess(eps)) / density


def excess(eps: Tensor) -> Tensor:
    """|eps|^2 - D (B,), whose mean is zero: a control variate."""
    return sum_from(1, eps.square()) - eps[0].numel()


class _Proposal:
    """Density of lam on an interval, from u = s^2 e^(2 lam) / (1 + s^2 e^(2 lam)).

        4/5 u + 1/5 du/dlam, each over its integral

    u is the mean of the integrand for Gaussian data of deviation s. Its noise is near u = 1/2,
    where an interval that reaches to small noise would have few draws. The integral of u is
    softplus(2 lam + 2 log s) / 2.
    """

    def __init__(self, low: float, high: float, std: float) -> None:
        self.shift = 2 * math.log(std)
        self.ends = torch.tensor([low, high], dtype=torch.float64)
        area, change = self._area(self.ends).diff(), self.unit(self.ends).diff()
        self.weights = float(0.8 / area), float(0.2 / change)
        self.start = self._integral(self.ends[0])

    def unit(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(2 * lam + self.shift)

    def density(self, lam: Tensor) -> Tensor:
        u = self.unit(lam)
        return self.weights[0] * u + self.weights[1] * 2 * u * (1 - u)

    def quantile(self, u: Tensor) -> Tensor:
        low, high = (torch.full_like(u, float(end)) for end in self.ends)
        for _ in range(60):  # bisection to rounding
            middle = (low + high) / 2
            below = self._integral(middle) - self.start < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low

    def _integral(self, lam: Tensor) -> Tensor:
        return self.weights[0] * self._area(lam) + self.weights[1] * self.unit(lam)

    def _area(self, lam: Tensor) -> Tensor:
        return torch.nn.functional.softplus(2 * lam + self.shift, threshold=700.0) / 2
