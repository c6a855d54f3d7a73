"""Step -> Step: climbing to more noise along the way, so that errors made are forgotten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import Level, level, time_at, transition
from scoresde.samplers.loop import State, Step
from scoresde.samplers.noise import Noise
from scoresde.samplers.stochastic import combine, levels
from scoresde.sde import SDE


@dataclass(frozen=True)
class Churned:
    """EDM's churn: back up to a little more noise, then the step from there.

        r^ = r (1 + gamma),  x^ = a x + s_noise sqrt(v) z,  gamma = min(s_churn / steps, sqrt2 - 1)

    Only where s_tmin <= r <= s_tmax, r = sigma / alpha, and never beyond ``t_max``; (a, v) is the
    forward transition. The draw is asked for at fixed time: it is no part of the reverse path.
    A multistep method starts afresh after it, and has the order of its first step. arXiv
    2206.00364, algorithm 2, for any process.
    """

    step: Step
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.s_churn >= 0 and self.s_noise >= 0 and self.steps >= 1):
            raise ValueError(
                "need s_churn >= 0, s_noise >= 0 and steps >= 1, got "
                f"s_churn={self.s_churn:g}, s_noise={self.s_noise:g}, steps={self.steps}"
            )
        if not 0 <= self.s_tmin < self.s_tmax:
            raise ValueError(
                f"need 0 <= s_tmin < s_tmax, got s_tmin={self.s_tmin:g}, s_tmax={self.s_tmax:g}"
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
        sde, at = denoiser.sde, levels(denoiser.sde, t, s, self.s_churn)[0]
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.s_tmin <= math.exp(-at.lam) <= self.s_tmax:
            return self.step(denoiser, x, t, s, state, noise)
        hat = time_at(sde, at.lam - math.log1p(gamma))
        if not hat > t:
            return self.step(denoiser, x, t, s, state, noise)
        x = _renoised(x, at, level(sde, hat), self.s_noise, noise(x, t, t))
        return self.step(denoiser, x, hat, s, None, noise)


def churn(
    step: Step,
    s_churn: float = 40.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    steps: int = 18,
) -> Step:
    """The step with churn, spread over the ``steps`` of its grid; EDM's sampler around ``Heun``.

    Published for ImageNet-64: s_churn 40, s_tmin 0.05, s_tmax 50, s_noise 1.003, steps 256.
    """
    return Churned(step, s_churn, s_tmin, s_tmax, s_noise, steps)


@dataclass(frozen=True)
class Restart:
    """Restart sampling: from the first level at or below ``low``, up to ``high`` and back,
    ``times`` over.

    In units of r = sigma / alpha. Up is the forward transition with fresh noise; down are
    ``steps`` steps of the wrapped step, equal in r^(1/7), so that one step of the grid costs
    ``times * steps`` steps more. ``high`` stops at ``t_max``. Several intervals are one restart
    around another. Made for a deterministic step. Restart Sampling, arXiv 2306.14878, algorithm 1.
    """

    step: Step
    low: float
    high: float
    times: int
    steps: int

    def __post_init__(self) -> None:
        if not (self.times >= 1 and self.steps >= 1):
            raise ValueError(
                f"need times >= 1 and steps >= 1, got times={self.times}, steps={self.steps}"
            )
        if not 0 < self.low < self.high:
            raise ValueError(f"need 0 < low < high, got low={self.low:g}, high={self.high:g}")

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
        at, to = levels(denoiser.sde, t, s, 1.0)
        x, state = self.step(denoiser, x, t, s, state, noise)
        if not -at.lam > math.log(self.low) >= -to.lam:
            return x, state
        walk = self._walk(denoiser.sde, s, to)
        top = level(denoiser.sde, walk[0])
        for _ in range(self.times):
            x, state = _renoised(x, to, top, 1.0, noise(x, s, s)), None
            for u, v in pairwise(walk):
                x, state = self.step(denoiser, x, u, v, state, noise)
        return x, state

    def _walk(self, sde: SDE, s: Tensor, to: Level) -> list[Tensor]:
        """The times from r = high down to s."""
        noisiest = math.exp(-level(sde, torch.tensor(sde.t_max, dtype=torch.float64)).lam)
        top, bottom = min(self.high, noisiest) ** (1 / 7), math.exp(-to.lam / 7)
        lam = -7 * torch.linspace(top, bottom, self.steps + 1, dtype=torch.float64).log()
        return [*sde.time(lam[:-1]), s]


def restart(
    step: Step, low: float = 0.05, high: float = 0.3, times: int = 1, steps: int = 3
) -> Step:
    """The step with one restart interval, in units of sigma / alpha."""
    return Restart(step, low, high, times, steps)


def _renoised(x: Tensor, at: Level, hat: Level, scale: float, z: Tensor) -> Tensor:
    """x_hat = a x + scale sqrt(v) z: up from ``at`` to the noisier ``hat`` by the transition."""
    a, v = transition(hat, at)
    return combine((a, x), (scale * math.sqrt(v), z))
