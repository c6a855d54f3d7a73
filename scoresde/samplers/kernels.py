"""The arithmetic of one step from t to s: host scalars in, pure tensor functions out."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.samplers.noise import Noise
from scoresde.sde import SDE, match, unit_alpha


class Marginal(NamedTuple):
    """The marginal at one time as host floats, so that a step never waits for a device."""

    alpha: float
    sigma: float
    lam: float


def marginal(sde: SDE, t: Tensor) -> Marginal:
    """The marginal at a 0-dim time; cached, because the end of a step is the start of the next."""
    return _marginal(sde, float(t))


@lru_cache(maxsize=4096)
def _marginal(sde: SDE, t: float) -> Marginal:
    time = torch.tensor(t, dtype=torch.float64)
    log_alpha, log_sigma = float(sde.log_alpha(time)), float(sde.log_sigma(time))
    return Marginal(math.exp(log_alpha), math.exp(log_sigma), log_alpha - log_sigma)


@lru_cache(maxsize=4096)
def time_at(sde: SDE, lam: float) -> Tensor:
    """The 0-dim time of a lam; cached, because the inverse is iterative."""
    return sde.time(torch.tensor(lam, dtype=torch.float64))


def marginals(sde: SDE, t: Tensor, s: Tensor, noisy: bool = True) -> tuple[Marginal, Marginal]:
    """The marginals at the start and the end of a step.

    Raises ValueError for a ``noisy`` step that does not go to less noise.
    """
    at, to = marginal(sde, t), marginal(sde, s)
    if noisy and not to.lam > at.lam:
        raise ValueError(
            f"a stochastic step goes to less noise, got t={float(t):g} to s={float(s):g}; "
            "use a decreasing grid, or eta=0"
        )
    return at, to


def transition(at: Marginal, to: Marginal) -> tuple[float, float]:
    """Forward transition p(x_t | x_s) = N(a x_s, v) as (a, v), from s up to the noisier t.

        a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2

    ``at`` is t and ``to`` is s, as in the reverse step. v is computed without cancellation.
    """
    return at.alpha / to.alpha, -(at.sigma**2) * math.expm1(2 * (at.lam - to.lam))


def split(at: Marginal, to: Marginal, eta: float) -> tuple[Marginal, float]:
    """The marginal that an ancestral step goes down to, and the deviation of the noise it adds.

        up = eta sigma_s sqrt(1 - q^2),  down^2 = sigma_s^2 - up^2,  q = (sigma/alpha)_s / (..)_t

    The noise restores the marginal ``to``. Both are computed without cancellation.
    ``get_ancestral_step`` of k-diffusion.
    """
    gap = 2 * (at.lam - to.lam)
    up = eta * to.sigma * math.sqrt(-math.expm1(gap)) if eta else 0.0
    fraction = 1 - eta**2 + eta**2 * math.exp(gap) if eta else 1.0  # down^2 / sigma_s^2
    if fraction == 0 or to.sigma == 0:
        return Marginal(to.alpha, 0.0, math.inf), up
    return Marginal(to.alpha, to.sigma * math.sqrt(fraction), to.lam - math.log(fraction) / 2), up


def rates(sde: SDE, t: Tensor) -> tuple[float, float]:
    """Drift and squared diffusion (f, g^2) at a 0-dim time, as host floats."""
    return _rates(sde, float(t))


@lru_cache(maxsize=4096)
def _rates(sde: SDE, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return float(sde.f(time)), float(sde.g2(time))


def combine(*terms: tuple[float, Tensor]) -> Tensor:
    """The weighted sum of tensors, with one pass over memory per term."""
    (weight, first), *rest = terms
    total = torch.mul(first, weight)
    for weight, term in rest:
        total.add_(term, alpha=weight)
    return total


def noised(mean: Tensor, std: float, noise: Noise, t: Tensor, s: Tensor) -> Tensor:
    """mean + std z, in place; draws no noise if ``std`` is 0."""
    return mean.add_(noise(mean, t, s), alpha=std) if std else mean


def score_step(x: Tensor, kept: float, x0: Tensor, gain: float, at: Marginal) -> Tensor:
    """kept x + gain score with score = (alpha x0 - x) / sigma^2, (5)."""
    unit = gain / at.sigma**2
    return combine((kept - unit, x), (unit * at.alpha, x0))


def flow_step(x: Tensor, x0: Tensor, at: Marginal, to: Marginal) -> Tensor:
    """x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) x0: the probability flow at constant x0.

    It is defined at alpha = 0 and sigma = 0 too; a step from sigma = 0 takes E[eps | x] = 0.
    The DDIM step, arXiv 2010.02502, eq. 12 without noise, which is first-order DPM-Solver++,
    arXiv 2211.01095, eq. 9.
    """
    if at.sigma == 0:
        return to.alpha * x0
    scale = to.sigma / at.sigma
    towards_noise = to.lam < at.lam
    # The difference cancels in a step towards data; expm1 may overflow in one towards noise.
    if towards_noise:
        gain = to.alpha - scale * at.alpha
    else:
        gain = -to.alpha * math.expm1(at.lam - to.lam)
    return torch.mul(x, scale).add_(x0, alpha=gain)


def held_flow(w: Tensor, x0: Tensor, lam: Tensor, h: Tensor) -> Tensor:
    """``flow_step`` with a step h in lam per sample (B,), for w = x / sqrt(alpha^2 + sigma^2).

    w_s = (b_s / b_t) w - a_s expm1(-h) x0,   a = a(lam) and b = a(-lam) of (8)
    """
    scale = unit_alpha(-lam - h) / unit_alpha(-lam)
    return match(scale, w) * w - match(unit_alpha(lam + h) * torch.expm1(-h), w) * x0
