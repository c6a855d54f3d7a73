"""Stochastic single steps: a deterministic step to below the noise of s, then fresh noise.

The equations use y = x / alpha and r = sigma / alpha = exp(-lam), the variables of k-diffusion, in
which all processes coincide. Noise added to y is multiplied by alpha to return to x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.arguments import Open, Probability, check_fields
from scoresde.denoiser import Denoiser
from scoresde.samplers.integrals import regular
from scoresde.samplers.kernels import (
    Marginal,
    combine,
    flow_step,
    marginal,
    marginals,
    noised,
    split,
    time_at,
)
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State
from scoresde.sde import SDE


@dataclass(frozen=True)
class DPM2A:
    """DPM-Solver-2 ancestral: a midpoint step in sigma / alpha, then fresh noise.

        y_s = y + (r_down - r) eps_mid + up z,   r_mid = sqrt(r r_down)

    Raises ValueError unless 0 <= eta <= 1. ``dpm_2_ancestral`` of k-diffusion; DPM-Solver, arXiv
    2206.00927, algorithm 1.

    Args:
        eta: size of the added noise: 0 for none, 1 for the reverse SDE.
    """

    eta: Probability = 1.0
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s, self.eta > 0)
        down, up = split(at, to, self.eta)
        x0 = denoiser(x, t)
        if not regular(at, down):
            return noised(flow_step(x, x0, at, down), up, noise, t, s), None
        m = _middle(denoiser.sde, at, down, s, self.eta)
        mid = marginal(denoiser.sde, m)
        guess = flow_step(x, x0, at, mid)
        x0, ratio = denoiser(guess, m), to.alpha / at.alpha
        # (r_down - r) eps_mid alpha_s, with eps_mid = (guess - alpha_mid x0) / sigma_mid.
        gain = (down.sigma - ratio * at.sigma) / mid.sigma
        x = combine((ratio, x), (gain, guess), (-gain * mid.alpha, x0))
        return noised(x, up, noise, t, s), None


@dataclass(frozen=True)
class DPMpp2SA:
    """DPM-Solver++(2S) ancestral: a midpoint step in lam, then fresh noise.

        x_s = (down / sigma) x - alpha_s expm1(-h_down) x0_mid + up z

    Raises ValueError unless 0 <= eta <= 1. ``dpmpp_2s_ancestral`` of k-diffusion; arXiv
    2211.01095, algorithm 1.

    Args:
        eta: size of the added noise: 0 for none, 1 for the reverse SDE.
    """

    eta: Probability = 1.0
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s, self.eta > 0)
        down, up = split(at, to, self.eta)
        x0 = denoiser(x, t)
        if math.isfinite(down.lam - at.lam):
            m = _middle(denoiser.sde, at, down, s, self.eta)
            x0 = denoiser(flow_step(x, x0, at, marginal(denoiser.sde, m)), m)
        x = flow_step(x, x0, at, down)
        return noised(x, up, noise, t, s), None


def _middle(sde: SDE, at: Marginal, down: Marginal, s: Tensor, eta: float) -> Tensor:
    """The time halfway in lam from ``at`` to ``down``; for eta = 1 it is s."""
    return s if eta == 1 else time_at(sde, (at.lam + down.lam) / 2)


@dataclass(frozen=True)
class DPMppSDE:
    """DPM-Solver++ SDE: an ancestral step to lam + r h, then one over the whole interval.

        x_s = (down / sigma) x - alpha_s expm1(-h_down) [(1 - 1/2r) x0 + x0_mid / 2r] + up z

    Both steps follow the same Brownian path. Its increments over (t, mid) and (mid, s) are drawn
    independently and added in the time variable exp(2 lam), in which the reverse diffusion at
    constant x0 is a Brownian motion. Raises ValueError unless 0 <= eta <= 1 and 0 < r < 1.
    ``dpmpp_sde`` of k-diffusion.

    Args:
        eta: size of the added noise: 0 for none, 1 for the reverse SDE.
        r: position of the inner call in the step, as a fraction of its log-SNR range.
    """

    eta: Probability = 1.0
    r: Open = 0.5
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s, self.eta > 0)
        x0 = denoiser(x, t)
        down, up = split(at, to, self.eta)
        if not regular(at, down):
            return noised(flow_step(x, x0, at, down), up, noise, t, s), None
        m = time_at(denoiser.sde, at.lam + self.r * (to.lam - at.lam))
        mid = marginal(denoiser.sde, m)
        down_mid, up_mid = split(at, mid, self.eta)
        guess = flow_step(x, x0, at, down_mid)
        if self.eta:
            first, second = noise(x, t, m), noise(x, m, s)
            guess.add_(first, alpha=up_mid)
        x0 = torch.lerp(x0, denoiser(guess, m), 1 / (2 * self.r))
        x = flow_step(x, x0, at, down)
        if self.eta:
            fraction = _fraction(at, mid, to)
            x.add_(first, alpha=up * math.sqrt(fraction)).add_(
                second, alpha=up * math.sqrt(1 - fraction)
            )
        return x, None


def _fraction(at: Marginal, mid: Marginal, to: Marginal) -> float:
    """Fraction of the range of exp(2 lam) from ``at`` to ``to`` that lies before ``mid``."""
    late = math.exp(2 * (mid.lam - to.lam))
    return late * math.expm1(2 * (at.lam - mid.lam)) / math.expm1(2 * (at.lam - to.lam))
