"""The arithmetic of one step from t to s: host scalars in, pure tensor functions out."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.sde import SDE


class Level(NamedTuple):
    """The marginal at one time of a grid as host floats: a step never waits for a device."""

    alpha: float
    sigma: float
    lam: float


def level(sde: SDE, t: Tensor) -> Level:
    """Marginal coefficients at a 0-dim time; the end of a step is remembered for the next."""
    return _level(sde, float(t))


@lru_cache(maxsize=4096)
def _level(sde: SDE, t: float) -> Level:
    time = torch.tensor(t, dtype=torch.float64)
    log_alpha, log_sigma = float(sde.log_alpha(time)), float(sde.log_sigma(time))
    return Level(math.exp(log_alpha), math.exp(log_sigma), log_alpha - log_sigma)


@lru_cache(maxsize=4096)
def time_at(sde: SDE, lam: float) -> Tensor:
    """The 0-dim time of a level; remembered, as an inverse takes a while."""
    return sde.time(torch.tensor(lam, dtype=torch.float64))


def transition(at: Level, to: Level) -> tuple[float, float]:
    """Forward transition p(x_t | x_s) = N(a x_s, v) as (a, v).

        a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2

    ``at`` is the noisier level t and ``to`` the cleaner level s; v is computed without
    cancellation. Raises ValueError where s is not cleaner.
    """
    if at.lam > to.lam:
        raise ValueError("a stochastic step runs from a noisy t to a cleaner s; flip the grid")
    return at.alpha / to.alpha, -(at.sigma**2) * math.expm1(2 * (at.lam - to.lam))


def rates(sde: SDE, t: Tensor) -> tuple[float, float]:
    """Drift and squared diffusion (f, g^2) at a 0-dim time, as host floats."""
    return _rates(sde, float(t))


@lru_cache(maxsize=4096)
def _rates(sde: SDE, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return float(sde.f(time)), float(sde.g2(time))


def blend(x: Tensor, on_x: float, x0: Tensor, on_x0: float) -> Tensor:
    """on_x x + on_x0 x0, in two passes over memory."""
    return torch.mul(x, on_x).add_(x0, alpha=on_x0)


def score_step(x: Tensor, kept: float, x0: Tensor, gain: float, at: Level) -> Tensor:
    """kept x + gain score with score = (alpha x0 - x) / sigma^2, (5)."""
    unit = gain / at.sigma**2
    return blend(x, kept - unit, x0, unit * at.alpha)


def flow_step(x: Tensor, x0: Tensor, at: Level, to: Level) -> Tensor:
    """x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) x0: the probability flow with x0 held.

    Defined where alpha or sigma is zero too (from sigma = 0 on, E[eps | x] = 0). The DDIM step,
    arXiv 2010.02502, eq. 12 without noise, and first-order DPM-Solver++, arXiv 2211.01095, eq. 9.
    """
    if at.sigma == 0:
        return to.alpha * x0
    kept = to.sigma / at.sigma
    towards_noise = to.lam < at.lam
    # Towards data the difference would cancel, towards noise the exponential may overflow.
    gain = to.alpha - kept * at.alpha if towards_noise else -to.alpha * math.expm1(at.lam - to.lam)
    return blend(x, kept, x0, gain)
