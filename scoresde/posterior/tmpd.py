"""Tweedie moment projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from scoresde.arguments import NonNegative, Positive
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import dot, local, tangent
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import GuideMethod, prior_variance
from scoresde.sde import match


@final
@dataclass(frozen=True)
class TMPD(GuideMethod):
    """The gradient of log p(y | x_t) with the row sums of A Cov[x0 | x_t] A* as variances.

        E[x0 | x_t, y] = x0_hat + C A* (max(A C A* 1, floor) + noise^2)^-1 (y - A x0_hat)
        C = (sigma^2 / alpha) d x0_hat / dx

    Row sums may be small or negative where numbers are anticorrelated; the floor is ``least`` of
    the variances of Gaussian data of deviation ``std``. A correction that would raise the misfit,
    as that of more measurements than numbers may, ends where the misfit is least. A nonlinear
    operator is linearised at x0_hat. Boys and others, Tweedie Moment Projected Diffusions for
    Inverse Problems, arXiv 2310.06721, eq. 9.

    Args:
        least: smallest variance, relative to that of Gaussian data.
    """

    least: Positive = 0.3
    eta: NonNegative = 0.5
    name: ClassVar[str] = "tmpd"

    def estimate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, t: Tensor
    ) -> Tensor:
        x0, covariance = tangent(denoiser, x, t)
        near = local(measurement, x0)
        ones = near.adjoint(torch.ones_like(near.residual))
        r2 = prior_variance(denoiser.sde, t, self.std, x)
        floor = self.least * near.forward(r2 * ones).abs()
        variance = torch.maximum(near.forward(covariance(ones)), floor) + measurement.noise**2
        u = torch.where(variance > 0, near.residual / variance, 0)
        moved = covariance(near.adjoint(u))
        seen = near.forward(moved)
        best = dot(near.residual, seen) / dot(seen, seen).clamp(min=torch.finfo(x.dtype).tiny)
        return x0 + match(torch.where(best < 0.5, best.clamp(min=0), 1), x) * moved
