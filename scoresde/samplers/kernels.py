"""The arithmetic of one step from t to s: host scalars in, pure tensor functions out."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from scoresde.sde import SDE


class Level(NamedTuple):
    """The marginal at one time of a grid as host floats: a step never waits for a device."""

    alpha: float
    sigma: float
    lam: float


def level(sde: SDE, t: Tensor) -> Level:
    """Marginal coefficients at a 0-dim time."""
    log_alpha, log_sigma = float(sde.log_alpha(t.double())), float(sde.log_sigma(t.double()))
    return Level(math.exp(log_alpha), math.exp(log_sigma), log_alpha - log_sigma)


def transition(at: Level, to: Level) -> tuple[float, float]:
    """Forward transition p(x_t | x_s) = N(a x_s, v) as (a, v).

        a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2

    ``at`` is the noisier level t and ``to`` the cleaner level s; v is computed without
    cancellation. Raises ValueError where s is not cleaner.
    """
    if at.lam > to.lam:
        raise ValueError("a stochastic step runs from a noisy t to a cleaner s; flip the grid")
    return at.alpha / to.alpha, -(at.sigma**2) * math.expm1(2 * (at.lam - to.lam))


def noise_of(x: Tensor, x0: Tensor, at: Level) -> Tensor:
    """eps = (x - alpha x0) / sigma, (4)."""
    return (x - at.alpha * x0) / at.sigma


def score_of(x: Tensor, x0: Tensor, at: Level) -> Tensor:
    """score = (alpha x0 - x) / sigma^2, (5)."""
    return (at.alpha * x0 - x) / at.sigma**2


def ddim_update(
    x0: Tensor, eps: Tensor, at: Level, to: Level, eta: float, z: Tensor | None
) -> Tensor:
    """The DDIM update from level ``at`` to level ``to``.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z,
        v = eta^2 sigma_s^2 v_ts / sigma_t^2

    eta = 0 is the probability-flow step, eta = 1 the exact posterior p(x_s | x_t, x0). Denoising
    Diffusion Implicit Models, arXiv 2010.02502, eq. 12 and 16, for any alpha and sigma.
    """
    if z is None or eta == 0:
        return to.alpha * x0 + to.sigma * eps
    _, variance = transition(at, to)
    v = eta**2 * to.sigma**2 * variance / at.sigma**2
    return to.alpha * x0 + math.sqrt(to.sigma**2 - v) * eps + math.sqrt(v) * z
