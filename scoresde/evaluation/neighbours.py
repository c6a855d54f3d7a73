"""Precision, recall, density and coverage, from nearest-neighbour balls around features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.evaluation.finite import require_finite

ROWS = 1000


@dataclass(frozen=True)
class Inside:
    """Counts: balls that contain each point (N,), and points in each ball (M,)."""

    balls: Tensor
    points: Tensor


def precision(x: Tensor, y: Tensor, k: int = 3) -> float:
    """Fraction of the samples ``x`` (N, D) in the balls of the references ``y`` (M, D).

        mean_i [ some j: |x_i - y_j| <= r_k(y_j) ],    r_k(y_j) the distance to its k-th neighbour

    Raises ValueError as ``inside`` does. Kynkaanniemi and others, Improved precision and recall
    metric for assessing generative models, arXiv 1904.06991, eq. 2.
    """
    return float((inside(x, y, k).balls > 0).double().mean())


def recall(x: Tensor, y: Tensor, k: int = 3) -> float:
    """Fraction of the references ``y`` (M, D) in the balls of the samples ``x`` (N, D).

    This is the precision with the sets exchanged. Raises ValueError as ``inside`` does.
    Kynkaanniemi and others, arXiv 1904.06991, eq. 2.
    """
    require_finite(samples=x, references=y)
    return precision(y, x, k)


def density(x: Tensor, y: Tensor, k: int = 5) -> float:
    """Mean number of balls of the references ``y`` around a sample of ``x``, divided by k.

        1/k mean_i sum_j [ |x_i - y_j| <= r_k(y_j) ]

    The value is about 1 for samples of the same law and may exceed 1. Raises ValueError as
    ``inside`` does. Naeem and others, Reliable fidelity and diversity metrics, arXiv 2002.09797,
    section 3.
    """
    return float(inside(x, y, k).balls.double().mean()) / k


def coverage(x: Tensor, y: Tensor, k: int = 5) -> float:
    """Fraction of the references ``y`` (M, D) whose ball contains a sample of ``x`` (N, D).

        mean_j [ some i: |x_i - y_j| <= r_k(y_j) ]

    The expected value is 1 - 2^-k for N = M samples of the same law. Raises ValueError as
    ``inside`` does. Naeem and others, arXiv 2002.09797, section 3.
    """
    return float((inside(x, y, k).points > 0).double().mean())


def inside(x: Tensor, y: Tensor, k: int) -> Inside:
    """Count the points ``x`` (N, D) in balls around ``y`` (M, D) that reach its k-th neighbours.

    A point is not its own neighbour. Raises ValueError for unequal D, no ``x``, M <= k, NaN or
    infinity.
    """
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or len(x) == 0:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"features are {shapes}; expected (N, D) and (M, D)")
    if not 1 <= k < len(y):
        raise ValueError(f"k={k} neighbours of {len(y)} points; give more points, or k below that")
    require_finite(samples=x, references=y)
    middle = y.double().mean(0)
    x, y = x.double() - middle, y.double() - middle
    radius = _radii(y, k)
    balls, points = [], torch.zeros(len(y), dtype=torch.int64, device=y.device)
    for part in x.split(ROWS):
        within = torch.cdist(part, y) <= radius
        balls.append(within.sum(1))
        points += within.sum(0)
    return Inside(torch.cat(balls), points)


def _radii(y: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th neighbour."""
    radii = []
    for rows in torch.arange(len(y), device=y.device).split(ROWS):
        distance = torch.cdist(y[rows], y)
        distance[torch.arange(len(rows), device=y.device), rows] = torch.inf
        radii.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(radii)
