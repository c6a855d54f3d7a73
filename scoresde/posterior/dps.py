"""Diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from scoresde.arguments import NonNegative
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import dot, local, tangent
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
    The norm is that of each sample. The correction goes no further than to the least misfit along
    its direction; without this limit, in the published code, it overshoots where ``zeta`` is large
    for the size of A. It shrinks with A and y, so y should be in units of about the size of x0.
    The published 1 is for 1000 steps. It does not know the noise of y, which it fits too; its
    distribution is not the posterior. Chung and others, Diffusion Posterior Sampling for General
    Noisy Inverse Problems, arXiv 2209.14687, algorithm 1.

    Args:
        zeta: greatest length of the correction of each step.
    """

    zeta: NonNegative = 10.0
    name: ClassVar[str] = "dps"

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
        # d |y - A| / d x_t = -(alpha / sigma^2) C A* r / |r|
        down = covariance(near.adjoint(near.residual))
        slope = self.zeta * sde.alpha(t) / sde.sigma(t) ** 2 * sde.norm(t) * sde.norm(s)
        seen, tiny = near.forward(down), torch.finfo(x.dtype).tiny
        best = dot(near.residual, seen) / dot(seen, seen).clamp(min=tiny)
        size = dot(near.residual, near.residual).sqrt().clamp(min=tiny)
        length = torch.minimum(
            match(slope, x) / match(size, x), match(sde.alpha(s), x) * match(best.clamp(min=0), x)
        )
        return moved + length * down, state
