"""Unbiased maximum mean discrepancies of features and of points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.evaluation.finite import require_finite

BLOCK = 1000
"""Fewest features of each set per estimate of the kernel distance."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Maps (N, D) and (M, D) to a matrix (N, M)."""


def kid(x: Tensor, y: Tensor, block: int = BLOCK) -> float:
    """Kernel distance: the mean of ``kid_blocks``, unbiased for any number of features."""
    return float(kid_blocks(x, y, block).mean())


def kid_blocks(x: Tensor, y: Tensor, block: int = BLOCK) -> Tensor:
    """Independent unbiased kernel distances (B,) of disjoint parts of features (N, D), (M, D).

        MMD^2 with k(a, b) = (a . b / D + 1)^3

    Each part has at least ``block`` features of each set, or all if there are fewer. Raises
    ValueError as ``mmd2`` does. Binkowski and others, Demystifying MMD GANs, arXiv 1801.01401,
    section 4.
    """
    require_finite(samples=x, references=y)
    parts = max(1, min(len(x), len(y)) // block)
    pairs = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
    return torch.tensor([mmd2(a, b, cubic) for a, b in pairs], dtype=torch.float64)


def gaussian_mmd2(x: Tensor, y: Tensor, width: float | None = None) -> float:
    """Unbiased squared discrepancy of ``x`` (N, D), ``y`` (M, D) with a Gaussian kernel.

        MMD^2 with k(a, b) = exp(-|a - b|^2 / (2 width^2))

    By default ``width`` is the median distance between the references ``y``, so it is the same
    for the samples of all models. Raises ValueError as ``mmd2`` does. Gretton and others, A kernel
    two-sample test (2012), section 8.
    """
    require_finite(samples=x, references=y)
    width = width or median_distance(y)
    return mmd2(x, y, lambda a, b: (-_squares(a, b) / (2 * width**2)).exp())


def median_distance(x: Tensor) -> float:
    """The median distance between pairs of points ``x`` (N, D); 1 if it is zero."""
    rows, columns = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return float(_squares(x, x)[rows, columns].median().sqrt()) or 1.0


def mmd2(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """Unbiased squared maximum mean discrepancy of ``x`` (N, D) and ``y`` (M, D).

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    It may be negative if the true value is near 0. Raises ValueError for unequal D, fewer than two
    points of either set, NaN or infinity. Gretton and others, A kernel two-sample test (2012),
    eq. 3.
    """
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"features are {shapes}; expected (N, D), (M, D), two of each at least")
    require_finite(samples=x, references=y)
    x, y = x.double(), y.double()
    return float(_off_diagonal(x, kernel) + _off_diagonal(y, kernel) - 2 * kernel(x, y).mean())


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """(a . b / D + 1)^3 for every pair."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _off_diagonal(x: Tensor, kernel: Kernel) -> Tensor:
    values = kernel(x, x)
    return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances, centred so that the expanded square loses few digits."""
    middle = b.double().mean(0)
    a, b = a - middle, b - middle
    inner = a @ b.T
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * inner).clamp_min(0)
