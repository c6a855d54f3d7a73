"""Uncertainty of a mean over images: standard error, confidence interval, error of the draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 10
"""Fewest values whose interval is trusted."""
SKEWED = 0.25
"""Largest skewness of the mean of trusted values; that of a sum of N exponentials is 2/sqrt(N)."""


class Interval(NamedTuple):
    """The ends of a confidence interval, and why it cannot be trusted, or None."""

    low: float
    high: float
    doubt: str | None


class Mean(NamedTuple):
    """A mean with its standard error, which is NaN for a single value."""

    value: float
    error: float


def student(level: float, freedom: Tensor | int) -> Tensor:
    """The quantiles of Student's laws that leave (1 - level) / 2 above them, float64."""
    from scipy.special import stdtrit

    freedom = torch.as_tensor(freedom, dtype=torch.float64)
    found = torch.as_tensor(-stdtrit(freedom.cpu().numpy(), (1 - level) / 2))
    return found.to(freedom.device)


def mean(values: Tensor) -> Mean:
    """The mean of ``values`` (N,) and its standard error s / sqrt(N).

    The error covers the choice of images and the random draws made for them.
    """
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return Mean(float(values.mean()), error)


def draw_error(first: Tensor, second: Tensor, images: int) -> float:
    """The part of the standard error due to random probes and dequantisation.

        sqrt(mean_i (v_i - v'_i)^2 / 2 / images)

    v and v' (M,) are independent draws for some of the ``images``. NaN if M = 0.
    """
    if not len(first):
        return math.nan
    variance = float((first - second).square().mean()) / 2
    return math.sqrt(variance / images)


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Interval of the mean of ``values`` (N,): Student's, joined with Hall's for skewed values.

        T = (mean - mu) / (s / sqrt(N)),   g(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6,
        -t <= T <= t  or  -t <= g(T) <= t,   a = skewness / sqrt(N)

    with t the quantile of Student's law with N - 1 degrees of freedom. ``doubt`` states why the
    interval cannot be trusted: fewer than 10 values, |a| > 1/4, or no spread. No interval knows of
    rare values of which the sample has none. Raises ValueError for a single value. Hall, On the
    removal of skewness by transformation (1992), eq. 2.5.
    """
    n = len(values)
    if n < 2 or not 0 < level < 1:
        raise ValueError(f"need at least 2 values and a level in (0, 1), got {n} and {level}")
    if bad := int((~values.isfinite()).sum()):
        raise ValueError(f"values: {bad} of {n} are not finite")
    centre, error = mean(values.double())
    rest = values.double() - centre
    spread = math.sqrt(float(rest.square().mean()))
    if spread == 0:
        return Interval(centre, centre, f"all {n} values are equal, so nothing shows their spread")
    skew = float((rest / spread).pow(3).mean()) / math.sqrt(n)
    t = float(student(level, n - 1))
    ends = [-t, t]
    if skew:
        cubes = (1 + skew * (w - skew / 6) for w in (-t, t))
        ends += [3 / skew * (math.copysign(abs(c) ** (1 / 3), c) - 1) for c in cubes]
    doubt = None
    if n < FEWEST:
        doubt = f"{n} values are too few to tell whether they are nearly normal"
    elif abs(skew) > SKEWED:
        doubt = f"a few of the {n} values carry their mean"
    return Interval(centre - max(ends) * error, centre - min(ends) * error, doubt)
