"""Stochastic single steps: a deterministic step to less noise than asked, and the rest added back.

All act through lam, alpha and sigma. In y = x / alpha and r = sigma / alpha = exp(-lam), the
variables of k-diffusion, every process is one; noise added in y maps back to x by alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.arguments import Open, Probability
from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import Level, flow_step, level, time_at, transition
from scoresde.samplers.loop import State
from scoresde.samplers.noise import Noise
from scoresde.samplers.steps import DDIM
from scoresde.sde import SDE


def combine(*terms: tuple[float, Tensor]) -> Tensor:
    """The weighted sum of tensors, one pass a term."""
    (weight, first), *rest = terms
    total = weight * first
    for weight, term in rest:
        total.add_(term, alpha=weight)
    return total


def split(at: Level, to: Level, eta: float) -> tuple[Level, float]:
    """The level to step down to, and the deviation of the noise that brings it back to ``to``.

        up = eta sigma_s sqrt(1 - q^2),  down^2 = sigma_s^2 - up^2,  q = (sigma/alpha)_s / (..)_t

    Computed without the cancellation of the difference. ``get_ancestral_step`` of k-diffusion.
    """
    gap = 2 * (at.lam - to.lam)
    up = eta * to.sigma * math.sqrt(-math.expm1(gap)) if eta else 0.0
    kept = 1 - eta**2 + eta**2 * math.exp(gap)  # down^2 / sigma_s^2
    if kept == 0 or to.sigma == 0:
        return Level(to.alpha, 0.0, math.inf), up
    return Level(to.alpha, to.sigma * math.sqrt(kept), to.lam - math.log(kept) / 2), up


def noised(mean: Tensor, std: float, noise: Noise, t: Tensor, s: Tensor) -> Tensor:
    """mean + std z, in place; without a deviation nothing is drawn."""
    return mean.add_(noise(mean, t, s), alpha=std) if std else mean


def levels(sde: SDE, t: Tensor, s: Tensor, eta: float) -> tuple[Level, Level]:
    """The levels of a step, of which one with noise must go to less of it.

    Raises ValueError otherwise.
    """
    at, to = level(sde, t), level(sde, s)
    if eta and not to.lam > at.lam:
        raise ValueError(
            f"a stochastic step goes to less noise, got t={float(t):g} to s={float(s):g}; "
            "use a decreasing grid, or eta=0"
        )
    return at, to


def require_fraction(eta: float) -> None:
    """Raise ValueError unless 0 <= eta <= 1."""
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta:g}")


@dataclass(frozen=True)
class EulerA:
    """Euler ancestral: an Euler step in sigma / alpha to less noise, then noise.

        x_s = (down / sigma) x - alpha_s expm1(-h_down) x0 + up z

    The DDIM step with the same eta, written as k-diffusion's ``euler_a``. Raises ValueError
    unless 0 <= eta <= 1. arXiv 2010.02502, eq. 12.

    Args:
        eta: noise put back: 0 none, 1 that of the reverse SDE.
    """

    eta: Probability = 1.0
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_fraction(self.eta)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        levels(denoiser.sde, t, s, self.eta)  # refuses an increasing grid by its times
        return DDIM(self.eta)(denoiser, x, t, s, state, noise)


@dataclass(frozen=True)
class DDPM:
    """The DDPM chain on any grid, strided or not: the posterior mean and one of two variances.

        small: sigma_s^2 v_ts / sigma_t^2, that of the posterior;  large: v_ts, beta of the chain

    No noise at a level without any. Denoising Diffusion Probabilistic Models, arXiv 2006.11239,
    section 3.2; strided, Improved DDPM, arXiv 2102.09672, section 4.

    Args:
        large: draw with the larger of the two variances.
    """

    large: bool = False
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = levels(denoiser.sde, t, s, 1.0)
        down, up = split(at, to, 1.0)
        mean = flow_step(x, denoiser(x, t), at, down)
        std = math.sqrt(transition(at, to)[1]) if self.large and up else up
        return noised(mean, std, noise, t, s), None


@dataclass(frozen=True)
class DPM2A:
    """DPM-Solver-2 ancestral: a midpoint step in sigma / alpha to less noise, then noise.

        y_s = y + (r_down - r) eps_mid + up z,   r_mid = sqrt(r r_down)

    Raises ValueError unless 0 <= eta <= 1. ``dpm_2_ancestral`` of k-diffusion; DPM-Solver, arXiv
    2206.00927, algorithm 1.

    Args:
        eta: noise put back: 0 none, 1 that of the reverse SDE.
    """

    eta: Probability = 1.0
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_fraction(self.eta)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = levels(denoiser.sde, t, s, self.eta)
        down, up = split(at, to, self.eta)
        x0 = denoiser(x, t)
        if not math.isfinite(down.lam - at.lam):
            return noised(flow_step(x, x0, at, down), up, noise, t, s), None
        m = _middle(denoiser.sde, at, down, s, self.eta)
        mid = level(denoiser.sde, m)
        guess = flow_step(x, x0, at, mid)
        x0, ratio = denoiser(guess, m), to.alpha / at.alpha
        # gap eps_mid with eps = (guess - alpha x0) / sigma.
        gain = (down.sigma - ratio * at.sigma) / mid.sigma
        x = combine((ratio, x), (gain, guess), (-gain * mid.alpha, x0))
        return noised(x, up, noise, t, s), None


@dataclass(frozen=True)
class DPMpp2SA:
    """DPM-Solver++(2S) ancestral: its midpoint step in lam to less noise, then noise.

        x_s = (down / sigma) x - alpha_s expm1(-h_down) x0_mid + up z

    Raises ValueError unless 0 <= eta <= 1. ``dpmpp_2s_ancestral`` of k-diffusion; arXiv
    2211.01095, algorithm 1.

    Args:
        eta: noise put back: 0 none, 1 that of the reverse SDE.
    """

    eta: Probability = 1.0
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_fraction(self.eta)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = levels(denoiser.sde, t, s, self.eta)
        down, up = split(at, to, self.eta)
        x0 = denoiser(x, t)
        if math.isfinite(down.lam - at.lam):
            m = _middle(denoiser.sde, at, down, s, self.eta)
            x0 = denoiser(flow_step(x, x0, at, level(denoiser.sde, m)), m)
        x = flow_step(x, x0, at, down)
        return noised(x, up, noise, t, s), None


def _middle(sde: SDE, at: Level, down: Level, s: Tensor, eta: float) -> Tensor:
    """The time halfway in lam from ``at`` to ``down``, which for eta = 1 is s itself."""
    return s if eta == 1 else time_at(sde, (at.lam + down.lam) / 2)


@dataclass(frozen=True)
class DPMppSDE:
    """DPM-Solver++ SDE: an ancestral step to lam + r h, then one over the whole step.

        x_s = (down / sigma) x - alpha_s expm1(-h_down) [(1 - 1/2r) x0 + x0_mid / 2r] + up z

    Both noises are one Brownian path: independent draws for (t, mid) and (mid, s), joined in the
    clock exp(2 lam), where the reverse diffusion with x0 held is a Brownian motion. Raises
    ValueError unless 0 <= eta <= 1 and 0 < r < 1. ``dpmpp_sde`` of k-diffusion.

    Args:
        eta: noise put back: 0 none, 1 that of the reverse SDE.
        r: place of the inner call between the ends of the step in log-SNR.
    """

    eta: Probability = 1.0
    r: Open = 0.5
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_fraction(self.eta)
        if not 0 < self.r < 1:
            raise ValueError(f"need 0 < r < 1, got r={self.r:g}")

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = levels(denoiser.sde, t, s, self.eta)
        x0 = denoiser(x, t)
        down, up = split(at, to, self.eta)
        if not math.isfinite(down.lam - at.lam):
            return noised(flow_step(x, x0, at, down), up, noise, t, s), None
        m = time_at(denoiser.sde, at.lam + self.r * (to.lam - at.lam))
        mid = level(denoiser.sde, m)
        down_mid, up_mid = split(at, mid, self.eta)
        guess = flow_step(x, x0, at, down_mid)
        if self.eta:
            first, second = noise(x, t, m), noise(x, m, s)
            guess.add_(first, alpha=up_mid)
        x0 = torch.lerp(x0, denoiser(guess, m), 1 / (2 * self.r))
        x = flow_step(x, x0, at, down)
        if self.eta:
            share = _share(at, mid, to)
            x.add_(first, alpha=up * math.sqrt(share)).add_(
                second, alpha=up * math.sqrt(1 - share)
            )
        return x, None


def _share(at: Level, mid: Level, to: Level) -> float:
    """The part of the clock exp(2 lam) from ``at`` to ``to`` that has run at ``mid``."""
    late = math.exp(2 * (mid.lam - to.lam))
    return late * math.expm1(2 * (at.lam - mid.lam)) / math.expm1(2 * (at.lam - to.lam))
