"""Step -> Step: added noise along the way, which contracts earlier errors."""

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
    """EDM's churn: adds a little noise, then takes the step from there.

        r^ = r (1 + gamma),  x^ = a x + s_noise sqrt(v) z,  gamma = min(s_churn / steps, sqrt2 - 1)

    It applies where s_tmin <= r <= s_tmax, r = sigma / alpha, and never goes beyond ``t_max``.
    (a, v) is the forward transition. The noise is requested over an empty interval, because it is
    not an increment of the reverse path. It clears the history of a multistep method, which then
    has the order of its first step. Published for ImageNet-64: s_churn 40, s_tmin 0.05, s_tmax 50,
    s_noise 1.003, steps 256. arXiv 2206.00364, algorithm 2, for any process.

    Args:
        step: step taken from the noisier state.
        s_churn: total noise added along the way; EDM used 30 to 80.
        s_tmin: smallest sigma / alpha at which noise is added.
        s_tmax: largest sigma / alpha at which noise is added.
        s_noise: factor of the standard deviation of the added noise.
        steps: number of grid steps over which the noise is spread.
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
    """Restart sampling: adds noise from ``low`` up to ``high`` and denoises again, repeatedly.

    ``low`` and ``high`` are values of r = sigma / alpha. The restart begins at the first grid time
    with r <= ``low``. It repeats ``times`` times: the forward transition up to ``high`` (at most
    ``t_max``) with fresh noise, then steps down, equal in r^(1/7). These are ``steps`` in number,
    or more, so that none is longer in r^(1/7) than the step that reached ``low``: they refine with
    the grid, and the order is that of ``step``. Nest restarts for several intervals. The wrapped
    step should be deterministic. Restart Sampling, arXiv 2306.14878, algorithm 1, with a fixed
    number of steps.

    Args:
        step: step used on the way down.
        low: sigma / alpha at or below which the restart begins.
        high: sigma / alpha up to which noise is added.
        times: number of repetitions.
        steps: least number of steps down in each repetition.
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
        walk = self._walk(denoiser.sde, s, at, to)
        top = marginal(denoiser.sde, walk[0])
        for _ in range(self.times):
            x, state = _renoised(x, to, top, 1.0, noise(x, s, s)), None
            for u, v in pairwise(walk):
                x, state = self.step(denoiser, x, u, v, state, noise)
        return x, state

    def _walk(self, sde: SDE, s: Tensor, at: Marginal, to: Marginal) -> list[Tensor]:
        """The times from r = high down to s, after a step from ``at`` to ``to``."""
        noisiest = math.exp(-marginal(sde, torch.tensor(sde.t_max, dtype=torch.float64)).lam)
        top, bottom = min(self.high, noisiest) ** (1 / 7), math.exp(-to.lam / 7)
        outer = math.exp(-at.lam / 7) - bottom
        steps = max(self.steps, math.ceil((top - bottom) / outer - 1e-9))
        lam = -7 * torch.linspace(top, bottom, steps + 1, dtype=torch.float64).log()
        return [*sde.time(lam[:-1]), s]


def _renoised(x: Tensor, at: Marginal, hat: Marginal, scale: float, z: Tensor) -> Tensor:
    """x_hat = a x + scale sqrt(v) z, the forward transition from ``at`` to the noisier ``hat``."""
    a, v = transition(hat, at)
    return combine((a, x), (scale * math.sqrt(v), z))
