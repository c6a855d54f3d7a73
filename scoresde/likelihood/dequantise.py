"""Dequantisation: a bound on the probability of pixel levels k from a density of states at t_0.

A dequantisation draws x from q(x | k), with a log-weight such that

    log P(k) >= E_q [log p_t0(x) + weight],        weight = log P(k | x) - log q(x | k)

The log of the mean exponential over K draws is the importance-weighted bound, which grows with K.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor

from scoresde.likelihood.divergence import sum_from
from scoresde.sde import SDE
from scoresde.solvers import time_of


class Quantisation(Protocol):
    """Level k covers low + step [k, k + 1) in model units, as in ``data.Scaling``."""

    @property
    def levels(self) -> int | None: ...
    @property
    def low(self) -> float: ...
    @property
    def step(self) -> float: ...
    def log_volume(self, shape: tuple[int, ...]) -> float: ...
    def encode(self, k: Tensor, u: Tensor | float = 0.5, dtype: torch.dtype = ...) -> Tensor: ...


class Draw(NamedTuple):
    """States at t_0 (B, ...) and their log-weights (B,)."""

    x: Tensor
    weight: Tensor


class Dequantisation(ABC):
    """A law q(x | k) at t_0, sampled by its quantile function."""

    @abstractmethod
    def draw(self, k: Tensor, u: Tensor, levels: Quantisation, sde: SDE, t0: float) -> Draw:
        """Float64 states for levels ``k`` (B, ...) from ``u`` in (0, 1) of the same shape."""

    @property
    @abstractmethod
    def bounds(self) -> str:
        """The quantity that the value bounds, in words for a report."""

    at_noise: ClassVar[bool] = False
    """True if the draw is a noisy state of the process at t_0, so that t_0 matters."""


@final
@dataclass(frozen=True)
class Continuous(Dequantisation):
    """Real numbers, used unchanged as states at t_0: weight ``log_volume``."""

    def draw(self, k: Tensor, u: Tensor, levels: Quantisation, sde: SDE, t0: float) -> Draw:
        x = levels.encode(k, dtype=torch.float64)
        return Draw(x, x.new_full((len(x),), levels.log_volume(x.shape[1:])))

    @property
    def bounds(self) -> str:
        return "the log-density at t_0 of real numbers"


@final
@dataclass(frozen=True)
class Uniform(Dequantisation):
    """x uniform on the level, used unchanged as a state at t_0: weight D log step.

    Tight for a model trained on dequantised data, loose for a model of the levels themselves.
    RealNVP, arXiv 1605.08803, section 4.1.
    """

    def draw(self, k: Tensor, u: Tensor, levels: Quantisation, sde: SDE, t0: float) -> Draw:
        x = levels.low + levels.step * (k.double() + u.double())
        return Draw(x, x.new_full((len(x),), x[0].numel() * math.log(levels.step)))

    @property
    def bounds(self) -> str:
        return "uniform dequantisation: the discrete likelihood of the density at t_0"


@final
@dataclass(frozen=True)
class TruncatedNormal(Dequantisation):
    """x = alpha c_k + sigma e at t_0, with c_k the middle of the level and e truncated to it.

        weight = sum e^2 / 2 + log(sqrt(2 pi) sigma Z),   |e| < tau = alpha step / (2 sigma),
        Z = erf(tau / sqrt 2)

    The intervals of x tile the line, so the integral of p_t0 over each is the discrete law. The
    bound is tight for a model of the levels if sigma(t_0) is far below the width of a level.
    Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, arXiv 2305.03935,
    section 3.2.
    """

    at_noise: ClassVar[bool] = True

    def draw(self, k: Tensor, u: Tensor, levels: Quantisation, sde: SDE, t0: float) -> Draw:
        alpha, sigma = _marginal(sde, t0)
        mass = math.erf(alpha * levels.step / (2 * sigma) / math.sqrt(2))
        e = _normal(mass * (2 * u.double() - 1))
        x = alpha * middles(k, levels) + sigma * e
        return Draw(x, _entropy(e, sigma * mass))

    @property
    def bounds(self) -> str:
        return "truncated-normal dequantisation: a lower bound on the discrete likelihood"


@final
@dataclass(frozen=True)
class Decoder(Dequantisation):
    """x = alpha c_k + sigma e at t_0, decoded by the softmax of the distances to all levels.

        weight = sum log P(k | x) + e^2 / 2 + log(sqrt(2 pi) sigma),
        P(k | x) ~ exp(-(x - alpha c_k)^2 / 2 sigma^2)

    Levels farther than the nearest by 10 deviations are neglected. Variational Diffusion Models,
    arXiv 2107.00630, eq. 8 and appendix C.
    """

    at_noise: ClassVar[bool] = True

    def draw(self, k: Tensor, u: Tensor, levels: Quantisation, sde: SDE, t0: float) -> Draw:
        alpha, sigma = _marginal(sde, t0)
        e = _normal(2 * u.double() - 1)
        x = alpha * middles(k, levels) + sigma * e
        decoded = self.log_prob(k, x, levels, sde, t0)
        return Draw(x, decoded + _entropy(e, sigma))

    def log_prob(self, k: Tensor, x: Tensor, levels: Quantisation, sde: SDE, t0: float) -> Tensor:
        """log P(k | x) (B,) of levels given states at t_0."""
        alpha, sigma = _marginal(sde, t0)
        ratio, highest = alpha * levels.step / sigma, (levels.levels or math.inf) - 1
        e = (x - alpha * middles(k, levels)) / sigma
        # The sum is around the level that is nearest to x, as its length then depends on no value.
        nearest = (k + torch.round(e / ratio)).clamp(0, highest)
        total, reach = torch.full_like(e, -math.inf), math.ceil(min(10 / ratio, highest))
        for j in range(-reach, reach + 1):
            inside = (nearest + j >= 0) & (nearest + j <= highest)
            away = -((e - (nearest + j - k) * ratio) ** 2) / 2
            total = torch.logaddexp(total, away.masked_fill(~inside, -math.inf))
        return sum_from(1, -(e**2) / 2 - total)

    @property
    def bounds(self) -> str:
        return "decoder at t_0: a lower bound on the discrete likelihood"


def tight_time(sde: SDE, levels: Quantisation, fineness: float = 16.0) -> float:
    """The t_0 at which a level is ``fineness`` deviations wide, alpha step = fineness sigma.

    At this time the bound of a truncated normal or a decoder is nearly tight, for a model that is
    accurate down to t_0. Raises ValueError for a process whose noise never becomes so small.
    """
    lam = torch.tensor(math.log(fineness / levels.step), dtype=torch.float64)
    t = sde.time(lam)
    if not (math.isclose(float(sde.lam(t)), float(lam), abs_tol=1e-6) and float(t) > 0):
        raise ValueError(
            f"{sde} never has as little noise as {levels.step / fineness:.3g}, a level over "
            f"{fineness:g}; take a smaller fineness or a process with less"
        )
    return float(t)


def importance_weighted(values: Tensor) -> Tensor:
    """log (1/K) sum_k exp(values_k) (B,) of K log-weights (K, B): a tighter bound than the mean.

    Importance Weighted Autoencoders, arXiv 1509.00519, eq. 8.
    """
    return torch.logsumexp(values, 0) - math.log(len(values))


def _marginal(sde: SDE, t0: float) -> tuple[float, float]:
    t = time_of(sde, t0)
    return float(sde.alpha(t)), float(sde.sigma(t))


def middles(k: Tensor, levels: Quantisation) -> Tensor:
    """The middles of levels ``k``, or real numbers, in model units and float64."""
    if levels.levels is None:
        return levels.encode(k, dtype=torch.float64)
    return levels.low + levels.step * (k.double() + 0.5)


def _normal(u: Tensor) -> Tensor:
    """The normal quantile of (1 + u) / 2."""
    # Rounding may have moved u to -1 or 1.
    return math.sqrt(2) * torch.erfinv(u.clamp(-1 + 2**-52, 1 - 2**-52))


def _entropy(e: Tensor, scale: float) -> Tensor:
    """-log N(scale e; 0, scale^2), summed (B,)."""
    return sum_from(1, e**2 / 2 + math.log(math.sqrt(2 * math.pi) * scale))
