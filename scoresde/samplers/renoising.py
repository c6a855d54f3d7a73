"""Step -> Step: climbing to more noise along the way, so that errors made are forgotten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scoresde.arguments import Count, NonNegative, Positive, check_fields
from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import (
    Marginal,
    combine,
    marginal,
    marginals,
    time_at,
    transition,
)
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State, Step
from scoresde.sde import SDE


@dataclass(frozen=True)
class Churned:
    """EDM's churn: back up to a little more noise, then the step from there.

        r^ = r (1 + gamma),  x^ = a x + s_noise sqrt(v) z,  gamma = min(s_churn / steps, sqrt2 - 1)

    Only where s_tmin <= r <= s_tmax, r = sigma / alpha, and never beyond ``t_max``; (a, v) is the
    forward transition. The draw is asked for at fixed time: it is no part of the reverse path.
    A multistep method starts afresh after it, and has the order of its first step. Published for
    ImageNet-64: s_churn 40, s_tmin 0.05, s_tmax 50, s_noise 1.003, steps 256. arXiv 2206.00364,
    algorithm 2, for any process.

    Args:
        step: step that goes on from the noisier state.
        s_churn: noise added along the way; EDM took 30 to 80.
        s_tmin: least sigma / alpha where noise is added.
        s_tmax: largest sigma / alpha where noise is added.
        s_noise: size of that noise.
        steps: steps of the grid that the noise is spread over.
    """

    step: Step
    s_churn: NonNegative = 40.0
    s_tmin: NonNegative = 0.0
    s_tmax: Positive = math.inf
    s_noise: NonNegative = 1.0
    steps: Count = 18

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.s_tmin < self.s_tmax:
            raise ValueError(
                f"need s_tmin < s_tmax, got s_tmin={self.s_tmin:g}, s_tmax={self.s_tmax:g}"
            )

    @property
    def order(self) -> int:
        return int(getattr(self.step, "first_order", self.step.order))

    @property
    def weak_order(self) -> int:
        return self.order

    @property
    def nfe_per_step(self) -> int:
        return self.step.nfe_per_step

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        sde, at = denoiser.sde, marginals(denoiser.sde, t, s, self.s_churn > 0)[0]
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.s_tmin <= math.exp(-at.lam) <= self.s_tmax:
            return self.step(denoiser, x, t, s, state, noise)
        hat = time_at(sde, at.lam - math.log1p(gamma))
        if not hat > t:
            return self.step(denoiser, x, t, s, state, noise)
        x = _renoised(x, at, marginal(sde, hat), self.s_noise, noise(x, t, t))
        return self.step(denoiser, x, hat, s, None, noise)


@dataclass(frozen=True)
class Restart:
    """Restart sampling: from the first level at or below ``low``, up to ``high`` and back,
    ``times`` over.

    In units of r = sigma / alpha. Up is the forward transition with fresh noise; down are
    ``steps`` steps of the wrapped step, equal in r^(1/7), so that one step of the grid costs
    ``times * steps`` steps more. ``high`` stops at ``t_max``. Several intervals are one restart
    around another. Made for a deterministic step. Restart Sampling, arXiv 2306.14878, algorithm 1.

    Args:
        step: step of the way down.
        low: noise sigma / alpha below which a sample goes back up.
        high: noise sigma / alpha that it goes back up to.
        times: number of times it goes back.
        steps: steps of each way down.
    """

    step: Step
    low: Positive = 0.05
    high: Positive = 0.3
    times: Count = 1
    steps: Count = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.low < self.high:
            raise ValueError(f"need low < high, got low={self.low:g}, high={self.high:g}")

    @property
    def order(self) -> int:
        return self.step.order

    @property
    def weak_order(self) -> int:
        return self.step.order

    @property
    def nfe_per_step(self) -> int:
        return self.step.nfe_per_step

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s)
        x, state = self.step(denoiser, x, t, s, state, noise)
        if not -at.lam > math.log(self.low) >= -to.lam:
            return x, state
        walk = self._walk(denoiser.sde, s, to)
        top = marginal(denoiser.sde, walk[0])
        for _ in range(self.times):
            x, state = _renoised(x, to, top, 1.0, noise(x, s, s)), None
            for u, v in pairwise(walk):
                x, state = self.step(denoiser, x, u, v, state, noise)
        return x, state

    def _walk(self, sde: SDE, s: Tensor, to: Marginal) -> list[Tensor]:
        """The times from r = high down to s."""
        noisiest = math.exp(-marginal(sde, torch.tensor(sde.t_max, dtype=torch.float64)).lam)
        top, bottom = min(self.high, noisiest) ** (1 / 7), math.exp(-to.lam / 7)
        lam = -7 * torch.linspace(top, bottom, self.steps + 1, dtype=torch.float64).log()
        return [*sde.time(lam[:-1]), s]


def _renoised(x: Tensor, at: Marginal, hat: Marginal, scale: float, z: Tensor) -> Tensor:
    """x_hat = a x + scale sqrt(v) z: up from ``at`` to the noisier ``hat`` by the transition."""
    a, v = transition(hat, at)
    return combine((a, x), (scale * math.sqrt(v), z))
