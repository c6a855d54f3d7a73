"""Decoupled annealing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from scoresde.arguments import Count, Positive
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import gain, local
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import StepMethod, prior_variance
from scoresde.posterior.operators import LinearOperator
from scoresde.samplers import Noise, State, Step
from scoresde.samplers.kernels import flow_step, marginal, marginals, time_at


@final
@dataclass(frozen=True)
class DAPS(StepMethod):
    """A draw of x0 given x_t and y at each noise level, then fresh noise of the next level.

        x0 ~ N(z; x0_hat(x_t), r^2) N(y; A z, noise^2),   x_s = alpha_s x0 + sigma_s eps
        r^2 = width^2 std^2 s^2 / (std^2 + s^2),   s = sigma / alpha

    x0_hat is the end of ``calls`` steps of the probability flow from x_t. The draw is exact for a
    linear operator: the solution for perturbed x0_hat and y. A nonlinear one is linearised, as
    often as ``rounds`` says. Zhang and others, Improving Diffusion Inverse Problem Solving with
    Decoupled Noise Annealing, arXiv 2407.01521, algorithm 1, which draws by Langevin dynamics.

    Args:
        calls: network calls at each noise level.
        width: width of the Gaussian around x0_hat, relative to Gaussian data.
        rounds: times that a nonlinear operator is linearised at each level.
        iterations: most iterations of conjugate gradients, which call no network.
    """

    calls: Count = 1
    width: Positive = 1.0
    rounds: Count = 4
    iterations: Count = 50
    name: ClassVar[str] = "daps"

    def step(self, measurement: Measurement, step: Step) -> Step:
        return Annealing(self, measurement)


@dataclass(frozen=True)
class Annealing:
    """The step of ``DAPS``."""

    method: DAPS
    measurement: Measurement
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1

    @property
    def nfe_per_step(self) -> int:
        return self.method.calls

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        _, to = marginals(denoiser.sde, t, s)
        x0 = self._draw(denoiser, self._clean(denoiser, x, t), t, noise)
        return to.alpha * x0 + to.sigma * noise(x, t, s), None

    def _clean(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """The end of the probability flow from t, by steps that are equal in lam."""
        sde, x0 = denoiser.sde, denoiser(x, t)
        end = float(sde.lam(torch.tensor(sde.t_eps, dtype=torch.float64)))
        at = marginal(sde, t)
        step = (end - at.lam) / self.method.calls
        for _ in range(self.method.calls - 1):
            s = time_at(sde, at.lam + step)
            to = marginal(sde, s)
            x = flow_step(x, x0, at, to)
            x0, at = denoiser(x, s), to
        return x0

    def _draw(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """A draw of N(x0, r^2) N(y; A ., noise^2): the solution for perturbed x0 and y."""
        method, given = self.method, self.measurement
        r2 = method.width**2 * prior_variance(denoiser.sde, t, method.std, x0)
        center = z = x0 + r2.sqrt() * noise(x0, t, t)
        error: Tensor | None = None
        for _ in range(1 if isinstance(given.operator, LinearOperator) else method.rounds):
            near = local(given, z)
            if error is None:
                error = given.noise * noise(near.residual, t, t)
            b = near.residual + error - near.forward(center - z)
            z = center + r2 * gain(near, r2, given.noise, method.iterations, b)
        return z
