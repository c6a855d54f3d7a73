"""Diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from scoresde.arguments import NonNegative
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import local, tangent
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import StepMethod
from scoresde.samplers import Noise, State, Step
from scoresde.sde import match


@final
@dataclass(frozen=True)
class DPS(StepMethod):
    """A step, then one down the gradient of the misfit of x0_hat.

        u_s <- u_s - zeta d |y - A(x0_hat(x_t))| / d u_t,   u = x / sqrt(alpha^2 + sigma^2)

    In u, the state of a variance-preserving process, ``zeta`` has one meaning for all processes.
    The norm is that of each sample. The strength grows with the number of steps; the published
    values are for 1000. Its distribution is not the posterior. Chung and others, Diffusion
    Posterior Sampling for General Noisy Inverse Problems, arXiv 2209.14687, algorithm 1.

    Args:
        zeta: length of the correction of each step.
    """

    zeta: NonNegative = 0.3

    def ready(self, measurement: Measurement, x: Tensor) -> Measurement:
        measurement.require_gradient("dps", x)
        return measurement.fit(x)

    def step(self, measurement: Measurement, step: Step) -> Step:
        return Descending(self.zeta, measurement, step)


@dataclass(frozen=True)
class Descending:
    """The step of ``DPS``."""

    zeta: float
    measurement: Measurement
    plain: Step

    @property
    def order(self) -> int:
        return self.plain.order

    @property
    def nfe_per_step(self) -> int:
        return self.plain.nfe_per_step

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        sde = denoiser.sde
        x0, covariance = tangent(denoiser, x, t)

        def known(z: Tensor, at: Tensor) -> Tensor:
            return x0 if z is x and at is t else denoiser.predict(z, at)

        moved, state = self.plain(replace(denoiser, predict=known), x, t, s, state, noise)
        near = local(self.measurement, x0)
        away: Tensor = torch.linalg.vector_norm(near.residual.flatten(1), dim=1)
        unit = near.residual / match(away.clamp(min=torch.finfo(x.dtype).tiny), near.residual)
        # d |y - A| / d x_t = -(alpha / sigma^2) C A* unit
        slope = sde.alpha(t) / sde.sigma(t) ** 2 * sde.norm(t) * sde.norm(s)
        return moved + match(self.zeta * slope, x) * covariance(near.adjoint(unit)), state
