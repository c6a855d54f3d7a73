"""Laws of the training times, as maps from uniform numbers to times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde.arguments import Count, Open, Positive, check_fields
from scoresde.sde import SDE, derivative

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws n float64 numbers, each uniform on (0, 1) but not necessarily independent."""


class Times(Protocol):
    """A law of training times: a map from u in (0, 1) to times of the process."""

    def __call__(self, sde: SDE, u: Tensor) -> Tensor: ...


def independent(n: int, generator: torch.Generator) -> Tensor:
    """n independent uniform numbers."""
    return torch.rand(n, generator=generator, dtype=torch.float64)


def antithetic(n: int, generator: torch.Generator) -> Tensor:
    """Pairs u, 1 - u (and one more number if n is odd)."""
    u = independent((n + 1) // 2, generator)
    return torch.cat([u, 1 - u])[:n]


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """(u + i / n) mod 1 for one uniform u, in random order.

    Variational Diffusion Models, arXiv 2107.00630, appendix I.1.
    """
    u = independent(1, generator) + torch.randperm(n, generator=generator, dtype=torch.float64) / n
    return u % 1


@dataclass(frozen=True)
class Uniform:
    """t uniform on [t_min, t_max]."""

    def __call__(self, sde: SDE, u: Tensor) -> Tensor:
        return sde.t_min + u * (sde.t_max - sde.t_min)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """The density of t relative to uniform times: 1."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class LogSNR:
    """lam uniform: density -lam' = g^2 / (2 sigma^2), the importance sampler of the likelihood.

    Maximum Likelihood Training of Score-Based Diffusion Models, arXiv 2101.09258, section 5.1.
    """

    def __call__(self, sde: SDE, u: Tensor) -> Tensor:
        lam_min, lam_max = sde.span(sde.t_min)
        return sde.time(lam_min + u * (lam_max - lam_min)).clamp(sde.t_min, sde.t_max)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """The density of t relative to uniform times: -lam' over its mean."""
        lam_min, lam_max = sde.span(sde.t_min)
        return -derivative(sde.lam, t) * (sde.t_max - sde.t_min) / (lam_max - lam_min)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) normal, as in EDM, with t clamped to [t_min, t_max].

    EDM, arXiv 2206.00364, table 1.

    Args:
        mean: mean of log(sigma / alpha)
        std: standard deviation of log(sigma / alpha)
    """

    mean: float = -1.2
    std: Positive = 1.2

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, u: Tensor) -> Tensor:
        z = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
        return sde.time(-(self.mean + self.std * z)).clamp(sde.t_min, sde.t_max)


@dataclass(frozen=True)
class DiscreteTimes:
    """The n times (i + 1) t_max / n with equal probability: discrete-time training.

    DDPM, arXiv 2006.11239, algorithm 1.

    Args:
        n: number of times
    """

    n: Count = 1000

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, u: Tensor) -> Tensor:
        return self.at(sde, (u * self.n).floor().clamp(0, self.n - 1))

    def at(self, sde: SDE, level: Tensor) -> Tensor:
        """The times of levels 0 to n - 1."""
        return ((level + 1) / self.n * sde.t_max).clamp(min=sde.t_min)


@dataclass(frozen=True)
class LossAware(DiscreteTimes):
    """The n times of levels, drawn in proportion to the root mean square of their last losses.

    Losses are divided by these probabilities, so the expected loss is that of levels. The losses
    are part of the state of training. Improved DDPM, arXiv 2102.09672, section 3.3.

    Args:
        history: number of losses of each level; the times are uniform until all have as many.
        least: probability of a uniform draw in its place.
    """

    history: Count = 10
    least: Open = 0.001
