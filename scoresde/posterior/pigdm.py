"""Pseudo-inverse guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from scoresde.arguments import Count, NonNegative
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import gain, local, tangent
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import GuideMethod, prior_variance


@final
@dataclass(frozen=True)
class PiGDM(GuideMethod):
    """The gradient of log p(y | x_t) with Cov[x0 | x_t] = r^2 of Gaussian data of deviation std.

        E[x0 | x_t, y] = x0_hat + C A* (r^2 A A* + noise^2)^-1 (y - A x0_hat)
        C = (sigma^2 / alpha) d x0_hat / dx,   r^2 = std^2 s^2 / (std^2 + s^2),   s = sigma / alpha

    A nonlinear operator is linearised at x0_hat. The published code leaves out the noise of the
    measurement. Song and others, Pseudoinverse-Guided Diffusion Models for Inverse Problems
    (ICLR 2023), eq. 7-8.

    Args:
        iterations: most iterations of conjugate gradients, which call no network.
    """

    iterations: Count = 50
    eta: NonNegative = 0.5
    name: ClassVar[str] = "pigdm"

    def estimate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, t: Tensor
    ) -> Tensor:
        x0, covariance = tangent(denoiser, x, t)
        near = local(measurement, x0)
        r2 = prior_variance(denoiser.sde, t, self.std, x)
        return x0 + covariance(gain(near, r2, measurement.noise, self.iterations))
