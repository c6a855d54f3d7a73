"""Single steps: each is its equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.arguments import Probability
from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import (
    Level,
    blend,
    flow_step,
    level,
    rates,
    score_step,
    transition,
)
from scoresde.samplers.loop import State
from scoresde.samplers.noise import Noise


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE, with the grid's own step length.

        x_s = x - (f x - g^2 score) (t - s) + g sqrt(t - s) z

    Score-Based Generative Modeling through SDEs, arXiv 2011.13456, eq. 6 (published code steps by
    1 / N instead).
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        sde, h = denoiser.sde, float(t - s)
        if h < 0:
            raise ValueError("a stochastic step runs from a noisy t to a cleaner s; flip the grid")
        f, g2 = rates(sde, t)
        mean = score_step(x, 1 - f * h, denoiser(x, t), g2 * h, level(sde, t))
        return mean.add_(noise(x, t, s), alpha=math.sqrt(g2 * h)), None


@dataclass(frozen=True)
class ReverseDiffusion:
    """The reverse SDE discretised as the forward process is, x_t = a x_s + sqrt(v) z.

        x_s = (2 - a) x + v score + sqrt(v) z

    With the exact transition (a, v) it is the published predictor of VP and VE on their own
    grids, and defined for every process. arXiv 2011.13456, eq. 46.
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = level(denoiser.sde, t), level(denoiser.sde, s)
        a, v = transition(at, to)
        mean = score_step(x, 2 - a, denoiser(x, t), v, at)
        return mean.add_(noise(x, t, s), alpha=math.sqrt(v)), None


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit step; ``eta`` is 0 for probability flow, 1 for ancestral.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z,
        v = eta^2 sigma_s^2 v_ts / sigma_t^2

    Raises ValueError unless 0 <= eta <= 1. Denoising Diffusion Implicit Models, arXiv 2010.02502,
    eq. 12.

    Args:
        eta: noise put back: 0 none, 1 that of the reverse SDE.
    """

    eta: Probability = 0.0
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"need 0 <= eta <= 1, got eta={self.eta:g}")

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = level(denoiser.sde, t), level(denoiser.sde, s)
        if not self.eta:
            return flow_step(x, denoiser(x, t), at, to), None
        v = self.eta**2 * to.sigma**2 * transition(at, to)[1] / at.sigma**2
        kept = math.sqrt(to.sigma**2 - v) / at.sigma
        mean = blend(x, kept, denoiser(x, t), to.alpha - kept * at.alpha)
        return mean.add_(noise(x, t, s), alpha=math.sqrt(v)), None


@dataclass(frozen=True)
class Ancestral:
    """Ancestral sampling: a draw from p(x_s | x_t, x0_hat), the DDIM step with eta = 1.

    On the levels of ``DiscreteVP`` it is the DDPM sampler with its smaller variance. Denoising
    Diffusion Probabilistic Models, arXiv 2006.11239, eq. 6-7.
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        return DDIM(1.0)(denoiser, x, t, s, state, noise)


@dataclass(frozen=True)
class Heun:
    """Heun's step, the trapezoid rule on the probability flow along the straight path.

        y = x / (alpha + sigma),   c = sigma / (alpha + sigma),   dy/dc = eps - x0
        y' = y + (c_s - c_t) m_t,   y_s = y + (c_s - c_t) (m_t + m_s) / 2,   m = eps - x0

    On the linear flow it is the textbook rule, and in these bounded variables it errs several
    times less at few steps than ``published``, which is y = x / alpha, c = sigma / alpha, m = eps.
    EDM, arXiv 2206.00364, algorithm 1 without churn (published), for any process.
    """

    published: bool = False
    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = level(denoiser.sde, t), level(denoiser.sde, s)
        if to.sigma == 0:  # the second slope is 0 / 0: Euler, as in algorithm 1
            return flow_step(x, denoiser(x, t), at, to), None
        unit_t, unit_s = self._unit(at), self._unit(to)
        half = unit_s * (to.sigma / unit_s - at.sigma / unit_t) / 2
        x0 = denoiser(x, t)
        guess = flow_step(x, x0, at, to)
        y = torch.mul(x, unit_s / unit_t)
        # Both slopes are (x - unit x0) / sigma.
        y.add_(torch.sub(x, x0, alpha=unit_t), alpha=half / at.sigma)
        return y.add_(
            torch.sub(guess, denoiser(guess, s), alpha=unit_s), alpha=half / to.sigma
        ), None

    def _unit(self, at: Level) -> float:
        return at.alpha if self.published else at.alpha + at.sigma
