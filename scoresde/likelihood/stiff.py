"""Log-densities where the flow is stiff: implicit steps, adaptive for each sample.

A state between narrow modes reaches the ridge that separates them and slides along it. The ridge
attracts it at a rate of up to (distance / sigma)^2 per unit of lam, and an explicit method needs
as many steps. Here linearly implicit Euler steps are extrapolated to order 4 in h, and the
divergence is the trace of their Jacobians:

    (1 - h J) (w_{k+1} - w_k) = h F(lam_{k+1}, w_k),   F = dw/dlam of (8),   J = dF/dw

Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import pullback
from scoresde.likelihood.flow import LogLikelihood, closed
from scoresde.sde import match, unit_alpha

LARGEST = 256
"""Most dimensions for which the Jacobian of a sample is stored."""

_SUBSTEPS = (1, 2, 3, 4)
_CALLS = sum(2 * n - 1 for n in _SUBSTEPS) + 1
"""Denoiser calls of a step."""
_LONGEST = 0.2
"""Longest step of lam, so that no narrow mode is stepped over."""
_SHORT = 0.005
"""A shorter step of lam is allowed the error of one of this length."""
_RELATIVE = 5e-8
"""Further allowed error of a step, relative to log p."""
_SURPRISE = 0.5
"""A step is refused if a rate changes by more than this, in nats and relative to the rate."""
_TURN = 0.1
"""The relative change of F that a short step may have; one of length h may have 2 h more."""


def stiff_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    first: Tensor,
    last: Tensor,
    *,
    limit: float,
    prior: Any,
    max_nfe: int,
) -> LogLikelihood:
    """Log-density (10) of samples, with an estimate of its error for each.

    The allowed error is ``limit``, divided among the steps by their lengths, and 5e-8 of the size
    of log p for each step. ``solver_error`` adds up the errors of the steps. A sample that does
    not reach ``last`` within ``max_nfe`` calls has log-density NaN and an infinite error.

    Args:
        denoiser: the model.
        x: samples (B, ...), float64 states at ``first``.
        first: time of the samples.
        last: final time.
        limit: allowed error in nats.
        prior: log-density of the terminal law, as in ``log_likelihood``.
        max_nfe: limit on the denoiser calls of a sample.
    """
    sde, n, dim = denoiser.sde, len(x), x[0].numel()
    start, end = float(sde.lam(first)), float(sde.lam(last))
    lam = x.new_full((n,), start)
    zero = torch.zeros_like(lam)
    w = x.reshape(n, dim) / float(sde.norm(first))
    now = _State(lam, zero - 0.01, zero, zero, w, *_Flow(denoiser, x.shape).linear(lam, w))
    calls = n
    for _ in range((max_nfe - 1) // _CALLS):
        rows = torch.nonzero(now.lam != end).flatten()
        if not len(rows):
            break
        flow = _Flow(denoiser.among(rows, n), x.shape)
        new = _step(flow, _State(*(part[rows] for part in now)), end, limit / (start - end))
        now = _State(*(a.index_copy(0, rows, b) for a, b in zip(now, new, strict=True)))
        calls += _CALLS * len(rows)
    reached = now.lam == end
    latent = (now.w * float(sde.norm(last))).reshape(x.shape)
    log_prob = closed(sde, latent, prior, first, last) + now.gain
    return LogLikelihood(
        torch.where(reached, log_prob, math.nan),
        latent,
        math.ceil(calls / n),
        zero,
        torch.where(reached, now.error, math.inf),
    )


class _State(NamedTuple):
    """The state of each sample: lam, next step, gain, its error, w (B, D), and F, J, tr J at w."""

    lam: Tensor
    h: Tensor
    gain: Tensor
    error: Tensor
    w: Tensor
    rate: Tensor
    jacobian: Tensor
    trace: Tensor


@dataclass(frozen=True)
class _Flow:
    """F of (8) for flat states w (B, D) at a lam per sample."""

    denoiser: Denoiser
    shape: torch.Size

    def rate(self, lam: Tensor, w: Tensor) -> Tensor:
        a = match(unit_alpha(lam), w)
        with torch.no_grad():
            return a * (self._x0(lam, w) - a * w)

    def linear(self, lam: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F (B, D), J (B, D, D) and tr J (B,)."""
        a, eye = match(unit_alpha(lam), w), torch.eye(w.shape[1]).to(w)
        x0, pull = pullback(lambda w: self._x0(lam, w), w)
        rows = pull(eye.unsqueeze(1).expand(-1, *w.shape)).transpose(0, 1)
        jacobian = a.unsqueeze(2) * (rows - a.unsqueeze(2) * eye)
        return a * (x0 - a * w), jacobian, jacobian.diagonal(dim1=1, dim2=2).sum(1)

    def _x0(self, lam: Tensor, w: Tensor) -> Tensor:
        sde = self.denoiser.sde
        t = sde.time(lam)
        x = (w * match(sde.norm(t), w)).reshape(-1, *self.shape[1:])
        return self.denoiser(x, t).flatten(1)


def _step(flow: _Flow, s: _State, end: float, density: float) -> _State:
    """The state after one step, or the same state with a shorter step if its error is too large.

    A change e of w changes log p by score e + e H e / 2, which is the error of a step in nats.
    ``density`` is the allowed error per unit of lam.
    """
    final = s.h.abs() >= (end - s.lam).abs()
    h = torch.where(final, end - s.lam, s.h)
    lam = torch.where(final, end, s.lam + h)
    (w, gain), (e, wrong) = _extrapolated(flow, s, h)
    rate, jacobian, trace = flow.linear(lam, w)
    b2 = match(unit_alpha(-lam) ** 2, w)
    score = rate / b2 - w
    bent = (torch.einsum("bi,bij,bj->b", e, jacobian, e) / b2.flatten() - _dot(e, e)).abs() / 2
    error = _dot(score, e).abs() + wrong.abs() + bent
    size = gain.abs() + _dot(score, rate).abs()
    allowed = density * h.abs().clamp(min=_SHORT) + _RELATIVE * size
    ratio = torch.where(error.isfinite(), error / allowed, math.inf)
    # The extrapolation sees nothing of a ridge that lies between its nodes and the end.
    turned = (rate - s.rate).norm(dim=1)
    sharp = (h.abs() * turned * score.norm(dim=1) > _SURPRISE) & (
        turned > (_TURN + 2 * h.abs()) * torch.maximum(rate.norm(dim=1), s.rate.norm(dim=1))
    )
    jumped = (trace - s.trace).abs()
    sharp |= (h.abs() * jumped > _SURPRISE) & (
        jumped > _SURPRISE * torch.maximum(trace.abs(), s.trace.abs())
    )
    ratio = torch.where(sharp, ratio.clamp(min=10.0), ratio)
    factor = (0.9 * ratio.clamp(1e-10, 1e10) ** (-1 / 4)).clamp(0.2, 3.0)
    h = (h * factor).clamp(min=-_LONGEST)  # lam falls, so steps are negative
    new = _State(lam, h, gain, s.error + error, w, rate, jacobian, trace)
    old = s._replace(h=h)
    keep = ratio <= 1
    return _State(
        *(torch.where(match(keep, b).bool(), a, b) for a, b in zip(new, old, strict=True))
    )


def _extrapolated(
    flow: _Flow, s: _State, h: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(w, gain) at the end of a step h (B,), and their changes by the last extrapolation."""
    eye = torch.eye(s.w.shape[1]).to(s.w)
    above: list[Tensor] = []
    for n in _SUBSTEPS:
        part, w, gain, jacobian, trace = h / n, s.w, s.gain, s.jacobian, s.trace
        for i in range(n):
            if i:
                _, jacobian, trace = flow.linear(s.lam + i * part, w)
            gain = gain + part * trace
            move = match(part, w) * flow.rate(s.lam + (i + 1) * part, w)
            w = w + torch.linalg.solve(eye - match(part, jacobian) * jacobian, move)
        # Aitken and Neville: the errors of linearly implicit Euler are powers of 1 / n.
        row = [torch.cat([w, gain.unsqueeze(1)], 1)]
        for k, coarse in enumerate(above):
            row.append(row[-1] + (row[-1] - coarse) / (n / (n - k - 1) - 1))
        above = row
    best, change = above[-1], above[-1] - above[-2]
    return (best[:, :-1], best[:, -1]), (change[:, :-1], change[:, -1])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
