"""Moment matching with the covariance that the denoiser's Jacobian gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from scoresde.arguments import Count
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import local, solve, tangent
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import GuideMethod


@final
@dataclass(frozen=True)
class MomentMatching(GuideMethod):
    """p(x0 | x_t) as a Gaussian of its exact mean and covariance.

        E[x0 | x_t, y] = x0_hat + C A* (A C A* + noise^2)^-1 (y - A x0_hat)
        C = Cov[x0 | x_t] = (sigma^2 / alpha) d x0_hat / d x_t

    It is exact for Gaussian data, from enough iterations. Each costs one pass backwards through
    the network. A sample stops earlier where the Jacobian of a network is not symmetric or not
    positive. A nonlinear operator is linearised at x0_hat. Rozet and others, Learning Diffusion
    Priors from Observations by Expectation Maximization, arXiv 2405.13712, section 4.2.

    Args:
        iterations: most iterations of conjugate gradients at each call.
    """

    iterations: Count = 32
    name: ClassVar[str] = "moment_matching"

    def estimate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, t: Tensor
    ) -> Tensor:
        x0, covariance = tangent(denoiser, x, t)
        near = local(measurement, x0)

        def matrix(u: Tensor) -> Tensor:
            return near.forward(covariance(near.adjoint(u))) + measurement.noise**2 * u

        return x0 + covariance(near.adjoint(solve(matrix, near.residual, self.iterations)))
