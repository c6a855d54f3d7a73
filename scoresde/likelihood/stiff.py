"""Likelihoods where the flow is stiff: implicit steps with the whole Jacobian, adaptive per sample.

A state between narrow modes slides along the ridge that separates them, which attracts it at a rate
of up to (distance / sigma)^2. An explicit method needs as many steps. Here linearly implicit Euler
steps are extrapolated to order 4 in h, and the divergence is the trace of their Jacobians:

    (1 - h J) (w_{k+1} - w_k) = h F(lam_{k+1}, w_k),   J = dF/dw at (lam_k, w_k),   F of (8)

Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import pullback
from scoresde.likelihood.flow import LogLikelihood, closed
from scoresde.sde import unit_alpha

LARGEST = 256
"""Most dimensions of a sample whose Jacobian is stored."""

_SUBSTEPS = (1, 2, 3, 4)
_LONGEST = 0.2
_RELATIVE = 1e-5
_SURPRISE = 0.5
_SHARE = 0.005


def stiff_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    first: Tensor,
    last: Tensor,
    *,
    limit: float,
    prior: Any = None,
    max_nfe: int = 10_000,
) -> LogLikelihood:
    """Log-density (10) of samples with steps whose errors in nats add up to about ``limit``.

    ``limit`` grows by 1e-5 of the size of log p. The solver error is the sum of the errors of the
    steps; it is infinite for a sample that did not reach ``last`` within ``max_nfe`` calls, whose
    log-density is NaN. ``nfe`` is the average over the samples.

    Args:
        denoiser: the model.
        x: samples (B, ...), float64 states at ``first``.
        first: time of the samples.
        last: final time.
        limit: allowed error of a sample in nats.
        prior: log-density of the terminal law, as in ``log_likelihood``.
        max_nfe: limit on the denoiser calls of a sample.
    """
    sde, n, dim = denoiser.sde, len(x), x[0].numel()
    start, end = float(sde.lam(first)), float(sde.lam(last))
    flow = _Field(denoiser, x.shape[1:])
    lam = x.new_full((n,), start)
    now = _Walk(
        lam=lam,
        h=torch.full_like(lam, -0.01),
        gain=torch.zeros_like(lam),
        error=torch.zeros_like(lam),
        at=flow.linear(lam, x.reshape(n, dim) / float(sde.norm(first))),
    )
    spent = torch.ones(n)
    while len(live := torch.nonzero(now.lam != end).flatten()):
        spent[live.cpu()] += (before := -flow.calls) * 0
        done = _step(flow, now.take(live), end, limit / (start - end))
        spent[live.cpu()] += flow.calls + before
        now.put(live, done)
        if float(spent.max()) >= max_nfe:
            break
    reached = now.lam == end
    latent = (now.at.w * float(sde.norm(last))).reshape(x.shape)
    log_prob = torch.where(reached, closed(sde, latent, prior, first, last) + now.gain, math.nan)
    error = torch.where(reached, now.error, math.inf)
    nfe = math.ceil(float(spent.mean()))
    return LogLikelihood(log_prob, latent, nfe, torch.zeros_like(error), error)
