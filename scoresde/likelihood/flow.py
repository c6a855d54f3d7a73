"""Likelihoods: the probability flow solved from data to noise, with its divergence.

    log p_t0(x) = log p_T(x_T) + D log(n_T / n_t0) + int tr(d(dw/dlam)/dw) dlam over the path (10)

with w = x / n, n = sqrt(alpha^2 + sigma^2); the integral runs along the path, from t_0 to T.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import Divergence, exact
from scoresde.sde import SDE, unit_alpha
from scoresde.solvers import (
    Flow,
    Tolerance,
    integrate,
    require_continuous,
    time_of,
)


class LogLikelihood(NamedTuple):
    """Log-densities in nats (B,), latent codes at t_max (B, ...), denoiser calls, standard errors.

    The standard error of each log-density (B,) is over probes: zero for the exact divergence, NaN
    for a single probe, which cannot tell its own error.
    """

    log_prob: Tensor
    latent: Tensor
    nfe: int
    standard_error: Tensor


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    divergence: Divergence = exact,
    *,
    prior: Any = None,
    t0: float | None = None,
    method: str = "dopri8",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    steps: int = 50,
    max_nfe: int = 10_000,
) -> LogLikelihood:
    """Log-density (10) of samples ``x`` (B, ...) taken to lie at time ``t0`` (default ``t_min``).

    ``prior`` is the log-density of the terminal law: a callable or an object with ``log_prob``,
    elementwise or per sample; the process's own by default. Solver options are those of
    ``solve_ode``. Raises ValueError and SolverError as ``solve_ode`` does. Score-Based Generative
    Modeling through SDEs, arXiv 2011.13456, eq. 39, in the variables of (8).
    """
    require_law(denoiser)
    require_continuous(x)
    sde, flow, dim = denoiser.sde, Flow(denoiser), x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)

    def rate(lam: float, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a = unit_alpha(lam)
        x0, div = divergence(lambda w: flow.x0(w, lam), state[0])
        return a * (x0 - a * state[0]), a * (div - a * dim)

    # A float32 state would put a floor under the tolerances; the network keeps its own dtype.
    state = x.double() / float(sde.norm(first))
    start = (state, state.new_zeros(divergence.estimates, len(x)))
    tolerance = Tolerance(method, rtol, atol, steps, max_nfe)
    w, gain = integrate(rate, start, float(sde.lam(first)), float(sde.lam(last)), tolerance)
    latent = w * float(sde.norm(last))
    log_prob = closed(sde, latent, prior, first, last) + gain.mean(0)
    return LogLikelihood(log_prob, latent, flow.nfe, standard_error_of(gain, divergence))


def require_law(denoiser: Denoiser) -> None:
    """Raise ValueError for a denoiser that is the score of no law."""
    if not denoiser.normalised:
        raise ValueError(
            "a guided or clipped denoiser is the score of no law, and has no likelihood; score "
            "the model without the guide"
        )


def closed(sde: SDE, latent: Tensor, prior: Any, first: Tensor, last: Tensor) -> Tensor:
    """What (10) adds to the integral, log p_T(x_T) + D log(n_T / n_t0), of each sample (B,)."""
    units = latent[0].numel() * math.log(float(sde.norm(last)) / float(sde.norm(first)))
    return terminal_log_prob(sde.prior() if prior is None else prior, latent) + units


def terminal_log_prob(prior: Any, x: Tensor) -> Tensor:
    """Evaluate a log-density, summed over everything but the batch."""
    value: Tensor = prior.log_prob(x) if hasattr(prior, "log_prob") else prior(x)
    return value.flatten(1).sum(1) if value.ndim > 1 else value


def standard_error_of(gain: Tensor, divergence: Divergence) -> Tensor:
    if not divergence.random:
        return torch.zeros_like(gain[0])
    if len(gain) == 1:
        return torch.full_like(gain[0], math.nan)
    return gain.std(0) / math.sqrt(len(gain))
