"""How sure a distance between two sets is: its spread over random halves of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor], float]
"""Of samples (N, D) and references (M, D)."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, and its mean over half of the items; NaN where unknown."""

    value: float
    error: float = math.nan
    half: float = math.nan

    @property
    def extrapolated(self) -> float:
        """The value for endless items, if it errs by c / N: twice the value less that of halves.

        Chong and Forsyth, Effectively unbiased FID and Inception Score and where to find them,
        arXiv 1911.07023, fit the same line through more values of N.
        """
        return 2 * self.value - self.half


def by_halves(
    measure: Measure,
    x: Tensor,
    y: Tensor,
    resamples: int,
    generator: torch.Generator,
    tick: Callable[[], object] = lambda: None,
) -> Estimate:
    """``measure(x, y)``, and its standard deviation over random halves of both sets as the error.

        error^2 = var_r [ measure(x[half_r], y[half_r]) ]

    Halves are drawn without replacement: a half has twice the variance of the whole, and half of
    that is already given by the whole, so the rest is the variance sought (exactly so for a mean).
    Unlike the bootstrap it repeats no item, which neighbours and unbiased kernels could not bear.
    No resamples, no error. ``tick`` is called after each half. Raises ValueError for one resample,
    or fewer than two items.
    Shao and Wu, A general theory for jackknife variance estimation (1989), with d = n/2.
    """
    value = measure(x, y)
    if resamples == 0:
        return Estimate(value)
    if resamples < 2 or min(len(x), len(y)) < 2:
        raise ValueError(f"{resamples} halves of {len(x)} and {len(y)} items; give two of each")
    values = torch.empty(resamples, dtype=torch.float64)
    for r in range(resamples):
        values[r] = measure(half(x, generator), half(y, generator))
        tick()
    return Estimate(value, float(values.std()), float(values.mean()))


def half(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the items, at random."""
    return x[torch.randperm(len(x), generator=generator)[: len(x) // 2]]


def share(hits: Tensor) -> Estimate:
    """The share of true ``hits`` (N,), with the standard error of independent ones.

    p +- sqrt(p (1 - p) / N)
    """
    p = float(hits.double().mean())
    return Estimate(p, math.sqrt(p * (1 - p) / len(hits)))
