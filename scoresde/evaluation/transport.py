"""Wasserstein-2 distances between sets of points: exact, or averaged over random lines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.evaluation.finite import require_finite


def wasserstein(x: Tensor, y: Tensor) -> float:
    """The exact Wasserstein-2 distance between N points ``x`` and N points ``y`` (N, D).

        min_pi sqrt(mean_i |x_i - y_pi(i)|^2)

    The time is O(N^3). Raises ValueError for unequal shapes, NaN, or without scipy. Peyre and
    Cuturi, Computational optimal transport, arXiv 1803.00567, eq. 2.2 and proposition 2.1.
    """
    if x.ndim != 2 or x.shape != y.shape or x.numel() == 0:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"points are {shapes}; expected (N, D), as many of each")
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ValueError(
            "the exact Wasserstein distance needs scipy, which is missing; pip install scipy"
        ) from None
    require_finite(samples=x, references=y)
    x, y = x.double().cpu(), y.double().cpu()
    rows, columns = linear_sum_assignment(torch.cdist(x, y).square().numpy())
    pairs = x[torch.from_numpy(rows)] - y[torch.from_numpy(columns)]
    return math.sqrt(float(pairs.square().sum(1).mean()))


def directions(n: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Uniform unit vectors (n, D)."""
    normal = torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    length: Tensor = torch.linalg.vector_norm(normal, dim=1, keepdim=True)
    return normal / length


def sliced_wasserstein(x: Tensor, y: Tensor, lines: Tensor) -> float:
    """Root mean square of the Wasserstein-2 distances along the unit vectors ``lines`` (L, D).

        sqrt(mean_u W_2(u . x, u . y)^2)

    ``x`` is (N, D), ``y`` (M, D). Raises ValueError for unequal D or NaN. Bonneel and others,
    Sliced and Radon Wasserstein barycenters of measures (2015).
    """
    lines = lines.to(x.device)
    if x.ndim != 2 or not x.shape[1:] == y.shape[1:] == lines.shape[1:] or not len(x) * len(y):
        shapes = ", ".join(str(tuple(part.shape)) for part in (x, y, lines))
        raise ValueError(f"points and lines are {shapes}; expected (N, D), (M, D), (L, D)")
    require_finite(samples=x, references=y)
    squares = squared_on_a_line(x.double() @ lines.T, y.double() @ lines.T)
    return math.sqrt(float(squares.mean()))


def squared_on_a_line(x: Tensor, y: Tensor) -> Tensor:
    """Squared Wasserstein-2 distances (L,) between the columns of ``x`` (N, L) and ``y`` (M, L).

        int_0^1 (F_x^-1(q) - F_y^-1(q))^2 dq

    The sum is exact, because both quantile functions are constant between multiples of 1/N and of
    1/M. Peyre and Cuturi, arXiv 1803.00567, remark 2.30.
    """
    n, m = len(x), len(y)
    # Integer multiples of 1 / (N M), so that rounding moves no boundary.
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    width = ends.diff(prepend=ends.new_zeros(1)).to(x) / (n * m)
    last = (ends - 1).to(x.device)
    gap = x.sort(0).values[last // m] - y.sort(0).values[last // n]
    squares: Tensor = (width[:, None] * gap.square()).sum(0)
    return squares
