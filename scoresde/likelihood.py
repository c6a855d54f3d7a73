"""Likelihoods: the probability flow solved from data to noise, with its divergence.

    log p_t0(x) = log p_T(x_T) + D log(n_T / n_t0) + int tr(d(dw/dlam)/dw) dlam over the path (10)

with w = x / n, n = sqrt(alpha^2 + sigma^2); the integral runs along the path, from t_0 to T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.solvers import (
    Flow,
    Tolerance,
    integrate,
    require_samples,
    scale,
    time_of,
    unit_alpha,
)

Field = Callable[[Tensor], Tensor]


class Divergence(Protocol):
    """The divergence of a field at x (B, ...): ``estimates`` independent values, (estimates, B).

    A call returns field(x) with them; ``random`` says whether they scatter about the truth.
    """

    @property
    def estimates(self) -> int: ...
    @property
    def random(self) -> bool: ...

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Exact:
    """The trace of the Jacobian, by ``chunk`` batched backward passes at a time."""

    chunk: int = 64
    estimates: ClassVar[int] = 1
    random: ClassVar[bool] = False

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = _pullback(field, x)
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        trace = x.new_zeros(len(x))
        for rows in basis.split(self.chunk):
            probes = rows.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            trace = trace + (pull(probes) * probes).flatten(2).sum((0, 2))
        return value, trace[None]


@dataclass(frozen=True)
class Hutchinson:
    """v^T J v for each of the fixed ``probes`` (K, B, ...) of unit covariance, each unbiased.

    The probes are held for a whole solve, so that the right-hand side stays smooth. FFJORD, arXiv
    1810.01367, eq. 8.
    """

    probes: Tensor
    random: ClassVar[bool] = True

    @property
    def estimates(self) -> int:
        return len(self.probes)

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = _pullback(field, x)
        return value, (pull(self.probes) * self.probes).flatten(2).sum(2)


exact = Exact()
"""The exact divergence with its default chunk."""


def hutchinson(probe: Tensor) -> Hutchinson:
    """The estimator with one probe, shaped like the batch (B, ...)."""
    return Hutchinson(probe[None])


def rademacher(x: Tensor, probes: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Random signs (probes, *x.shape), the independent probes of least variance.

    Raises ValueError unless probes >= 1.
    """
    if probes < 1:
        raise ValueError(f"need at least 1 probe, got {probes}")
    bits = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=x.device)
    return (2 * bits - 1).to(x.dtype)


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
    require_samples(x)
    sde, flow, dim = denoiser.sde, Flow(denoiser), x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)
    n0, n1 = scale(sde, first), scale(sde, last)

    def rate(lam: float, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a = unit_alpha(lam)
        x0, div = divergence(lambda w: flow.x0(w, lam), state[0])
        return a * (x0 - a * state[0]), a * (div - a * dim)

    # A float32 state would put a floor under the tolerances; the network keeps its own dtype.
    state = x.double() / n0
    start = (state, state.new_zeros(divergence.estimates, len(x)))
    tolerance = Tolerance(method, rtol, atol, steps, max_nfe)
    w, gain = integrate(rate, start, float(sde.lam(first)), float(sde.lam(last)), tolerance)
    latent = w * n1
    terminal = _per_sample_log_prob(sde.prior() if prior is None else prior, latent)
    log_prob = terminal + dim * math.log(n1 / n0) + gain.mean(0)
    return LogLikelihood(log_prob, latent, flow.nfe, _standard_error(gain, divergence))


def bits_per_dim(log_prob: Tensor, shape: torch.Size | tuple[int, ...], scale: float) -> Tensor:
    """Bits per dimension of integer levels, -(log_prob / D + log scale) / log 2.

    ``shape`` is that of one sample (D its product) and ``scale`` is d(model units) / d(level), so
    that the density of the level plus its dequantisation is the model's times scale^D. RealNVP,
    arXiv 1605.08803, section 4.1.
    """
    return -(log_prob / math.prod(shape) + math.log(scale)) / math.log(2)


def _pullback(field: Field, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """field(x), and the map from K cotangents (K, B, ...) to K products v^T J."""
    with torch.inference_mode(False), torch.enable_grad():
        u = x.detach().clone().requires_grad_()
        value = field(u)

    def pull(cotangents: Tensor) -> Tensor:
        batched = len(cotangents) > 1
        v = cotangents if batched else cotangents[0]
        with torch.inference_mode(False):
            (rows,) = torch.autograd.grad(
                value, u, v.to(value).clone(), retain_graph=True, is_grads_batched=batched
            )
        return rows if batched else rows[None]

    return value.detach(), pull


def _per_sample_log_prob(prior: Any, x: Tensor) -> Tensor:
    """Evaluate a log-density, summed over everything but the batch."""
    value: Tensor = prior.log_prob(x) if hasattr(prior, "log_prob") else prior(x)
    return value.flatten(1).sum(1) if value.ndim > 1 else value


def _standard_error(gain: Tensor, divergence: Divergence) -> Tensor:
    if not divergence.random:
        return torch.zeros_like(gain[0])
    if len(gain) == 1:
        return torch.full_like(gain[0], math.nan)
    return gain.std(0) / math.sqrt(len(gain))
