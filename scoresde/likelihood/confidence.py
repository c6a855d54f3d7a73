"""Uncertainty of a mean over images: standard error, confidence interval, error of the draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 4000
FEWEST = 8
"""Fewest values for which the bootstrap is used."""


class Mean(NamedTuple):
    """A mean with its standard error, which is NaN for a single value."""

    value: float
    error: float


def student(level: float, freedom: int) -> float:
    """The quantile of Student's law that leaves (1 - level) / 2 above it."""
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, (1 - level) / 2))


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


def bootstrap_interval(
    values: Tensor, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean of ``values`` (N,): the expanded percentile interval.

    Its quantiles are Phi(-+ sqrt(N / (N - 1)) t), with t the quantile of Student's law with N - 1
    degrees of freedom; plain percentiles are too narrow at small N. Fewer than 8 values get
    Student's interval, mean -+ t s / sqrt(N). Raises ValueError for a single value. What Teachers
    Should Know about the Bootstrap, arXiv 1411.5279, section 5.1.
    """
    from scipy.special import ndtr, stdtrit

    n = len(values)
    if n < 2:
        raise ValueError("an interval needs at least 2 values")
    t = float(stdtrit(n - 1, (1 - level) / 2))
    if n < FEWEST:
        centre, error = mean(values.double())
        return centre + t * error, centre - t * error
    generator = torch.Generator().manual_seed(seed)
    centred, means = (values - values.mean()).double().cpu(), []
    for rows in torch.empty(resamples).split(max(1, 10_000_000 // n)):
        chosen = torch.randint(n, (len(rows), n), generator=generator)
        means.append(centred[chosen].mean(1))
    tail = float(ndtr(math.sqrt(n / (n - 1)) * t))
    ends = torch.cat(means).quantile(torch.tensor([tail, 1 - tail]).double())
    low, high = (float(end + values.mean()) for end in ends)
    return low, high
