"""The standard error of a distance between two sets, from random halves of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor], float]
"""Takes samples (N, D) and references (M, D)."""


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, and its mean over random halves; NaN if unknown."""

    value: float
    error: float = math.nan
    half: float = math.nan

    @property
    def extrapolated(self) -> float:
        """The value for infinitely many items, if its bias is c / N.

        Chong and Forsyth, Effectively unbiased FID and Inception Score and where to find them,
        arXiv 1911.07023, fit this line to more values of N.
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
    """``measure(x, y)`` with the delete-half jackknife estimate of its standard error.

        error^2 = var_r [ measure(x[half_r], y[half_r]) ]

    Halves are drawn without replacement: unlike the bootstrap they repeat no item, and repeated
    items would bias neighbours and unbiased kernels.

    Args:
        measure: the distance.
        x: samples (N, D).
        y: references (M, D).
        resamples: number of halves; 0 gives no error.
        generator: source of the random halves.
        tick: called after each half.

    Raises ValueError for one resample or fewer than two items. Shao and Wu, A general theory for
    jackknife variance estimation (1989), with d = n/2.
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
    """A random half of the items."""
    return x[torch.randperm(len(x), generator=generator)[: len(x) // 2]]


def share(hits: Tensor) -> Estimate:
    """The fraction p of true ``hits`` (N,), with the binomial error sqrt(p (1 - p) / N)."""
    p = float(hits.double().mean())
    return Estimate(p, math.sqrt(p * (1 - p) / len(hits)))
