"""Stochastic exponential multistep methods: noise enters as an extra integrating factor.

``eta`` scales the noise: 0 is the probability flow, 1 the reverse SDE. With the variables
(m, u, theta) of a prediction, of ``integrals``,

    dy = -eta (sigma / u)^2 y dlam + (1 + eta) m dtheta + sqrt(2 eta) (sigma / u) dW,    y = x / u

is solved exactly except for m. With e = (alpha / u)^eta and E = e(t) / e(s), the factor of y,

    x_s = (u_s / u_t) E x + u_s int (1 + eta) (e / e(s)) m dtheta + u_s sqrt(1 - E^2) z

Here u^2 = alpha^2 d^2 + sigma^2 is the variance of the marginals of Gaussian data of standard
deviation d, and m is the residual of such data. d = 0 gives m = x0: DPM-Solver++ SDE, SA-Solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import numpy as np
from torch import Tensor

from scoresde.arguments import NonNegative, Range
from scoresde.denoiser import Denoiser
from scoresde.samplers.integrals import (
    EXACT,
    X0,
    Array,
    Point,
    Prediction,
    PublishedTaylor,
    Residual,
    Rule,
    advance,
    regular,
)
from scoresde.samplers.kernels import Marginal, flow_step, marginals, noised
from scoresde.samplers.multistep import History, lams
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State


@final
@dataclass(frozen=True)
class Forgetting(Prediction):
    """The prediction x0 (``std`` 0) or the residual, with noise: u / e, and (1 + eta) e dtheta.

    Raises ValueError unless std >= 0 and eta >= 0.
    """

    std: float = 0.0
    eta: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("std", self.std), ("eta", self.eta)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"need a finite {name} >= 0, got {name}={value:g}")

    @property
    def frame(self) -> Prediction:
        """The prediction without noise."""
        return Residual(self.std) if self.std else X0

    def unit(self, at: Marginal) -> float:
        u = self.frame.unit(at)
        return u * math.pow(u / at.alpha, self.eta)

    def kernel(self, lam: Array, to: Marginal) -> Array:
        e = np.exp(self.eta / 2 * (self._log_ratio(to.lam) - self._log_ratio(lam)))
        return (1 + self.eta) * e * self.frame.kernel(lam, to)

    def read(self, x: Tensor, x0: Tensor, at: Marginal) -> Point:
        return self.frame.read(x, x0, at)

    def deviation(self, at: Marginal, to: Marginal) -> float:
        """Standard deviation of the noise of a step, u_s sqrt(1 - E^2)."""
        end = self.frame.unit(to)
        ratio = end / to.alpha * (at.alpha / self.frame.unit(at))  # E = ratio^eta
        return end * math.sqrt(-math.expm1(2 * self.eta * math.log(ratio)))

    def _log_ratio(self, lam: Array | float) -> Array:
        """log (u / alpha)^2."""
        log_variance = 2 * math.log(self.std) if self.std else -math.inf
        total: Array = np.logaddexp(log_variance, -2 * np.asarray(lam))
        return total


@dataclass(frozen=True)
class StochasticMultistep:
    """Extrapolates the drift through up to ``points`` evaluations and draws the exact noise.

    Each step makes one call. The number of evaluations grows from one, which limits the order to
    2. A step where x holds no signal or no noise is of first order and clears the history. With
    ``eta`` = 0 it is ``Multistep`` without noise.
    Raises ValueError unless 1 <= points <= 4, eta >= 0 and std >= 0.
    """

    points: int = 2
    eta: float = 1.0
    std: float = 0.0
    rule: Rule = EXACT
    first_order: ClassVar[int] = 1
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_points(points=self.points)
        Forgetting(self.std, self.eta)  # checks both

    @property
    def prediction(self) -> Forgetting:
        """The prediction that the steps extrapolate."""
        return Forgetting(self.std, self.eta)

    @property
    def weak_order(self) -> int:
        return min(self.points, 2)

    @property
    def order(self) -> int:
        return self.weak_order

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginals(denoiser.sde, t, s, self.eta > 0)
        frame, x0 = self.prediction, denoiser(x, t)
        if not regular(at, to):
            mean, std = _unbounded(x, x0, at, to, self.eta)
            return noised(mean, std, noise, t, s), None
        points = (frame.read(x, x0, at), *(state or ()))[: self.points]
        weights = self.rule.weights(frame, denoiser.sde, at, to, lams(points))
        mean = advance(frame, x, at, to, points, weights)
        return noised(mean, frame.deviation(at, to), noise, t, s), points[: self.points - 1]


def dpmpp_2m_sde(eta: NonNegative = 1.0, heun: bool = False) -> StochasticMultistep:
    """DPM-Solver++(2M) SDE: extrapolates x0 through the last two evaluations.

        x_s = (sigma_s / sigma_t) e^(-eta h) x - alpha_s expm1(-H) x0 + c (x0 - x0_last) / r + ...

    with h = lam_s - lam_t, H = (1 + eta) h, r = h_last / h and c = -alpha_s expm1(-H) / 2
    (midpoint), or alpha_s (expm1(-H) / H + 1) (``heun``), the exact integral. Raises ValueError
    unless eta >= 0. ``dpmpp_2m_sde`` of k-diffusion; arXiv 2211.01095.

    Args:
        eta: size of the noise: 0 for none, 1 for the reverse SDE.
        heun: integrate the extrapolation exactly instead of by the midpoint rule.
    """
    return StochasticMultistep(2, eta, rule=EXACT if heun else PublishedTaylor())


def dpmpp_3m_sde(eta: NonNegative = 1.0, published: bool = False) -> StochasticMultistep:
    """DPM-Solver++(3M) SDE: extrapolates x0 by the parabola through three evaluations.

    From the third step on it is exact if x0 is a parabola in lam. The published 3M multiplies the
    second difference by phi_3 in place of 2 phi_3 and is not exact; ``published`` reproduces it.
    Raises ValueError unless eta >= 0. ``dpmpp_3m_sde`` of k-diffusion.

    Args:
        eta: size of the noise: 0 for none, 1 for the reverse SDE.
        published: use the formulas of the released code.
    """
    return StochasticMultistep(
        3, eta, rule=PublishedTaylor(midpoint=False) if published else EXACT
    )


@dataclass(frozen=True)
class SASolver:
    """SA-Solver: stochastic Adams-Bashforth, corrected by Adams-Moulton with the same noise.

    ``predictor`` and ``corrector`` are the numbers of evaluations in the two polynomials, 1 to 4;
    the corrector's includes the one at s. The next step reuses the evaluation at the predicted
    x_s, so a step makes one call, and the first step two. ``tau`` scales the noise, eta = tau^2.
    ``std`` selects the prediction; it is 0 in the paper. The weights are exact, without the
    published adjustment of the second-order ones. Raises ValueError for values out of range.
    SA-Solver, arXiv 2309.05019, algorithm 1.

    Args:
        predictor: number of network evaluations that the predictor combines.
        corrector: number of network evaluations that the corrector combines, its own included.
        tau: size of the noise: 0 for none, 1 for the reverse SDE.
        std: standard deviation of the Gaussian data for which the solver is exact.
    """

    predictor: Annotated[int, Range(ge=1, le=4)] = 2
    corrector: Annotated[int, Range(ge=1, le=4)] = 2
    tau: NonNegative = 1.0
    std: NonNegative = 0.0
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_points(predictor=self.predictor, corrector=self.corrector)
        if not (self.tau >= 0 and math.isfinite(self.tau)):
            raise ValueError(f"need a finite tau >= 0, got tau={self.tau:g}")

    @property
    def prediction(self) -> Forgetting:
        """The prediction that the steps extrapolate."""
        return Forgetting(self.std, self.tau**2)

    @property
    def weak_order(self) -> int:
        return 1 if self.corrector == 1 else 2

    @property
    def order(self) -> int:
        return self.weak_order

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        frame, sde = self.prediction, denoiser.sde
        at, to = marginals(sde, t, s, frame.eta > 0)
        if not regular(at, to):
            mean, std = _unbounded(x, denoiser(x, t), at, to, frame.eta)
            return noised(mean, std, noise, t, s), None

        def moved(history: History) -> Tensor:
            weights = EXACT.weights(frame, sde, at, to, lams(history))
            return advance(frame, still, to, to, history, weights)

        past: History = state or (frame.read(x, denoiser(x, t), at),)
        # The part without evaluations, common to prediction and correction.
        still = noised(x * (frame.unit(to) / frame.unit(at)), frame.deviation(at, to), noise, t, s)
        guess = moved(past[: self.predictor])
        past = (frame.read(guess, denoiser(guess, s), to), *past)
        kept = max(self.predictor, self.corrector - 1)
        return moved(past[: self.corrector]), past[:kept]


def _unbounded(
    x: Tensor, x0: Tensor, at: Marginal, to: Marginal, eta: float
) -> tuple[Tensor, float]:
    """Mean and standard deviation of a step from no signal or to no noise."""
    if not eta:
        return flow_step(x, x0, at, to), 0.0
    return flow_step(x, x0, at, Marginal(to.alpha, 0.0, math.inf)), to.sigma


def _require_points(**counts: int) -> None:
    for name, count in counts.items():
        if count not in (1, 2, 3, 4):
            raise ValueError(f"need {name} from 1 to 4 readings, got {name}={count}")
