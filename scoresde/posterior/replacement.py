"""Replacement of what is measured by noisy measurements, and its Langevin correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from scoresde.arguments import Count, Open
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import dot, local, pseudo_inverse
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import StepMethod
from scoresde.samplers import Corrected, Kernel, Langevin, Noise, State, Step
from scoresde.samplers.kernels import marginal
from scoresde.sde import SDE, match

ITERATIONS = 50  # of conjugate gradients on A A*; a mask needs one


@dataclass(frozen=True)
class Replacement(StepMethod):
    """A step, then y with noise of the new time in place of what is measured.

        x_s <- x_s + A^+ (alpha_s y + sigma_s' A z - A x_s)

    A^+ is the pseudo-inverse. z is a draw for each sample. With noise in y, sigma_s' is less than
    sigma_s, so that the sum has the marginal of x_s; below the noise of y nothing is replaced
    (exact where A A* is a multiple of the identity). Its distribution is not the posterior at any
    number of steps. Song and others, arXiv 2011.13456, appendix I.2.
    """

    name: ClassVar[str] = "replacement"
    linear: ClassVar[bool] = True

    def step(self, measurement: Measurement, step: Step) -> Step:
        return Replacing(measurement, step)

    def finish(self, measurement: Measurement, x0: Tensor) -> Tensor:
        if measurement.noise > 0:
            return x0
        near = local(measurement, x0)
        return x0 + pseudo_inverse(near, near.residual, ITERATIONS)


@final
@dataclass(frozen=True)
class LangevinReplacement(Replacement):
    """Replacement with steps of Langevin dynamics at each time, which let the rest adapt.

    After every one the measured part is replaced again. Song and others, arXiv 2011.13456,
    algorithm 4 with replacement, as its published program for inpainting does.

    Args:
        snr: size of a Langevin step, as a signal-to-noise ratio.
        steps: number of Langevin steps at each time.
    """

    snr: Open = 0.16
    steps: Count = 1
    name: ClassVar[str] = "langevin_replacement"

    def step(self, measurement: Measurement, step: Step) -> Step:
        kernel = ReplacingKernel(measurement, Langevin(self.snr), self.steps)
        return Corrected(Replacing(measurement, step), kernel)


@dataclass(frozen=True)
class Replacing:
    """The step of ``Replacement``."""

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
        x, state = self.plain(denoiser, x, t, s, state, noise)
        return replaced(self.measurement, denoiser.sde, x, s, noise), state


@dataclass(frozen=True)
class ReplacingKernel:
    """A kernel, ``times`` times, each followed by a replacement."""

    measurement: Measurement
    plain: Kernel
    times: int

    @property
    def nfe(self) -> int:
        return self.times * self.plain.nfe

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        for _ in range(self.times):
            x = self.plain(denoiser, x, t, noise)
            x = replaced(self.measurement, denoiser.sde, x, t, noise)
        return x


def replaced(measurement: Measurement, sde: SDE, x: Tensor, s: Tensor, noise: Noise) -> Tensor:
    """The state x (B, ...) at ``s`` with what is measured replaced."""
    at = marginal(sde, s)
    near = local(measurement, x / at.alpha)  # alpha residual = alpha y - A x
    z, kept, active = noise(x, s, s), x.new_full((len(x),), at.sigma), x.new_ones(len(x))
    if measurement.noise > 0:
        # The part of y in x has noise of variance noise^2 / c where A A* = c on the range of A.
        tiny = torch.finfo(x.dtype).tiny
        size = near.residual.abs().reshape(len(x), -1).amax(1).clamp(min=tiny)
        y = near.residual / match(size, near.residual)  # squares of small numbers would vanish
        back = near.adjoint(y)
        c = (dot(back, back) / dot(y, y).clamp(min=tiny)).clamp(min=tiny)
        kept = kept.square() - (at.alpha * measurement.noise) ** 2 / c
        active = (kept > 0).to(x.dtype)
        kept = kept.clamp(min=0).sqrt()
    lifted = near.forward(match(kept, x) * z)
    moved = pseudo_inverse(near, at.alpha * near.residual + lifted, ITERATIONS)
    return x + match(active, x) * moved
