"""Likelihoods by the probability flow from data to noise, with its divergence.

    log p_t0(x) = log p_T(x_T) + D log(n_T / n_t0) + int tr(d(dw/dlam)/dw) dlam over the path (10)

with w = x / n, n = sqrt(alpha^2 + sigma^2), and the path from t_0 to T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.arguments import Count, Positive, check
from scoresde.denoiser import Denoiser
from scoresde.likelihood.confidence import student
from scoresde.likelihood.divergence import EXACT, Divergence, sum_from
from scoresde.samplers import solve_adaptive
from scoresde.sde import SDE, match, sent, unit_alpha
from scoresde.solvers import (
    Flow,
    SolverError,
    Tolerance,
    integrate,
    require_continuous,
    time_of,
)

FEWEST = 10
"""Fewest probes with a standard error."""


class LogLikelihood(NamedTuple):
    """Log-densities in nats (B,), latent codes at t_max (B, ...), denoiser calls, and errors.

    The standard errors (B,) are over ``estimates`` independent probes: zero for the exact
    divergence, NaN where the probes are too few to say, as in ``standard_error_of``.
    ``solver_error`` (B,) estimates the error of the solver in nats: NaN if it is not estimated,
    infinity for a sample that did not reach its end, whose log-density may be NaN.
    """

    log_prob: Tensor
    latent: Tensor
    nfe: int
    standard_error: Tensor
    solver_error: Tensor
    estimates: int = 1

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (B,) of a confidence interval over the probes; NaN where the error is unknown.

            log_prob -+ t (1 + 9 / K) error,   K estimates

        with t the quantile of Student's law with K - 1 degrees of freedom. The factor gives
        ``level`` for the square of a normal number, the law of a Jacobian of rank one, on which
        Student's interval is too short.
        """
        k = self.estimates
        half = float(student(level, max(k - 1, 1))) * (1 + 9 / k) * self.standard_error
        return self.log_prob - half, self.log_prob + half


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    divergence: Divergence = EXACT,
    *,
    prior: Any = None,
    t0: float | None = None,
    method: str = "dopri8",
    rtol: Positive = 1e-6,
    atol: Positive = 1e-6,
    steps: Count = 50,
    max_nfe: Count = 10_000,
    grad: bool = False,
) -> LogLikelihood:
    """Log-density (10) of samples by torchdiffeq, with the solver options of ``solve_ode``.

    Args:
        denoiser: the model.
        x: samples (B, ...), taken as states at ``t0``.
        divergence: the divergence, exact or with fixed probes.
        prior: log-density of the terminal law, elementwise or per sample: a callable or an object
            with ``log_prob``. By default the prior of the process.
        t0: time of the samples; ``t_min`` by default.
        method: name of the method.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method.
        steps: number of steps of a fixed-step method.
        max_nfe: limit on the denoiser calls.
        grad: keep the autograd graph of the values to ``x`` and to the parameters of the model,
            which needs a twice differentiable network; without it they have none, even if ``x``
            requires gradients.

    Raises ValueError and SolverError as ``solve_ode`` does. Score-Based Generative Modeling
    through SDEs, arXiv 2011.13456, eq. 39, in the variables of (8).
    """
    check(log_likelihood, locals())
    require_law(denoiser)
    require_continuous(x)
    sde, flow, dim = denoiser.sde, Flow(denoiser), x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)

    def rate(lam: float, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a = unit_alpha(lam)
        x0, div = divergence(lambda w: flow.x0(w, lam), state[0])
        return a * (x0 - a * state[0]), a * (div - a * dim)

    # Rounding of a float32 state would limit the tolerance; the network keeps its own dtype.
    state = (x if grad else x.detach()).double() / float(sde.norm(first))
    if grad and not state.requires_grad:
        state.requires_grad_()  # by which a divergence knows that it is recorded
    start = (state, state.new_zeros(divergence.estimates, len(x)))
    tolerance = Tolerance(method, rtol, atol, steps, max_nfe, grad)
    w, gain = integrate(rate, start, float(sde.lam(first)), float(sde.lam(last)), tolerance)
    latent = w * float(sde.norm(last))
    log_prob = closed(sde, latent, prior, first, last) + gain.mean(0)
    error = standard_error_of(gain, divergence)
    return LogLikelihood(log_prob, latent, flow.nfe, error, error * math.nan, len(gain))


def adaptive_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    divergence: Divergence = EXACT,
    *,
    prior: Any = None,
    t0: float | None = None,
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    max_nfe: Count = 10_000,
    strict: bool = True,
) -> LogLikelihood:
    """Log-density (10) of samples by ``samplers.solve_adaptive``, with error control per sample.

    The Dormand-Prince pair solves for the state and its log-density jointly. A value does not
    depend on the batch. A sample that does not reach t_max within ``max_nfe`` calls has
    log-density NaN and ``solver_error`` infinity; the others have ``solver_error`` NaN, which is
    not estimated.

    Args:
        denoiser: the model.
        x: samples (B, ...), taken as states at ``t0``.
        divergence: the divergence, exact or with fixed probes.
        prior: log-density of the terminal law, as in ``log_likelihood``.
        t0: time of the samples; ``t_min`` by default.
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_nfe: limit on the denoiser calls.
        strict: raise if no sample reaches t_max.

    Raises ValueError for arguments out of range, an empty batch or integers, SolverError if no
    sample reaches t_max and ``strict``, RuntimeError for a denoiser that is not finite.
    """
    check(adaptive_log_likelihood, locals())
    require_law(denoiser)
    require_continuous(x)
    sde, dim = denoiser.sde, x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)
    joint = Denoiser(sde, _Joint(denoiser, divergence, x.shape[1:]))
    state = x.double().reshape(len(x), dim)
    y = torch.cat([state, state.new_zeros(len(x), divergence.estimates)], 1)
    end = solve_adaptive(joint, y, float(first), float(last), rtol, atol, max_nfe)
    if strict and not bool(end.finished.any()):
        raise SolverError(
            f"adaptive: {len(x)} of {len(x)} samples did not reach t={float(last):g} within "
            f"{max_nfe} calls; loosen rtol and atol, or raise max_nfe"
        )
    finished = sent(end.finished, x.device)
    latent = end.x[:, :dim].reshape(x.shape)
    gain = end.x[:, dim:].T / float(sde.norm(last))
    log_prob = closed(sde, latent, prior, first, last) + gain.mean(0)
    log_prob = torch.where(finished, log_prob, math.nan)
    late = torch.full_like(log_prob, math.nan).masked_fill(~finished, math.inf)
    error = standard_error_of(gain, divergence)
    return LogLikelihood(log_prob, latent, end.nfe, error, late, len(gain))


@dataclass(frozen=True)
class _Joint:
    """State and log-density l as one state, with x0_hat such that (8) is the rate of both.

    dl/dlam = a (div - a D) = a (x0_l - a l)   with   x0_l = div - a D + a l
    """

    denoiser: Denoiser
    divergence: Divergence
    shape: torch.Size

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        sde, dim = self.denoiser.sde, math.prod(self.shape)
        alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
        n = match(torch.hypot(alpha, sigma), y)
        a = match(alpha, y) / n
        w, gain = (y / n).split([dim, y.shape[1] - dim], 1)
        w = w.reshape(-1, *self.shape)
        x0, div = self.divergence(lambda w: self.denoiser(w * match(n.flatten(), w), t), w)
        return torch.cat([x0.reshape(len(y), dim), div.T - a * dim + a * gain], 1)


def bits_per_dim(log_prob: Tensor, shape: torch.Size | tuple[int, ...], scale: float) -> Tensor:
    """Bits per dimension of integer levels, -(log_prob / D + log scale) / log 2.

    ``shape`` is the shape of one sample, D its product, and ``scale`` is the width of a level in
    model units. RealNVP, arXiv 1605.08803, section 4.1.
    """
    return -(log_prob / math.prod(shape) + math.log(scale)) / math.log(2)


def require_law(denoiser: Denoiser) -> None:
    """Raise ValueError for a denoiser that is not the score of a law."""
    if not denoiser.normalised:
        raise ValueError(
            "a guided, clipped or distilled denoiser is the score of no law, and has no "
            "likelihood; score the model without the guide"
        )


def closed(sde: SDE, latent: Tensor, prior: Any, first: Tensor, last: Tensor) -> Tensor:
    """The terms of (10) outside the integral, log p_T(x_T) + D log(n_T / n_t0), (B,)."""
    units = latent[0].numel() * math.log(float(sde.norm(last)) / float(sde.norm(first)))
    log_prob = getattr(sde.prior() if prior is None else prior, "log_prob", prior)
    return sum_from(1, log_prob(latent)) + units


def standard_error_of(gain: Tensor, divergence: Divergence) -> Tensor:
    """Standard error (B,) of the mean of ``gain`` (estimates, B) over independent estimates.

    It is zero for an exact divergence, and NaN for fewer than 10 estimates, or where all agree: K
    sign probes agree with probability 2^(1 - K) on two correlated coordinates, and hide three
    with probability (3/4)^K, whatever their error. It has no autograd graph.
    """
    if not divergence.random:
        return torch.zeros_like(gain[0])
    gain = gain.detach()
    if len(gain) < FEWEST:
        return torch.full_like(gain[0], math.nan)
    spread = gain.std(0)
    agreed = spread <= 1e-6 * (1 + gain.abs().amax(0))
    return torch.where(agreed, math.nan, spread / math.sqrt(len(gain)))
