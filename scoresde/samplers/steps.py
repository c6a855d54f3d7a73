"""Single steps with one or two denoiser calls, each given by its equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoresde.arguments import Probability, check_fields
from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import (
    Marginal,
    flow_step,
    marginals,
    noised,
    rates,
    score_step,
    split,
    transition,
)
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State

ChainVariance = Literal["small", "large", "learned"]


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE, with the step length of the grid.

        x_s = x - (f x - g^2 score) (t - s) + g sqrt(t - s) z

    Score-Based Generative Modeling through SDEs, arXiv 2011.13456, eq. 6 (published code uses
    1 / N instead).
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, _ = marginals(denoiser.sde, t, s)
        h, (f, g2) = float(t - s), rates(denoiser.sde, t)
        mean = score_step(x, 1 - f * h, denoiser(x, t), g2 * h, at)
        return noised(mean, math.sqrt(g2 * h), noise, t, s), None


@dataclass(frozen=True)
class ReverseDiffusion:
    """The reverse SDE, discretised like the forward process x_t = a x_s + sqrt(v) z.

        x_s = (2 - a) x + v score + sqrt(v) z

    (a, v) is the exact transition, so the step is defined for every process. For VP and VE on
    their own grids it is the published predictor. arXiv 2011.13456, eq. 46.
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s)
        a, v = transition(at, to)
        mean = score_step(x, 2 - a, denoiser(x, t), v, at)
        return noised(mean, math.sqrt(v), noise, t, s), None


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit step; eta is 0 for probability flow, 1 for ancestral sampling.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z,
        v = eta^2 sigma_s^2 v_ts / sigma_t^2

    With eta = 1, ``variance`` large draws with that of the forward transition, v_ts, and learned
    with the one between the two that the model has learned. A step to sigma_s = 0 adds no noise.
    Denoising Diffusion Implicit Models, arXiv 2010.02502, eq. 12; Improved DDPM, arXiv 2102.09672,
    eq. 15. Raises ValueError unless 0 <= eta <= 1, and for another variance than small with
    another eta than 1.

    Args:
        eta: size of the added noise: 0 for none, 1 for the reverse SDE.
        variance: variance of the added noise, small for v; the others are of the chain, eta = 1.
    """

    eta: Probability = 0.0
    variance: ChainVariance = "small"
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.variance != "small" and self.eta != 1:
            raise ValueError(f"variance={self.variance} is of eta=1, got eta={self.eta:g}")

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s, noisy=self.eta > 0)
        down, up = split(at, to, self.eta)
        if self.variance == "learned" and up:
            x0, mix = denoiser.with_variance(x, t)
            wider = math.log(math.sqrt(transition(at, to)[1]) / up)  # of the deviation
            mean, z = flow_step(x, x0, at, down), noise(x, t, s)
            return mean.addcmul_(mix.to(x).mul(wider).exp_(), z, value=up), None
        if self.variance == "large" and up:
            up = math.sqrt(transition(at, to)[1])
        return noised(flow_step(x, denoiser(x, t), at, down), up, noise, t, s), None


def ancestral() -> DDIM:
    """Ancestral sampling: a draw from p(x_s | x_t, x0_hat), the DDIM step with eta = 1.

    On the grid of a ``DiscreteVP`` table it is the DDPM sampler with the smaller variance.
    Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 6-7.
    """
    return DDIM(1.0)


def euler_a(eta: Probability = 1.0) -> DDIM:
    """Euler ancestral: an Euler step in sigma / alpha, then fresh noise; the same as ddim.

        x_s = (down / sigma) x - alpha_s expm1(-h_down) x0 + up z

    k-diffusion's ``euler_a``. arXiv 2010.02502, eq. 12.

    Args:
        eta: size of the added noise: 0 for none, 1 for the reverse SDE.
    """
    return DDIM(eta)


def ddpm(variance: ChainVariance = "small") -> DDIM:
    """The DDPM chain on any grid: the posterior mean, and a variance.

        small: sigma_s^2 v_ts / sigma_t^2, of the posterior;  large: v_ts, beta of the chain;
        learned: between them, log v = (1 - mix) log small + mix log large

    Denoising Diffusion Probabilistic Models, arXiv 2006.11239, section 3.2; learned and strided,
    Improved DDPM, arXiv 2102.09672, eq. 15 and section 4.

    Args:
        variance: variance of the steps; learned needs a network with head: variance.
    """
    return DDIM(1.0, variance)


@dataclass(frozen=True)
class Heun:
    """Heun's step, the trapezoid rule on the probability flow along the straight path.

        y = x / (alpha + sigma),   c = sigma / (alpha + sigma),   dy/dc = eps - x0
        y' = y + (c_s - c_t) m_t,   y_s = y + (c_s - c_t) (m_t + m_s) / 2,   m = eps - x0

    On the linear flow this is the textbook rule. ``published`` uses y = x / alpha, c = sigma /
    alpha and m = eps instead; at few steps its error is several times larger than in the bounded
    variables above. EDM, arXiv 2206.00364, algorithm 1 without churn (published), for any process.
    """

    published: bool = False
    order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s, noisy=False)
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

    def _unit(self, at: Marginal) -> float:
        return at.alpha if self.published else at.alpha + at.sigma
