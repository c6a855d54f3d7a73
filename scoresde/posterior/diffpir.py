"""Plug-and-play restoration by a denoiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from scoresde.arguments import Count, Positive, Probability
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import gain, local
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import GuideMethod
from scoresde.samplers import Grid, Noise, State, Step, suited_grid
from scoresde.samplers.kernels import combine, marginals
from scoresde.sde import FAINTEST, match


@final
@dataclass(frozen=True)
class DiffPIR(GuideMethod):
    """The sample that fits best to the measurement and to x0_hat, then fresh noise.

        x0' = argmin_z |y - A z|^2 / noise^2 + weight |z - x0_hat|^2 / s^2,   s = sigma / alpha
        x_s = alpha_s x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z)

    eps' is the noise of x_t for x0'. It needs no gradient of the network; a nonlinear operator is
    linearised at x0_hat. The last call is guided like the others, and nothing is clamped. Zhu and
    others, Denoising Diffusion Models for Plug-and-Play Image Restoration, arXiv 2305.08995,
    algorithm 1.

    Args:
        weight: weight of x0_hat against the measurement.
        zeta: share of fresh noise in each step.
        iterations: most iterations of conjugate gradients, which call no network.
    """

    weight: Positive = 3.0
    zeta: Probability = 1.0
    iterations: Count = 50
    name: ClassVar[str] = "diffpir"

    def estimate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, t: Tensor
    ) -> Tensor:
        x0, sde = denoiser(x, t), denoiser.sde
        lam = sde.lam(t).clamp(min=FAINTEST)  # alpha may be too small for float32
        variance = match((-2 * lam).exp() / self.weight, x)
        near = local(measurement, x0)
        return x0 + variance * gain(near, variance, measurement.noise, self.iterations)

    def sampler(self, nfe: int) -> tuple[Step, Grid]:
        step = Mixing(self.zeta)
        return step, suited_grid(step, self.std)


@dataclass(frozen=True)
class Mixing:
    """x_s = alpha_s x0 + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z), a share of fresh noise."""

    zeta: float
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s)
        x0 = denoiser(x, t)
        kept = to.sigma * math.sqrt(1 - self.zeta) / at.sigma
        fresh = to.sigma * math.sqrt(self.zeta)
        drawn = noise(x, t, s)
        return combine((to.alpha - kept * at.alpha, x0), (kept, x), (fresh, drawn)), None
