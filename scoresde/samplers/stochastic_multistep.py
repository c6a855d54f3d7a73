"""Stochastic multistep methods: exponential Adams on the reverse SDE, with x0 a polynomial in lam.

    x_s = (sigma_s / sigma_t) e^(-eta h) x + alpha_s sum_j w_j x0_j
          + sigma_s sqrt(1 - e^(-2 eta h)) z,      h = lam_s - lam_t

The weights are those of the integral of H e^(-H (1 - u)) x0(u) over u in [0, 1], H = (1 + eta) h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import Level
from scoresde.samplers.loop import State
from scoresde.samplers.noise import Noise
from scoresde.samplers.stochastic import combine, levels, noised


class Past(NamedTuple):
    """A prediction and the lam it was made at."""

    lam: float
    x0: Tensor


History = tuple[Past, ...]  # newest first


def moments(decay: float, count: int) -> list[float]:
    """m_k = integral of H e^(-H (1 - u)) u^k over [0, 1], k < count, for H = ``decay``.

    m_k = H k! phi_{k+1}(-H), with phi_k(z) = sum_n z^n / (n + k)!: the series where the recurrence
    m_k = 1 - k m_{k-1} / H would cancel.
    """
    if abs(decay) < 1:
        return [decay * math.factorial(k) * _phi(k + 1, -decay) for k in range(count)]
    values = [-math.expm1(-decay)]
    for k in range(1, count):
        values.append(1 - k * values[-1] / decay)
    return values


def _phi(k: int, z: float) -> float:
    return sum(z**n / math.factorial(n + k) for n in range(20))


def adams_weights(nodes: Sequence[float], decay: float) -> list[float]:
    """Weights of predictions at the ``nodes`` u_j (0 at t, 1 at s), exact for polynomials through
    them: sum_j w_j u_j^k = m_k.
    """
    powers = np.vander(np.asarray(nodes), increasing=True).T
    weights: list[float] = np.linalg.solve(powers, moments(decay, len(nodes))).tolist()
    return weights


def adams_update(
    x: Tensor, history: History, weights: Sequence[float], at: Level, to: Level, eta: float
) -> Tensor:
    """The mean of x_s: (sigma_s / sigma_t) e^(-eta h) x + alpha_s sum_j w_j x0_j."""
    scale = to.sigma / at.sigma
    # Without noise nothing decays, even over an infinite step of lam.
    scale *= math.exp(eta * (at.lam - to.lam)) if eta else 1.0
    return combine(
        (scale, x), *((to.alpha * w, p.x0) for w, p in zip(weights, history, strict=True))
    )


def deviation(at: Level, to: Level, eta: float) -> float:
    """sigma_s sqrt(1 - e^(-2 eta h))."""
    return to.sigma * math.sqrt(-math.expm1(2 * eta * (at.lam - to.lam))) if eta else 0.0


def usable(history: History, at: Level, to: Level) -> History:
    """The history without what lies infinitely far; over an infinite step, its newest alone."""
    if not math.isfinite(to.lam - at.lam):
        return history[:1]
    return tuple(p for p in history if math.isfinite(p.lam))


def nodes_of(history: History, at: Level, to: Level) -> list[float]:
    """The places of the predictions in units of the step."""
    return [(p.lam - at.lam) / (to.lam - at.lam) if p.lam != at.lam else 0.0 for p in history]


def _require_eta(eta: float) -> None:
    if not (eta >= 0 and math.isfinite(eta)):
        raise ValueError(f"need a finite eta >= 0, got eta={eta:g}")


@dataclass(frozen=True)
class DPMpp2MSDE:
    """DPM-Solver++(2M) SDE: one prediction a step, x0 extrapolated from this and the last.

        x_s = (sigma_s / sigma_t) e^(-eta h) x - alpha_s expm1(-H) x0 + c (x0 - x0_last) / r + ...

    with r = h_last / h and c = -alpha_s expm1(-H) / 2 (midpoint), or alpha_s (expm1(-H) / H + 1)
    (``heun``), the exact moment. eta = 0 is DPM-Solver++(2M). Starts with a first-order step.
    Raises ValueError unless eta >= 0. ``dpmpp_2m_sde`` of k-diffusion; arXiv 2211.01095.
    """

    eta: float = 1.0
    heun: bool = False
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_eta(self.eta)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = levels(denoiser.sde, t, s, self.eta)
        kept = (Past(at.lam, denoiser(x, t)), *(state or ()))[:2]
        history = usable(kept, at, to)
        x = adams_update(x, history, self._weights(history, at, to), at, to, self.eta)
        return noised(x, deviation(at, to, self.eta), noise, t, s), kept

    def _weights(self, history: History, at: Level, to: Level) -> list[float]:
        decay, nodes = (1 + self.eta) * (to.lam - at.lam), nodes_of(history, at, to)
        if self.heun or len(nodes) == 1:
            return adams_weights(nodes, decay)
        gain = -math.expm1(-decay)
        extra = gain / 2 / -nodes[1]
        return [gain + extra, -extra]


@dataclass(frozen=True)
class DPMpp3MSDE:
    """DPM-Solver++(3M) SDE: x0 extrapolated by the parabola through three predictions.

    Exact for a parabola once started, by steps of order 1 and 2 that cap the global order at 2;
    weakly second with noise. The published 3M multiplies the second difference by phi_3 in place
    of 2 phi_3, and is not exact; ``published`` reproduces it. Raises ValueError unless eta >= 0.
    ``dpmpp_3m_sde`` of k-diffusion.
    """

    eta: float = 1.0
    published: bool = False
    order: ClassVar[int] = 2
    weak_order: ClassVar[int] = 2
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_eta(self.eta)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = levels(denoiser.sde, t, s, self.eta)
        kept = (Past(at.lam, denoiser(x, t)), *(state or ()))[:3]
        history = usable(kept, at, to)
        x = adams_update(x, history, self._weights(history, at, to), at, to, self.eta)
        return noised(x, deviation(at, to, self.eta), noise, t, s), kept

    def _weights(self, history: History, at: Level, to: Level) -> list[float]:
        decay, u = (1 + self.eta) * (to.lam - at.lam), nodes_of(history, at, to)
        weights = adams_weights(u, decay)
        if len(u) < 3 or not self.published:
            return weights
        half = moments(decay, 3)[2] / 2
        return [w - half * d for w, d in zip(weights, _second_difference(u), strict=True)]


def _second_difference(u: Sequence[float]) -> list[float]:
    """The weights of the divided difference of three values."""
    a, b, c = u
    return [1 / ((a - b) * (a - c)), 1 / ((b - a) * (b - c)), 1 / ((c - a) * (c - b))]


@dataclass(frozen=True)
class SASolver:
    """SA-Solver: stochastic Adams-Bashforth, corrected by Adams-Moulton with the same noise.

    ``predictor`` and ``corrector`` count the predictions in their polynomials, 1 to 4, the
    corrector's including that at s. The one made at the predicted x_s serves the next step too,
    so a step costs one call, and the first one more. ``tau`` scales the noise, eta = tau^2.
    Weights are exact moments; the published adjustment of the second-order ones is left out.
    Raises ValueError for other orders or tau < 0. SA-Solver, arXiv 2309.05019, algorithm 1.
    """

    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (1 <= self.predictor <= 4 and 1 <= self.corrector <= 4):
            raise ValueError(
                "need predictor and corrector from 1 to 4, got "
                f"predictor={self.predictor}, corrector={self.corrector}"
            )
        if not (self.tau >= 0 and math.isfinite(self.tau)):
            raise ValueError(f"need a finite tau >= 0, got tau={self.tau:g}")

    @property
    def weak_order(self) -> int:
        return 1 if self.corrector == 1 else 2

    @property
    def order(self) -> int:
        return self.weak_order

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        eta = self.tau**2
        at, to = levels(denoiser.sde, t, s, eta)
        past: History = state or (Past(at.lam, denoiser(x, t)),)
        std = deviation(at, to, eta)
        fresh = ((std, noise(x, t, s)),) if std else ()
        guess = _moved(x, past[: self.predictor], at, to, eta, fresh)
        if not math.isfinite(to.lam - at.lam):
            return guess, None
        past = (Past(to.lam, denoiser(guess, s)), *past)[:4]
        return _moved(x, past[: self.corrector], at, to, eta, fresh), past


def _moved(
    x: Tensor,
    history: History,
    at: Level,
    to: Level,
    eta: float,
    fresh: tuple[tuple[float, Tensor], ...],
) -> Tensor:
    """The update with exact weights, and its noise."""
    history = usable(history, at, to)
    weights = adams_weights(nodes_of(history, at, to), (1 + eta) * (to.lam - at.lam))
    y = adams_update(x, history, weights, at, to, eta)
    for std, z in fresh:
        y.add_(z, alpha=std)
    return y
