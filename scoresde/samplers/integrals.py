"""Deterministic steps as one integral: its integrand, and the weights of its quadrature.

A change of variables removes the linear part of the probability flow. What remains is the integral
of a prediction m, a linear function of x and x0_hat. u is a unit of length and theta a function of
lam:

    x_s / u_s = x_t / u_t + int_t^s m dtheta,   x_s = (u_s / u_t) x_t + sum_j w_j m_j

    m = eps:       u = alpha,           theta = sigma / alpha              (DPM-Solver, DEIS)
    m = x0:        u = sigma,           theta = alpha / sigma              (DPM-Solver++)
    m = eps - x0:  u = alpha + sigma,   theta = sigma / (alpha + sigma)    (the straight path)
    residual:      u = hypot(alpha d, sigma),   theta = arctan(sigma / (alpha d))

A rule replaces m by a polynomial through its values at chosen lam and returns the weights w_j,
host floats that depend on the grid alone. With one value every prediction gives the DDIM step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.samplers.kernels import Marginal
from scoresde.sde import FAINTEST, SDE

Array = NDArray[np.float64]
Weights = tuple[float, ...]

# --- predictions ------------------------------------------------------------------------------


class Point(NamedTuple):
    """The value of a prediction at one lam, m = gain * value.

    ``gain`` is folded into the weight later, which saves one pass over memory.
    """

    lam: float
    gain: float
    value: Tensor


class Prediction(ABC):
    """The integrand: a prediction m with its unit u and its variable theta."""

    @abstractmethod
    def unit(self, at: Marginal) -> float:
        """The unit of length u(t)."""

    @abstractmethod
    def kernel(self, lam: Array, to: Marginal) -> Array:
        """u_s dtheta/dlam at ``lam``, with the unit at the end ``to`` of the step."""

    @abstractmethod
    def read(self, x: Tensor, x0: Tensor, at: Marginal) -> Point:
        """The value of m at a marginal of finite lam."""


@final
@dataclass(frozen=True)
class Epsilon(Prediction):
    """m = eps = (x - alpha x0) / sigma."""

    def unit(self, at: Marginal) -> float:
        return at.alpha

    def kernel(self, lam: Array, to: Marginal) -> Array:
        return -to.sigma * np.exp(to.lam - lam)

    def read(self, x: Tensor, x0: Tensor, at: Marginal) -> Point:
        return Point(at.lam, 1 / at.sigma, torch.sub(x, x0, alpha=at.alpha))


@final
@dataclass(frozen=True)
class Data(Prediction):
    """m = x0."""

    def unit(self, at: Marginal) -> float:
        return at.sigma

    def kernel(self, lam: Array, to: Marginal) -> Array:
        return to.alpha * np.exp(lam - to.lam)

    def read(self, x: Tensor, x0: Tensor, at: Marginal) -> Point:
        return Point(at.lam, 1.0, x0)


@final
@dataclass(frozen=True)
class Velocity(Prediction):
    """m = eps - x0, the velocity of the straight path of flow matching."""

    def unit(self, at: Marginal) -> float:
        return at.alpha + at.sigma

    def kernel(self, lam: Array, to: Marginal) -> Array:
        return -self.unit(to) / (4 * np.cosh(lam / 2) ** 2)

    def read(self, x: Tensor, x0: Tensor, at: Marginal) -> Point:
        return Point(at.lam, 1 / at.sigma, torch.sub(x, x0, alpha=self.unit(at)))


@final
@dataclass(frozen=True)
class Residual(Prediction):
    """The residual of x0_hat from that of Gaussian data of standard deviation d.

        u = sqrt(alpha^2 d^2 + sigma^2),   theta = arctan(sigma / (alpha d)),
        m = (alpha d^2 x - u^2 x0) / (sigma d u)

    For such data m = 0 and every step is exact. -m is the output of a network in EDM's
    parameterisation, and m for d = 1 is the velocity of VP.
    Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 7.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"need std > 0, got std={self.std:g}")

    def unit(self, at: Marginal) -> float:
        return math.hypot(at.alpha * self.std, at.sigma)

    def kernel(self, lam: Array, to: Marginal) -> Array:
        return -self.unit(to) / (2 * np.cosh(lam + math.log(self.std)))

    def read(self, x: Tensor, x0: Tensor, at: Marginal) -> Point:
        u = self.unit(at)
        centred = torch.sub(x0, x, alpha=at.alpha * (self.std / u) ** 2)
        return Point(at.lam, -u / (at.sigma * self.std), centred)


EPS, X0, V = Epsilon(), Data(), Velocity()

# --- one step in terms of points --------------------------------------------------------------


def regular(*marginals: Marginal) -> bool:
    """True if x holds signal and noise; otherwise only the first-order step is of use.

    Noise predictions divide by alpha, which multiplies rounding errors where there is no signal.
    """
    return all(FAINTEST <= marginal.lam < math.inf for marginal in marginals)


def advance(
    prediction: Prediction,
    x: Tensor,
    at: Marginal,
    to: Marginal,
    points: Sequence[Point],
    weights: Weights,
) -> Tensor:
    """(u_s / u_t) x + sum_j w_j m_j."""
    (first, weight), *rest = zip(points, weights, strict=True)
    scale = 1.0 if at == to else prediction.unit(to) / prediction.unit(at)
    if scale == 1:
        y = torch.add(x, first.value, alpha=weight * first.gain)
    else:
        y = torch.mul(x, scale).add_(first.value, alpha=weight * first.gain)
    for point, weight in rest:
        y.add_(point.value, alpha=weight * point.gain)
    return y


# --- variables of interpolation --------------------------------------------------------------

Variable = Callable[[SDE, Array], Array]


def log_snr(sde: SDE, lam: Array) -> Array:
    """lam, the variable of DPM-Solver, UniPC and DEIS in log rho."""
    return lam


def ratio(sde: SDE, lam: Array) -> Array:
    """rho = sigma / alpha, the variable of LMS and rho-DEIS and the sigma of Karras et al."""
    return np.exp(-lam)


@final
@dataclass(frozen=True)
class Share:
    """sigma / (alpha d + sigma): the time of the straight path, for data scaled by 1 / d."""

    std: float = 1.0

    def __call__(self, sde: SDE, lam: Array) -> Array:
        return (1 - np.tanh((lam + math.log(self.std)) / 2)) / 2


share = Share()


def clock(sde: SDE, lam: Array) -> Array:
    """The time of the process, the variable of t-DEIS."""
    return sde.time(torch.from_numpy(lam)).numpy()


# --- rules: weights of the points --------------------------------------------------------------


class Rule(ABC):
    """A quadrature rule: the weights w_j of points at ``lams`` for the integral of the kernel.

    The integral runs from ``at`` to ``to``, and the point at ``at`` comes first. ``cap`` is the
    highest global order that a step with this rule reaches on any smooth grid.
    """

    cap: ClassVar[int]

    @abstractmethod
    def weights(
        self, prediction: Prediction, sde: SDE, at: Marginal, to: Marginal, lams: Weights
    ) -> Weights: ...


@final
@dataclass(frozen=True)
class Interpolation(Rule):
    """The exact integral of the polynomial through the points, w_j = u_s int L_j dtheta.

    Fast Sampling of Diffusion Models with Exponential Integrator (DEIS), arXiv 2204.13902, eq.
    15, in any variable.
    """

    variable: Variable = log_snr
    cap: ClassVar[int] = 4

    def weights(
        self, prediction: Prediction, sde: SDE, at: Marginal, to: Marginal, lams: Weights
    ) -> Weights:
        return _interpolated(prediction, self.variable, sde, at.lam, to, lams)


@final
@dataclass(frozen=True)
class FixedAdams(Rule):
    """The Adams-Bashforth weights of equal steps, used for any steps: of second order at most.

    Pseudo Numerical Methods for Diffusion Models, arXiv 2202.09778, eq. 12.
    """

    cap: ClassVar[int] = 2

    def weights(
        self, prediction: Prediction, sde: SDE, at: Marginal, to: Marginal, lams: Weights
    ) -> Weights:
        whole = _moment(prediction, at.lam, to, 0)
        return tuple(whole * c for c in _ADAMS[len(lams) - 1])


@final
@dataclass(frozen=True)
class PublishedTaylor(Rule):
    """The multistep formulas of the DPM-Solver code.

    For two points they agree with Interpolation up to O(h^2). For three they lack a factor 2:

        D2 = (D1_0 - D1_1) / (r0 + r1)   where the expansion needs   2 (D1_0 - D1_1) / (r0 + r1)

    ``midpoint`` selects their form for two points; k-diffusion's 3M SDE uses the exact one.
    DPM-Solver++, arXiv 2211.01095, algorithm 2 and its code.
    """

    midpoint: bool = True
    cap: ClassVar[int] = 2

    def weights(
        self, prediction: Prediction, sde: SDE, at: Marginal, to: Marginal, lams: Weights
    ) -> Weights:
        if len(lams) == 2 and self.midpoint:
            return _halved(prediction, at, to, lams, _moment(prediction, at.lam, to, 0))
        exact = _interpolated(prediction, log_snr, sde, at.lam, to, lams)
        if len(lams) < 3:
            return exact
        lost = _moment(prediction, at.lam, to, 2) / 2
        return tuple(w - lost / gap for w, gap in zip(exact, _gaps(lams), strict=True))


@final
@dataclass(frozen=True)
class UnifiedB(Rule):
    """The weights of UniPC.

    The solution of its linear system is the exact integral for every B, except for two points:
    there the code uses 1 / 2 instead, times B = h or e^h - 1. UniPC, arXiv 2302.04867, eq. 9 and
    appendix F.
    """

    exponential: bool = True
    cap: ClassVar[int] = 4

    def weights(
        self, prediction: Prediction, sde: SDE, at: Marginal, to: Marginal, lams: Weights
    ) -> Weights:
        if len(lams) != 2:
            return _interpolated(prediction, log_snr, sde, at.lam, to, lams)
        if self.exponential:
            return _halved(prediction, at, to, lams, _moment(prediction, at.lam, to, 0))
        end = float(prediction.kernel(np.array([to.lam]), to)[0])
        return _halved(prediction, at, to, lams, end * (to.lam - at.lam))


EXACT, BH1, BH2 = Interpolation(), UnifiedB(exponential=False), UnifiedB(exponential=True)

_ADAMS: tuple[Weights, ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _halved(
    prediction: Prediction, at: Marginal, to: Marginal, lams: Weights, scale: float
) -> Weights:
    """int k m0 + (scale / 2) D,   D = (m1 - m0) / r,   r = (lam_1 - lam_0) / h."""
    slope = scale / 2 * (to.lam - at.lam) / (lams[1] - lams[0])
    return _moment(prediction, at.lam, to, 0) - slope, slope


@lru_cache(maxsize=4096)
def _moment(prediction: Prediction, start: float, to: Marginal, power: int) -> float:
    """int k (lam - lam_t)^power dlam."""
    lam, measure = _quadrature(start, to.lam)
    return float(prediction.kernel(lam, to) * (lam - start) ** power @ measure)


@lru_cache(maxsize=4096)
def _interpolated(
    prediction: Prediction, variable: Variable, sde: SDE, start: float, to: Marginal, lams: Weights
) -> Weights:
    """int k L_j dlam, with L_j the Lagrange basis on the points in the given variable."""
    lam, measure = _quadrature(start, to.lam)
    k = prediction.kernel(lam, to) * measure
    u = variable(sde, np.concatenate([lam, lams]))
    u, knots = u[: len(lam)], u[len(lam) :].tolist()
    terms = [math.prod((u - b for b in _others(knots, j)), start=k) for j in range(len(lams))]
    return tuple(float(np.sum(part)) / gap for part, gap in zip(terms, _gaps(knots), strict=True))


def _gaps(knots: Sequence[float]) -> list[float]:
    """The denominators of the Lagrange basis, prod_{k != j} (u_j - u_k)."""
    return [math.prod(a - b for b in _others(knots, j)) for j, a in enumerate(knots)]


def _others(knots: Sequence[float], j: int) -> list[float]:
    return [*knots[:j], *knots[j + 1 :]]


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def _quadrature(start: float, end: float) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and signed weights in panels of length at most 1.

    The quadrature is exact up to rounding for kernels with poles in lam no closer than i pi / 2.
    """
    edges = np.linspace(start, end, max(1, math.ceil(abs(end - start))) + 1)
    centres = [((a + b) / 2, (b - a) / 2) for a, b in pairwise(edges.tolist())]
    nodes = np.concatenate([middle + half * _NODES for middle, half in centres])
    return nodes, np.concatenate([half * _WEIGHTS for _, half in centres])
